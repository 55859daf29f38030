"""DART: pivots, shares and what they take, against loops over an ordinary run of the model, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.dart import DART, least_alike, shares
from sharp_demo.pruning.evs import EVS
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.schedule import budget
from tests.pruning.prompts import Prompt, greedy, random_rows


def test_shares_by_hand() -> None:
    assert shares(16, 8) == [2] * 8
    assert shares(11, 8) == [2, 2, 2, 1, 1, 1, 1, 1]
    assert shares(3, 8) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_least_alike_by_hand() -> None:
    """Pivot 0 takes the two lowest of what is left, the second pivot what it likes least of the rest."""
    cosine = torch.tensor([[1.0, 0.1, 0.9, -0.3, 0.1], [0.0, -1, 0.5, -2, 0.6]])
    assert least_alike(cosine, torch.tensor([0]), [2, 1]).tolist() == [0, 1, 2, 3]
    assert least_alike(cosine, torch.tensor([0]), [1, 1]).tolist() == [0, 1, 3]
    assert least_alike(torch.ones(2, 5), torch.tensor([2]), [1, 2]).tolist() == [0, 1, 2, 3]  # ties: lower index


def test_a_duplicate_of_every_pivot_comes_last() -> None:
    rows = random_rows(10, 6)
    rows[7] = rows[2]
    unit = torch.nn.functional.normalize(rows, dim=-1)
    kept = least_alike(unit[2:3] @ unit.T, torch.tensor([2]), [8])
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("seed", range(3))
def test_least_alike_equals_loops(seed: int) -> None:
    cosine = random_rows(6, 40, seed)
    counts = [3, 3, 3, 2, 2, 2]
    left, kept = [i for i in range(40) if i not in (4, 11)], [4, 11]
    for row, count in zip(cosine.tolist(), counts, strict=True):
        for _ in range(count):
            kept.append(min(left, key=lambda i: (row[i], i)))
            left.remove(kept[-1])
    assert least_alike(cosine, torch.tensor([4, 11]), counts).tolist() == sorted(kept)


@torch.no_grad()
def naive(prompt: Prompt, layer: int, k: int) -> list[int]:
    """The kept slots, from the states and keys of the untouched model, token by token in double precision."""
    output = prompt.model(**prompt.inputs(), use_cache=True, output_hidden_states=True)
    states = output.hidden_states[layer][0].double()
    lengths = states.abs().sum(-1).tolist()
    if layer:
        cache = output.past_key_values if "past_key_values" in output else output.cache
        keys = cache.layers[layer - 1].keys[0].double()
        lengths = [float(keys[:, row].abs().sum()) for row in range(prompt.length)]
        norm = prompt.model.model.language_model.norm
        scale = (states.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        states = states * scale * norm.weight.double()
    rows = prompt.layout.index.tolist()
    ids = prompt.tokens["input_ids"][0].tolist()
    last = max(row for row, id in enumerate(ids) if id == prompt.model.config.video_token_id)
    pivots = sorted(sorted(range(len(rows)), key=lambda slot: (-lengths[rows[slot]], slot))[: min(k, 4)])
    words = sorted(sorted(range(last + 1, prompt.length), key=lambda row: (-lengths[row], row))[:4])
    kept, asked = list(pivots), [rows[slot] for slot in pivots] + words
    each, more = divmod(k - len(pivots), len(asked))
    for place, row in enumerate(asked):
        found = {slot: cosine(states[row], states[rows[slot]]) for slot in range(len(rows)) if slot not in kept}
        kept += sorted(found, key=lambda slot: (found[slot], slot))[: each + (place < more)]
    return sorted(kept)


def cosine(u: Tensor, v: Tensor) -> float:
    return float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))


def run(prompt: Prompt, method: DART) -> Run:
    with method(prompt.model) as record:
        greedy(prompt, steps=1)
    return record


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("retention", [0.02, 0.06, 0.4])
def test_equals_loops_over_the_untouched_model(tiny: Backbone, layer: int, retention: float) -> None:
    prompt = Prompt(tiny)
    k = budget(retention, len(prompt.layout))
    record = run(prompt, DART(retention=retention, layer=layer))
    assert record.kept.tolist() == naive(prompt, layer, k)
    assert record.visual_per_layer == [len(prompt.layout)] * layer + [k] * (4 - layer)


@pytest.mark.parametrize("layer", [0, 2])
def test_on_states_of_the_embedded_models(world: Prompt, layer: int) -> None:
    k = budget(0.15, len(world.layout))
    assert run(world, DART(retention=0.15, layer=layer)).kept.tolist() == naive(world, layer, k)


def test_the_longest_keys_stay(tiny: Backbone) -> None:
    record = run(Prompt(tiny), DART(retention=0.2))
    best = record.scores["raw"].topk(4).indices.tolist()
    assert set(best) <= set(record.kept.tolist())


def test_a_question_shorter_than_its_pivots(tiny: Backbone) -> None:
    """More word pivots than there are words: all that stand behind the video vote."""
    prompt = Prompt(tiny)
    behind = prompt.length - int(prompt.layout.index[-1]) - 1
    many, all_of_them = (run(prompt, DART(retention=0.4, text_pivots=count)) for count in (99, behind))
    assert many.kept.tolist() == all_of_them.kept.tolist()
    assert len(many.kept) == budget(0.4, len(prompt.layout))
    assert run(prompt, DART(retention=0.4, text_pivots=0)).kept.tolist() != many.kept.tolist()


def test_text_before_the_video_does_not_vote(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, asked = Prompt(tiny), []
    original = Prefill.text_around

    def noted(prefill: Prefill, **choice: bool) -> Tensor:
        rows = original(prefill, **choice)
        asked.append((rows.tolist(), prefill.end))
        return rows

    monkeypatch.setattr(Prefill, "text_around", noted)
    run(prompt, DART(retention=0.3))
    ((rows, end),) = asked
    assert min(rows) >= end
    assert prompt.model.config.video_token_id not in prompt.tokens["input_ids"][0, rows]


def test_behind_another_method_it_reads_the_rows_that_are_left(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    with (EVS(retention=0.5) + DART(retention=0.2))(prompt.model) as record:
        greedy(prompt, steps=1)
    n = len(prompt.layout)
    assert record.visual_per_layer == [budget(0.5, n)] * 2 + [budget(0.2, n)] * 2
    with (DART(retention=0.5, layer=2) + DART(retention=0.2, layer=2))(prompt.model) as record:
        greedy(prompt, steps=1)
    assert len(record.kept) == budget(0.2, n)
