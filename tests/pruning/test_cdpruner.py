"""CDPruner: the greedy mode of a DPP against determinants, its relevance against loops, and cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.cdpruner import CDPruner, greedy_map, kernel_weights, min_max
from sharp_demo.pruning.frames import even_split
from sharp_demo.pruning.schedule import budget
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, with_frames

KERNELS = [("blend", 0.5), ("blend", 0.0), ("blend", 1.0), ("exp", 0.5), ("exp", 1.0), ("product", 0.5)]


def order_of(rows: Tensor, relevance: Tensor, count: int, kernel: str = "blend", weight: float = 0.5) -> list[int]:
    base, factor = kernel_weights(relevance[None], kernel, weight)
    return greedy_map(F.normalize(rows, dim=-1)[None], base, factor, relevance[None], count)[0].tolist()


def naive_kernel(rows: Tensor, relevance: Tensor, kernel: str, weight: float) -> Tensor:
    """The whole kernel in double precision, entry by entry."""
    unit, r = F.normalize(rows.double(), dim=-1), relevance.double().tolist()

    def factor(a: float, b: float) -> float:
        if kernel == "blend":
            return (1 - weight) + weight * a * b
        return math.exp(weight / (2 * (1 - weight)) * (a + b)) if kernel == "exp" and weight < 1 else a * b

    return (unit @ unit.T) * torch.tensor([[factor(a, b) for b in r] for a in r], dtype=torch.double)


def naive_order(kernel: Tensor, count: int) -> list[int]:
    """The largest determinant at every step, by determinants."""
    order: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(kernel)) if i not in order]
        sets = torch.tensor([[*order, i] for i in left])
        found = kernel[sets[:, :, None], sets[:, None]].logdet().tolist()
        order.append(max(zip(found, left, strict=True), key=lambda one: (round(one[0], 9), -one[1]))[1])
    return order


@pytest.mark.parametrize(("kernel", "weight"), KERNELS)
def test_equals_the_largest_determinants(kernel: str, weight: float) -> None:
    for seed in range(3):
        rows = random_rows(40, 16, seed)
        relevance = min_max(random_rows(1, 40, seed + 10))[0]
        expected = naive_order(naive_kernel(rows, relevance, kernel, weight), 10)
        assert order_of(rows, relevance, 10, kernel, weight) == expected


def test_by_hand() -> None:
    """Rows at 0, 60 and 90 degrees, all as relevant: 0 first, 90 gives all of its length, 60 what is left."""
    rows = torch.tensor([[2.0, 0, 0], [0.5, 3**0.5 / 2, 0], [0, 5, 0]])
    assert order_of(rows, torch.zeros(3), 3) == [0, 2, 1]
    assert order_of(rows, torch.tensor([0.0, 1, 0.2]), 2) == [1, 0]  # .75 x .5 beats .25 x .52


def test_min_max_of_equal_values_is_blind() -> None:
    flat = min_max(torch.full((2, 5), 0.3))
    assert flat.tolist() == [[0.0] * 5] * 2
    rows = random_rows(5, 4)
    assert order_of(rows, flat[0], 5) == order_of(rows, flat[0], 5, weight=0.0)
    assert min_max(torch.tensor([[1.0, 3, 2]])).tolist()[0] == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_exp_of_any_weight_stays_finite() -> None:
    relevance = torch.linspace(0, 1, 8)
    for weight in (0.9, 0.999, 1 - 1e-9):
        base, factor = kernel_weights(relevance[None], "exp", weight)
        assert base == 0
        assert factor.isfinite().all()
        assert float(factor.max()) == 1
        assert sorted(order_of(random_rows(8, 4), relevance, 8, "exp", weight)) == list(range(8))


def test_a_used_up_rank_is_filled_by_relevance_then_index() -> None:
    """Twelve rows of two directions, weighed by nothing: one of each, then the rest, each once."""
    rows = torch.tensor([[1.0, 0], [0, 1]]).repeat(6, 1)
    relevance = torch.tensor([0.5, 0.5, 0.9, 0, 0, 0, 0.9, 0.1, 0, 0, 0, 0])
    assert order_of(rows, relevance, 12, weight=0.0) == [0, 1, 2, 6, 7, 3, 4, 5, 8, 9, 10, 11]
    low_rank = random_rows(30, 4)
    assert len(set(order_of(low_rank, torch.rand(30, generator=torch.Generator().manual_seed(3)), 20))) == 20


def test_without_relevance_the_product_never_picks_it_before_the_rest() -> None:
    rows, relevance = random_rows(6, 8), torch.tensor([0.3, 0.0, 0.5, 1.0, 0.2, 0.7])
    assert order_of(rows, relevance, 6, "product")[-1] == 1


def words(prompt: Prompt, which: str) -> list[int]:
    """Rows of the prompt's words, from its ids."""
    ids = prompt.tokens["input_ids"][0].tolist()
    config = prompt.model.config
    marks = {config.video_token_id, *(getattr(config, f"vision_{edge}_token_id", None) for edge in ("start", "end"))}
    first = 0 if which == "text" else max(row for row, id in enumerate(ids) if id == config.video_token_id)
    return [row for row, id in enumerate(ids) if id not in marks and row >= first]


