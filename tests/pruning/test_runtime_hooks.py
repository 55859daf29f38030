"""The runtime's hook points, one small method each: a drop equals a model that never had the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.engine.generation import prefill, suppress_placeholders
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.attention import Span, segment_masked
from sharp_demo.pruning.evs import EVS
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.floors import Latest, Uniform
from sharp_demo.pruning.layers import AttentionOverride
from sharp_demo.pruning.method import Combined, Method
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.schedule import Schedule
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.visionzip import VisionZip
from tests.pruning.prompts import Prompt, greedy, masked, naive_logits, shortened

ANSWER = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}


@dataclass(frozen=True)
class Every(Method):
    """Before each layer of `cuts` keeps every `step`-th of the visual tokens that are left."""

    name = "every"
    title = "Every"
    where = "both"

    cuts: tuple[int, ...] = (0,)
    step: int = 3
    compact: bool = False
    role: int = -1  # -1: gives none

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        stages = []
        for cut in self.cuts:
            n = -(-n // self.step)
            stages.append((cut, n))
        return stages

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer not in self.cuts:
            return None
        kept = torch.arange(0, len(prefill.rows), self.step)
        role = None if self.role < 0 else torch.full_like(kept, self.role)
        return Selection(kept, role, compact=self.compact)


@dataclass(frozen=True)
class Inside(Method):
    """Keeps every other token between attention and MLP of layer 1."""

    name = "inside"
    title = "Inside"

    def after_attention(self, layer: int, prefill: Prefill) -> Selection | None:
        return Selection(torch.arange(0, len(prefill.rows), 2)) if layer == 1 else None


@dataclass(frozen=True)
class Overrides(Method):
    """Replaces the attention of one layer."""

    name = "overrides"
    title = "Overrides"
    where = "inside"
    at: int = 1

    def attention(self, layer: int, prefill: Prefill) -> AttentionOverride | None:
        if layer != self.at:
            return None
        whole = ((prefill.start, prefill.start + len(prefill.rows)),)
        return partial(segment_masked, span=Span(prefill.start, whole))


@dataclass(frozen=True)
class Forgets(Method):
    """After the prefill keeps the text's keys and values only, in one layer."""

    name = "forgets"
    title = "Forgets"
    at: int = 2

    def after_prefill(self, prefill: Prefill) -> None:
        prefill.drop_kv(self.at, prefill.text)


@dataclass(frozen=True)
class Told(Method):
    """Writes down which hooks were called, with the tokens there were."""

    name = "told"
    title = "Told"
    heard: ClassVar[list[tuple[str, str, int, int]]] = []
    label: str = "a"
    cut: int = -1

    def _note(self, hook: str, layer: int, prefill: Prefill) -> None:
        self.heard.append((self.label, hook, layer, len(prefill.rows)))

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        self._note("before", layer, prefill)
        return Selection(torch.arange(10)) if layer == self.cut else None

    def attention(self, layer: int, prefill: Prefill) -> None:
        self._note("attention", layer, prefill)

    def after_attention(self, layer: int, prefill: Prefill) -> Selection | None:
        self._note("after", layer, prefill)
        return None

    def after_prefill(self, prefill: Prefill) -> None:
        self._note("end", len(prefill.layers), prefill)


@dataclass(frozen=True)
class Wraps(Method):
    """One method made by hand of several functions, one per layer."""

    name = "wraps"
    title = "Wraps"
    calls: tuple[tuple[int, Callable[[Prefill], Selection]], ...] = field(default=())

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        return dict(self.calls)[layer](prefill) if layer in dict(self.calls) else None


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def every(n: int, *steps: int) -> Tensor:
    """Slots that are left after keeping every step-th, again and again."""
    slots = torch.arange(n)
    for step in steps:
        slots = slots[::step]
    return slots


