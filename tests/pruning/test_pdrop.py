"""PDrop: sizes, scoring layer, stages and positions, against eager attention and a loop that has no cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone, load
from sharp_demo.errors import MethodError, UnsupportedError
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.pdrop import PDrop, pdrop_layers, pdrop_schedule
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.schedule import visual_per_layer
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, masked, naive_logits


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


@pytest.fixture(params=[("llava", False), ("llava", True), ("qwen", False)], ids=str)
def numbered(request: pytest.FixtureRequest) -> tuple[Prompt, bool]:
    """A prompt, and whether positions are renumbered: that is not defined for Qwen2-VL."""
    family, reindex = request.param
    return Prompt(request.getfixturevalue(f"tiny_{family}")), reindex


@dataclass(frozen=True)
class Watched(PDrop):
    """PDrop that is always on, and shows which slots it kept and what came in at each stage."""

    seen: ClassVar[dict[int, Tensor]] = {}
    states: ClassVar[dict[int, Tensor]] = {}

    @property
    def active(self) -> bool:
        return True

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        self.states[layer] = prefill.hidden
        selection = super().before_layer(layer, prefill)
        if selection is not None:
            self.seen[layer] = prefill.slots[selection.kept]
        return selection


def test_sizes_are_cumulative_and_of_the_original_number() -> None:
    assert pdrop_schedule(0.5, 6272, 28, cuts="official") == [(7, 3136), (14, 1568), (21, 784)]
    assert pdrop_schedule(0.5, 576, 32, cuts="official") == [(8, 288), (16, 144), (24, 72)]
    assert pdrop_schedule(0.3, 6272, 28) == [(4, 1881), (12, 940), (20, 470)]  # floors of 1881.6, 940.8, 470.4
    assert pdrop_schedule(0.3, 100, 28, decay=1.0) == [(4, 30), (12, 30), (20, 30)]
    assert pdrop_schedule(1e-6, 100, 28) == [(4, 1), (12, 1), (20, 1)]


def test_a_share_of_whole_tokens_keeps_them() -> None:
    """k / n times n may be a rounding error below k; its floor must not be a token less."""
    for n in (49, 72, 6272):
        assert [pdrop_schedule(k / n, n, 28)[0][1] for k in range(1, n)] == list(range(1, n))


@pytest.mark.parametrize(
    ("layers", "comparison", "official"),
    [
        (28, [4, 12, 20], [7, 14, 21]),
        (32, [5, 14, 23], [8, 16, 24]),
        (24, [3, 10, 17], [6, 12, 18]),
        (8, [1, 3, 6], [2, 4, 6]),
        (4, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_cuts_scale_with_the_depth(layers: int, comparison: list[int], official: list[int]) -> None:
    assert pdrop_layers(layers) == comparison
    assert pdrop_layers(layers, "official") == official


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_model_too_shallow_for_three_cuts_is_refused(layers: int) -> None:
    with pytest.raises(MethodError, match=f"pdrop: prunes before layer {layers}, but this model has layers 0 to"):
        PDrop().check(layers)
    PDrop().check(4)


def test_keeping_everything_is_bit_equal(numbered: tuple[Prompt, bool]) -> None:
    prompt, reindex = numbered
    _, expected, _ = greedy(prompt)
    with Watched(retention=1.0, decay=1.0, reindex_positions=reindex)(prompt.model) as run:
        _, logits, _ = greedy(prompt)
    assert len(run.kept) == len(prompt.layout)
    assert torch.equal(logits, expected)


def test_scores_are_the_next_layers_last_row_of_eager_attention(tiny: Backbone, cpu_settings: Settings) -> None:
    eager = load(str(tiny.folder), cpu_settings.model_copy(update={"attention": "eager"}))
    prompt = Prompt(eager)
    with torch.no_grad():
        attentions = eager.model(**prompt.inputs(), output_attentions=True).attentions
    with PDrop(retention=0.5)(tiny.model) as run:
        greedy(Prompt(tiny), steps=1)
    rows = [attention[0].mean(0)[-1, prompt.layout.index] for attention in attentions]
    torch.testing.assert_close(run.scores["raw"], rows[1], atol=1e-6, rtol=0)
    assert (run.scores["raw"] - rows[0]).abs().max() > 1e-4


@pytest.mark.parametrize("perturbed", [0, 1])
def test_the_scorer_is_the_layer_about_to_run(perturbed: int, prompt: Prompt) -> None:
    """At the cut before layer 1: on the same states, layer 1's queries matter and layer 0's do not."""
    method = Watched(retention=0.3)

    def kept() -> list[int]:
        with method(prompt.model):
            greedy(prompt, steps=1)
        return Watched.seen[1].tolist()

    before, states = kept(), Watched.states[1].clone()

    @dataclass(frozen=True)
    class SameStates(Watched):
        def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
            if layer == 1:
                prefill.hidden = states
            return super().before_layer(layer, prefill)

    method = SameStates(retention=0.3)
    assert kept() == before
    projection = prompt.model.model.language_model.layers[perturbed].self_attn.q_proj
    weight = projection.weight.data.clone()
    try:
        projection.weight.data.copy_(-5 * weight)
        assert (kept() == before) == (perturbed == 0)
    finally:
        projection.weight.data.copy_(weight)


def test_stages_are_nested_and_exact_and_caches_follow(prompt: Prompt) -> None:
    n = len(prompt.layout)
    for method in (Watched(retention=0.5), Watched(retention=0.75, decay=0.7, cuts="official")):
        with method(prompt.model) as run:
            ids, logits, cache = greedy(prompt)
        stages = list(method.schedule(4, n))
        assert [(layer, len(Watched.seen[layer])) for layer, _ in stages] == stages
        sets = [set(Watched.seen[layer].tolist()) for layer, _ in stages]
        assert sets[0] > sets[1] > sets[2]
        assert run.kept.tolist() == sorted(sets[2])
        assert run.visual_per_layer == visual_per_layer(4, n, stages)
        extra = prompt.length - n + 8 + 5  # text, eight answers, five of the second turn
        assert [layer.get_seq_length() for layer in cache.layers] == [v + extra for v in run.visual_per_layer]
        (first, *later) = [(layer, Watched.seen[layer]) for layer, _ in stages]
        with masked(prompt, *first, later=later):
            expected_ids, expected, _ = greedy(prompt)
        assert ids == expected_ids
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_answers_are_those_of_the_shortened_sequence(numbered: tuple[Prompt, bool]) -> None:
    """Teacher-forced decoding over the caches equals one pass over prompt and answer with the same tokens dropped."""
    prompt, reindex = numbered
    with Watched(retention=0.5, reindex_positions=reindex)(prompt.model):
        ids, logits, _ = greedy(prompt)
    stages = dict(Watched.seen)
    seen = logits[: len(ids) + 1].isfinite()  # placeholders are suppressed
    expected = naive_logits(prompt, stages, ids, renumbered=reindex)
    torch.testing.assert_close(logits[: len(ids) + 1][seen], expected[seen], atol=2e-5, rtol=0)
    if reindex:
        wrong = naive_logits(prompt, stages, ids, renumbered=False)
        assert (wrong[seen] - expected[seen]).abs().max() > 1e-3


def test_renumbered_positions_are_counted_stage_by_stage(tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    asked: list[Tensor] = []
    rotary = prompt.model.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(lambda module, args: asked.append(args[1].clone()))
    try:
        with PDrop(retention=0.5, reindex_positions=True)(prompt.model) as run:
            greedy(prompt, steps=2, second_turn=1)
    finally:
        hook.remove()
    length, n = prompt.length, len(prompt.layout)
    assert [positions.tolist() for positions in asked[:4]] == [
        [list(range(length - n + alive))] for alive in run.visual_per_layer
    ]
    for step in range(2):  # one token a step, its position asked for once a stage
        at_stages = [int(positions) for positions in asked[4 + 4 * step : 8 + 4 * step]]
        assert at_stages == [length + step - (n - alive) for alive in run.visual_per_layer]


def test_renumbering_is_refused_for_three_axes(tiny_qwen: Backbone) -> None:
    prompt = Prompt(tiny_qwen)
    with (
        PDrop(reindex_positions=True)(prompt.model),
        pytest.raises(MethodError, match="reindex_positions is not defined for Qwen2-VL"),
    ):
        greedy(prompt, steps=1)


def test_padding_is_refused(prompt: Prompt) -> None:
    padded = {**prompt.inputs(), "attention_mask": torch.ones_like(prompt.tokens["input_ids"])}
    padded["attention_mask"][0, -1] = 0
    with PDrop()(prompt.model), pytest.raises(UnsupportedError, match="unpadded"), torch.no_grad():
        prompt.model(**padded, use_cache=True)


def test_retention_one_switches_it_off_whatever_the_decay(prompt: Prompt) -> None:
    method = PDrop(retention=1.0, decay=0.1)
    assert not method.active
    assert method.visual_per_layer(28, 100) == [100] * 28
    assert replace(method, retention=0.999).active