@pytest.mark.parametrize("which", ["text", "question"])
@pytest.mark.parametrize("scope", ["frame", "video"])
def test_on_states_of_the_embedded_models(world: Prompt, which: str, scope: str) -> None:
    """As determinants in double precision choose; every step may miss the best by rounding only."""
    method = CDPruner(retention=0.1 if scope == "frame" else 0.02, relevance=which, scope=scope)
    with method(world.model) as run:
        greedy(world, steps=1)
    rows, ids = frames_of(world), world.tokens["input_ids"]
    vector = world.model.get_input_embeddings()(ids)[0, words(world, which)].detach().double().mean(0)
    sets = list(rows) if scope == "frame" else [rows.flatten(0, 1)]
    k, kept, told = budget(method.retention, len(world.layout)), [], []
    for at, (one, count) in enumerate(zip(sets, even_split(k, len(sets)), strict=True)):
        cosine = F.cosine_similarity(one.double(), vector, dim=-1)
        relevance = (cosine - cosine.min()) / (cosine.max() - cosine.min() + 1e-6)
        told += relevance.tolist()
        kept += [at * len(one) + i for i in naive_order(naive_kernel(one, relevance, "blend", 0.5), count)]
    assert run.kept.tolist() == sorted(kept)
    torch.testing.assert_close(run.scores["raw"], torch.tensor(told), atol=1e-4, rtol=0)


def test_the_question_matters_only_where_it_is_asked(tiny: Backbone) -> None:
    prompts = [Prompt(tiny, question=text) for text in ("What color is the car?", "blue blue blue blue blue")]

    def kept(prompt: Prompt, **options: object) -> list[int]:
        with CDPruner(retention=0.3, **options)(prompt.model) as run:  # type: ignore[arg-type]
            greedy(prompt, steps=1)
        return run.kept.tolist()

    for blind in ({"relevance": "none"}, {"weight": 0.0}):
        assert kept(prompts[0], **blind) == kept(prompts[1], **blind)
    assert kept(prompts[0], kernel="product") != kept(prompts[1], kernel="product")


def test_a_token_equal_to_the_text_is_kept(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    vector = prompt.model.get_input_embeddings()(prompt.tokens["input_ids"])[0, words(prompt, "text")].detach().mean(0)
    frames = random_rows(len(prompt.layout), len(vector)).view(prompt.layout.frames, -1, len(vector)).clone()
    frames[3, 5] = vector
    with with_frames(prompt, frames), CDPruner(retention=0.2, scope="video")(prompt.model) as run:
        greedy(prompt, steps=1)
    assert int(run.scores["raw"].argmax()) == 3 * frames.shape[1] + 5
    assert 3 * frames.shape[1] + 5 in run.kept.tolist()