# -- before the LLM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3, 100])
def test_a_compact_drop_before_the_llm_is_an_ordinary_shorter_prompt(step: int, tiny_llava: Backbone) -> None:
    """Prefill, eight tokens and a second turn against the text model itself, positions 0, 1, 2, ..."""
    prompt = Prompt(tiny_llava)
    with Every(step=step, compact=True)(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    kept = every(len(prompt.layout), step)
    assert run.kept.tolist() == kept.tolist()
    assert run.visual_per_layer == [len(kept)] * 4
    expected_ids, expected = shortened(prompt, kept, compact=True)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    assert {layer.get_seq_length() for layer in cache.layers} == {prompt.length - len(prompt.layout) + len(kept) + 13}


def test_compact_and_original_positions_are_two_things(tiny_llava: Backbone) -> None:
    prompt, kept = Prompt(tiny_llava), every(72, 3)
    (_, one), (_, other) = (shortened(prompt, kept, compact=compact) for compact in (True, False))
    assert (one - other)[0][one[0].isfinite()].abs().max() > 1e-3


@pytest.mark.parametrize("compact", [True, False])
def test_generate_says_what_the_shorter_prompt_says(compact: bool, tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    suppressed = [prompt.model.config.video_token_id, prompt.model.config.image_token_id]
    with Every(compact=compact)(prompt.model):
        said = prompt.model.generate(**prompt.inputs(), **ANSWER, suppress_tokens=suppressed)
    ids, _ = shortened(prompt, every(len(prompt.layout), 3), compact=compact)
    assert said[0, prompt.length :].tolist() == ids


def test_original_positions_before_the_llm_equal_masking(prompt: Prompt) -> None:
    with Every()(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    with masked(prompt, 0, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    _, shorter = shortened(prompt, run.kept, compact=False)
    torch.testing.assert_close(logits, shorter, atol=2e-5, rtol=0)


def test_keeping_everything_renumbered_is_bit_equal(tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    _, expected, _ = greedy(prompt)
    beams = prompt.model.generate(**prompt.inputs(), **ANSWER, num_beams=3)
    with Every(step=1, cuts=(0, 2), compact=True)(prompt.model):
        _, logits, _ = greedy(prompt)
        again = prompt.model.generate(**prompt.inputs(), **ANSWER, num_beams=3)
    assert torch.equal(logits, expected)
    assert torch.equal(again, beams)


def test_three_axes_are_not_renumbered(tiny_qwen: Backbone) -> None:
    prompt = Prompt(tiny_qwen)
    with Every(compact=True)(prompt.model), pytest.raises(UnsupportedError, match="three axes"):
        prefill(prompt.model, prompt.inputs())


# -- between layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(1, 3), (0, 2), (0, 1, 2, 3), (3,)])
@pytest.mark.parametrize("compact", [True, False])
def test_stages_that_renumber_equal_a_plain_loop(compact: bool, cuts: tuple[int, ...], tiny_llava: Backbone) -> None:
    """The whole answer at once without a cache against prefill and steps; numbers start again at every stage."""
    prompt = Prompt(tiny_llava)
    with Every(cuts=cuts, step=2, compact=compact)(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    stages = {cut: every(len(prompt.layout), *[2] * (number + 1)) for number, cut in enumerate(cuts)}
    expected = naive_logits(prompt, stages, ids, renumbered=compact)
    expected = torch.stack([suppress_placeholders(prompt.model, row) for row in expected])
    torch.testing.assert_close(logits[:9], expected, atol=2e-5, rtol=0)
    left = len(prompt.layout)
    for layer, count in enumerate(run.visual_per_layer):
        left = len(stages.get(layer, range(left)))
        assert count == left


def test_a_second_turn_goes_on_from_every_stages_own_numbers(tiny_llava: Backbone) -> None:
    """The five tokens that `greedy` adds at once are the same as if they had been part of the answer."""
    prompt = Prompt(tiny_llava)
    with Every(cuts=(0, 2), step=2, compact=True)(prompt.model):
        ids, logits, _ = greedy(prompt)
    stages = {0: every(72, 2), 2: every(72, 2, 2)}
    follow = (torch.arange(5) + 7).tolist()
    expected = naive_logits(prompt, stages, [*ids, *follow], renumbered=True)
    torch.testing.assert_close(logits[-1], expected[-1], atol=2e-5, rtol=0)


# -- inside a layer, and after the prefill -------------------------------------------------------------------------


def test_dropping_between_attention_and_mlp_is_dropping_before_the_next_layer(prompt: Prompt) -> None:
    """The MLP looks at one row at a time."""
    with Inside()(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    n = len(prompt.layout)
    half = len(every(n, 2))
    assert run.visual_per_layer == [n, n, half, half]
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert [length - lengths[-1] for length in lengths] == [n - half, n - half, 0, 0]
    with Every(cuts=(2,), step=2)(prompt.model):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_forgotten_keys_change_later_tokens_only(prompt: Prompt) -> None:
    _, plain, _ = greedy(prompt)
    with Forgets()(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    n = len(prompt.layout)
    assert torch.equal(logits[0], plain[0])
    assert run.visual_per_layer == [n] * 4
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert [prompt.length + 13 - length for length in lengths] == [0, 0, n, 0]
    # prompt and answer at once, with that layer's visual keys hidden from the rows after the prompt
    lm, index = prompt.model.model.language_model, prompt.layout.index

    def hide(module: object, args: tuple, kwargs: dict) -> tuple:
        length = args[0].shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        visible[prompt.length :, index] = False
        bias = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": bias[None, None]}

    hook = lm.layers[2].register_forward_pre_hook(hide, with_kwargs=True)
    try:
        expected = naive_logits_plain(prompt, ids)
    finally:
        hook.remove()
    torch.testing.assert_close(logits[1:9], expected[1:], atol=2e-5, rtol=0)


@torch.no_grad()
def naive_logits_plain(prompt: Prompt, answer: list[int]) -> Tensor:
    """The model's own pass over prompt and answer at once."""
    expected = naive_logits(prompt, {}, answer, renumbered=False)
    return torch.stack([suppress_placeholders(prompt.model, row) for row in expected])


# -- several methods -----------------------------------------------------------------------------------------------


def test_two_combined_equal_both_by_hand(prompt: Prompt) -> None:
    first, second = Every(cuts=(0,), step=2), Every(cuts=(2,), step=3)
    with (first + second)(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    kept = every(len(prompt.layout), 2, 3)
    assert run.kept.tolist() == kept.tolist()
    by_hand = Wraps(calls=((0, lambda p: first.before_layer(0, p)), (2, lambda p: second.before_layer(2, p))))
    with by_hand(prompt.model) as other:
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    assert torch.equal(logits, expected)
    assert run.visual_per_layer == other.visual_per_layer
    stages = {0: every(len(prompt.layout), 2), 2: kept}
    naive = naive_logits(prompt, stages, ids, renumbered=False)
    naive = torch.stack([suppress_placeholders(prompt.model, row) for row in naive])
    torch.testing.assert_close(logits[:9], naive, atol=2e-5, rtol=0)
    schedule = (first + second).schedule(4, len(prompt.layout))
    assert [layer for layer, _ in schedule] == [0, 2]


def test_hooks_come_in_the_order_of_the_parts_and_see_what_is_left(prompt: Prompt) -> None:
    Told.heard.clear()
    with (Told(label="a", cut=1) + Told(label="b"))(prompt.model):
        prefill(prompt.model, prompt.inputs())
    n = len(prompt.layout)
    expected = []
    for layer in range(4):
        left = n if layer < 1 else 10
        expected += [("a", "before", layer, n if layer <= 1 else 10), ("b", "before", layer, left)]
        expected += [(part, hook, layer, left) for hook in ("attention", "after") for part in "ab"]
    assert Told.heard == [*expected, ("a", "end", 4, 10), ("b", "end", 4, 10)]


def test_a_part_at_retention_one_stays_out(prompt: Prompt) -> None:
    both = Every(retention=1.0, cuts=(0,), step=2) + Every(cuts=(2,), step=3)
    with both(prompt.model) as run:
        _, logits, _ = greedy(prompt)
    with Every(cuts=(2,), step=3)(prompt.model) as alone:
        _, expected, _ = greedy(prompt)
    assert run.kept.tolist() == alone.kept.tolist()
    assert torch.equal(logits, expected)
    assert not (Every(retention=1.0) + Every(retention=1.0)).active


def test_three_are_one_list(prompt: Prompt) -> None:
    parts = [Every(cuts=(cut,), step=2) for cut in (0, 1, 3)]
    for whole in (parts[0] + parts[1] + parts[2], parts[0] + (parts[1] + parts[2])):
        assert isinstance(whole, Combined)
        assert list(whole.parts) == parts
        with whole(prompt.model) as run:
            prefill(prompt.model, prompt.inputs())
        assert run.kept.tolist() == every(len(prompt.layout), 2, 2, 2).tolist()


@pytest.mark.parametrize(
    "method",
    [
        VisionZip(retention=0.2) + ShaRP(retention=0.5, posc=False),  # the second budget is above what is left
        VisionZip(retention=0.2) + FastV(retention=0.5),
        EVS(retention=0.4) + Latest(retention=0.9) + Uniform(retention=0.8),
        FastV(retention=0.3) + ShaRP(retention=0.5, posc=False),  # the second part prunes first
        Uniform(retention=0.5, layer=1) + FastV(retention=0.25, layer=1),
    ],
    ids=lambda method: "+".join(part.name for part in method.parts),
)
def test_parts_in_any_order_count_as_they_run(method: Combined, prompt: Prompt) -> None:
    n, frames = len(prompt.layout), prompt.layout.frames
    with method(prompt.model) as run:
        logits, cache, _ = prefill(prompt.model, prompt.inputs())
    assert run.visual_per_layer == method.visual_per_layer(4, n, frames)
    assert run.kept.tolist() == sorted(set(run.kept.tolist()))
    assert not logits.isnan().any()
    text = prompt.length - n
    assert [layer.get_seq_length() - text for layer in cache.layers] == run.visual_per_layer


def test_logits_of_the_last_layer_are_those_of_the_tokens_that_are_left(prompt: Prompt) -> None:
    """Where another method has dropped since: before the same layer, or inside the one before."""
    seen: list[tuple[Tensor, Tensor]] = []

    def listen(state: Prefill) -> None:
        seen.append((state.order, state.logits_of_last_layer(1)))

    for first in (Every(cuts=(3,), step=1), Every(cuts=(2,), step=2), Inside()):
        with (first + Wraps(calls=((2, listen),)))(prompt.model):
            prefill(prompt.model, prompt.inputs())
    (whole, expected), *others = seen
    assert len(whole) == prompt.length
    for order, logits in others:
        assert len(order) < prompt.length
        torch.testing.assert_close(logits, expected[:, order])


def test_a_combination_sees_the_question_if_a_part_does() -> None:
    assert (VisionZip() + ShaRP()).question_aware
    assert not (VisionZip() + EVS()).question_aware


def test_two_overrides_of_one_layer_are_refused(prompt: Prompt) -> None:
    with (Overrides(at=1) + Overrides(at=1))(prompt.model), pytest.raises(UnsupportedError, match="layer 1"):
        prefill(prompt.model, prompt.inputs())
    _, plain, _ = greedy(prompt)
    with (Overrides(at=1) + Overrides(at=2))(prompt.model):
        _, logits, _ = greedy(prompt)
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)  # one segment is plain causal attention


# -- what the run tells --------------------------------------------------------------------------------------------


def test_roles_outlive_a_stage_that_gives_none(prompt: Prompt) -> None:
    n = len(prompt.layout)
    role = torch.where(torch.arange(n) % 4 == 0, int(Role.STATIC), int(Role.DOMINANT))

    def give(prefill: Prefill) -> Selection:
        return Selection(torch.arange(n), role)

    def halve(prefill: Prefill) -> Selection:
        return Selection(torch.arange(0, len(prefill.rows), 2))

    with Wraps(calls=((0, give), (2, halve)))(prompt.model) as run:
        prefill(prompt.model, prompt.inputs())
    assert run.role.tolist() == role[::2].tolist()
    with (Every(cuts=(1,), step=2, role=int(Role.GRID)) + Every(cuts=(3,), step=2))(prompt.model) as run:
        prefill(prompt.model, prompt.inputs())
    assert set(run.role.tolist()) == {Role.GRID}
    assert len(run.role) == len(run.kept)
    with Every(cuts=(1,), step=2)(prompt.model) as run:
        prefill(prompt.model, prompt.inputs())
    assert set(run.role.tolist()) == {Role.KEPT}


def test_rows_put_in_before_the_llm_are_what_it_reads(prompt: Prompt) -> None:
    rows = torch.randn(5, prompt.features.features.shape[1], generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([0, 3, 4, 20, 31])

    def put(prefill: Prefill) -> Selection:
        return Selection(kept, hidden=rows, compact=prefill.family.renumbers)

    with Wraps(calls=((0, put),))(prompt.model):
        ids, logits, _ = greedy(prompt)
    expected_ids, expected = shortened(prompt, kept, rows, compact="position_ids" not in prompt.tokens)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_notes_are_those_of_one_prefill(prompt: Prompt) -> None:
    seen: list[int] = []
    key = Every()

    def write(prefill: Prefill) -> Selection:
        seen.append(len(prefill.notes))
        prefill.notes[key] = "something"
        return Selection(torch.arange(len(prefill.rows)))

    with Wraps(calls=((0, write), (1, write)))(prompt.model):
        for _ in range(2):
            prefill(prompt.model, prompt.inputs())
    assert seen == [0, 1, 0, 1]
