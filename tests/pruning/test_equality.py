"""Pruning is right when it equals something: vanilla, masking, eager attention, the other order, itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from sharp_demo.backbones.compat import cache_in, cache_name, with_cache
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.feather import Feather
from sharp_demo.pruning.method import Method, SingleStage
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods, make_method
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, lowest, masked, scenes

METHODS = [name for name in list_methods() if name != "vanilla"]
# One drop between layers and nothing else: what masking can stand for.
SINGLE_STAGE = ("fastv", "feather", "sharp", "random", "uniform", "latest")


@dataclass(frozen=True)
class KeepAll(SingleStage):
    """Selects everything and still takes the pruned path."""

    name = "keep-all"
    title = "Keep all"

    @property
    def active(self) -> bool:
        return True

    def select(self, prefill: Prefill, k: int) -> Selection:
        return Selection(torch.arange(len(prefill.rows)))


@dataclass(frozen=True)
class ActiveShaRP(ShaRP):
    """ShaRP that does not take itself out at retention 1."""

    @property
    def active(self) -> bool:
        return True


@dataclass(frozen=True)
class Spy(Method):
    """Hands every hook to another method and keeps what came back."""

    name = "spy"
    title = "Spy"
    inner: Method = field(default_factory=ShaRP)
    seen: ClassVar[dict[str, Tensor]] = {}

    def __call__(self, model, processor=None, bias_cache=None):
        return super().__call__(model, processor, BiasCache())

    @property
    def active(self) -> bool:
        return True

    def attention(self, layer, prefill):
        return self.inner.attention(layer, prefill)

    def before_layer(self, layer, prefill):
        selection = self.inner.before_layer(layer, prefill)
        if layer == 1:
            self.seen["hidden"] = prefill.hidden.clone()
        if selection is not None and selection.hidden is not None:
            self.seen["rows"] = selection.hidden
        return selection


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


@pytest.fixture
def vanilla(prompt: Prompt) -> tuple[list[int], Tensor]:
    ids, logits, _ = greedy(prompt)
    return ids, logits


def attach(method: Method, prompt: Prompt):
    return method(prompt.model, prompt.backbone.processor)


@pytest.mark.parametrize("name", list_methods())
def test_retention_one_is_vanilla_bit_for_bit(name: str, prompt: Prompt, vanilla: tuple[list[int], Tensor]) -> None:
    with attach(make_method(name, 1.0), prompt) as run:
        ids, logits, _ = greedy(prompt)
    assert ids == vanilla[0]
    assert torch.equal(logits, vanilla[1])
    assert run.kept.tolist() == list(range(len(prompt.layout)))
    assert run.visual_per_layer == [len(prompt.layout)] * 4


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_keeping_everything_through_the_pruned_path_is_bit_equal(
    layer: int, prompt: Prompt, vanilla: tuple[list[int], Tensor]
) -> None:
    with attach(KeepAll(layer=layer), prompt):
        _, logits, _ = greedy(prompt)
    assert torch.equal(logits, vanilla[1])


@pytest.mark.parametrize("options", [{"segm": False, "regd": False}, {"segm": False, "regd": True}])
def test_sharp_that_keeps_everything_without_segm_is_bit_equal(
    options: dict, prompt: Prompt, vanilla: tuple[list[int], Tensor]
) -> None:
    # tau_merge and tau_filter of 2 absorb nothing, so RegD has nothing to change either.
    with attach(ActiveShaRP(retention=1.0, tau_merge=2.0, tau_filter=2.0, **options), prompt) as run:
        _, logits, _ = greedy(prompt)
    assert len(run.kept) == len(prompt.layout)
    assert torch.equal(logits, vanilla[1])


def test_segm_with_one_segment_is_vanilla_within_rounding(prompt: Prompt, vanilla: tuple[list[int], Tensor]) -> None:
    with attach(ActiveShaRP(retention=1.0, tau_seg=-1.0, regd=False), prompt) as run:
        _, logits, _ = greedy(prompt)
    assert len(run.segments) == 1
    torch.testing.assert_close(logits, vanilla[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("retention", [0.5, 0.2])
@pytest.mark.parametrize("name", SINGLE_STAGE)
def test_dropping_equals_masking(name: str, retention: float, prompt: Prompt) -> None:
    options = {"segm": False, "dedup_absorb": "drop", "cluster_center": "first"} if name == "sharp" else {}
    method = make_method(name, retention, options)
    with attach(method, prompt) as run:
        ids, logits, cache = greedy(prompt)
    ((layer, _),) = method.schedule(4, 1)
    n, kept = len(prompt.layout), len(run.kept)
    assert kept == budget(retention, n)
    lengths = [layer_cache.get_seq_length() for layer_cache in cache.layers]
    full = prompt.length + 8 + 5
    assert lengths == [full] * layer + [full - n + kept] * (4 - layer)
    with masked(prompt, layer, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_pruning_at_any_layer_equals_masking(layer: int, prompt: Prompt) -> None:
    with attach(FastV(retention=0.3, layer=layer), prompt) as run:
        _, logits, _ = greedy(prompt)
    with masked(prompt, layer, run.kept):
        _, expected, _ = greedy(prompt)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_two_stages_equal_masking_in_two_stages(tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    method = Feather(retention=0.6, paper_mode=True)
    with attach(method, prompt) as run:
        greedy(prompt)
    first, second = run.visual_per_layer[1], run.visual_per_layer[2]
    n = len(prompt.layout)
    assert run.visual_per_layer == [n, first, second, second]
    grid = 8 * 1  # 3 x 3 tokens a frame, stride 3
    assert int(0.6 * n) <= first <= int(0.6 * n) + grid
    assert second == int(first * 0.36)


def segment_mask(prompt: Prompt, segments: list[tuple[int, int]]):
    layout = prompt.layout
    segment = torch.full((prompt.length,), -1)
    for number, (first, end) in enumerate(segments):
        inside = (layout.frame >= first) & (layout.frame < end)
        segment[layout.index[inside]] = number

    def change(visible: Tensor) -> Tensor:
        both = (segment[:, None] >= 0) & (segment[None] >= 0)
        return visible & ~(both & (segment[:, None] != segment[None]))

    return change


@pytest.mark.parametrize("score_layer", ["lookahead", "first"])
@pytest.mark.parametrize("absorb", ["drop", "mean"])
def test_sharp_equals_masking_with_its_merged_rows_put_in(score_layer: str, absorb: str, prompt: Prompt) -> None:
    sharp = ShaRP(
        retention=0.4,
        score_layer=score_layer,
        prefilter_absorb=absorb,
        dedup_absorb=absorb,
        tau_merge=0.3,
        tau_seg=0.999,
    )
    spy = Spy(inner=sharp)
    with attach(spy, prompt) as run:
        ids, logits, _ = greedy(prompt)
    assert len(run.segments) > 1
    assert len(run.kept) == budget(0.4, len(prompt.layout))
    assert (absorb == "mean") <= bool((run.merged_into >= 0).any())
    with masked(prompt, 1, run.kept, spy.seen["rows"], segment_mask(prompt, run.segments)):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_eager_and_sdpa_keep_the_same_tokens(
    name: str, tiny: Backbone, request: pytest.FixtureRequest, cpu_settings: Settings
) -> None:
    eager = load(str(tiny.folder), cpu_settings.model_copy(update={"attention": "eager"}))
    assert eager.model.model.language_model.config._attn_implementation == "eager"
    kept, gaps, logits = [], [], []
    for backbone in (tiny, eager):
        prompt = Prompt(backbone)
        retention = max(0.3, lowest(name, prompt.layout))
        with attach(make_method(name, retention, {"regd": "false"} if name == "sharp" else {}), prompt) as run:
            _, answer, _ = greedy(prompt)
        kept.append(run.kept.tolist())
        logits.append(answer)
        scores = run.scores.get("debiased", run.scores.get("raw"))
        if scores is not None:
            chosen = run.kept[run.role != Role.GRID]
            dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(0, run.kept, False)
            gaps.append(float(scores[chosen].min() - scores[dropped].max()))
    if name in ("fastv", "feather", "sharp"):  # elsewhere scores alone do not decide
        assert all(gap > 1e-5 for gap in gaps), gaps
    assert kept[0] == kept[1]
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=0)


def test_eager_and_sdpa_keep_the_same_tokens_with_regd(tiny: Backbone, cpu_settings: Settings) -> None:
    """ShaRP as it is by default; what is near a threshold of RegD cannot be told by scores alone."""
    eager = load(str(tiny.folder), cpu_settings.model_copy(update={"attention": "eager"}))
    runs = []
    for backbone in (tiny, eager):
        prompt = Prompt(backbone)
        with attach(make_method("sharp", 0.25), prompt) as run:
            greedy(prompt)
        runs.append((run.kept.tolist(), run.role.tolist(), run.merged_into.tolist(), run.segments))
    assert runs[0] == runs[1]


def test_fastv_scores_are_the_last_row_of_eager_attention(tiny: Backbone, cpu_settings: Settings) -> None:
    eager = load(str(tiny.folder), cpu_settings.model_copy(update={"attention": "eager"}))
    prompt = Prompt(eager)
    with torch.no_grad():
        attentions = eager.model(**prompt.inputs(), output_attentions=True).attentions
    for layer in (1, 2, 3):
        with attach(FastV(retention=0.5, layer=layer), Prompt(tiny)) as run:
            greedy(Prompt(tiny))
        expected = attentions[layer - 1][0].mean(0)[-1, prompt.layout.index]
        torch.testing.assert_close(run.scores["raw"], expected, atol=1e-6, rtol=0)


def test_feather_scores_do_not_know_positions(prompt: Prompt) -> None:
    inputs = prompt.inputs()
    index = prompt.layout.index
    positions = inputs.get("position_ids", torch.arange(prompt.length)[None])
    shuffled = positions.clone()
    shuffled[..., index] = positions[..., index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]]

    def raw(method: Method, ids: Tensor) -> Tensor:
        with attach(method, prompt) as run, torch.no_grad():
            prompt.model(**{**prompt.inputs(), "position_ids": ids}, use_cache=True)
        return run.scores["raw"]

    torch.testing.assert_close(raw(Feather(layer=1), positions), raw(Feather(layer=1), shuffled), atol=0, rtol=0)
    assert (raw(FastV(layer=1), positions) - raw(FastV(layer=1), shuffled)).abs().max() > 1e-4


def test_generate_is_the_engines_loop(prompt: Prompt) -> None:
    suppressed = [prompt.model.config.video_token_id, prompt.model.config.image_token_id]
    for name in ("vanilla", "fastv", "sharp"):
        with attach(make_method(name, 0.3), prompt) as run:
            ids, _, _ = greedy(prompt)
            kept = run.kept.tolist()
            with_features = prompt.model.generate(
                **prompt.inputs(), max_new_tokens=8, do_sample=False, suppress_tokens=suppressed, eos_token_id=-1
            )
            assert run.kept.tolist() == kept
            pixels = {**prompt.inputs(), **prompt.pixels}
            pixels.pop("mm_encoder_outputs")
            with_pixels = prompt.model.generate(
                **pixels, max_new_tokens=8, do_sample=False, suppress_tokens=suppressed, eos_token_id=-1
            )
        assert with_features[0, prompt.length :].tolist() == ids
        assert with_pixels[0, prompt.length :].tolist() == ids


def test_pruned_generate_saw_the_released_positions(tiny_qwen: Backbone) -> None:
    """The rotary embedding is asked for exactly the prompt's positions, then for one more per token."""
    prompt = Prompt(tiny_qwen, scenes(16))
    asked: list[Tensor] = []
    lm = prompt.model.model.language_model
    hook = lm.rotary_emb.register_forward_pre_hook(lambda module, args: asked.append(args[1].clone()))
    with attach(FastV(retention=0.2), prompt):
        prompt.model.generate(**prompt.inputs(), max_new_tokens=3, do_sample=False, eos_token_id=-1)
    hook.remove()
    expected = prompt.tokens["position_ids"][1:]
    assert torch.equal(asked[0], expected)
    last = expected.max() + 1
    assert [step.unique().tolist() for step in asked[1:]] == [[int(last)], [int(last) + 1]]
    text_start = int(prompt.layout.index[-1]) + 1
    before = expected[..., :text_start].max()
    assert expected[:, 0, text_start].tolist() == [int(before) + 1] * 3


def test_second_turn_through_generate(tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    with attach(FastV(retention=0.3), prompt) as run:
        first = prompt.model.generate(
            **prompt.inputs(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, eos_token_id=-1
        )
        kept = run.kept.tolist()
        turn = torch.cat((first.sequences, torch.arange(6)[None] + 9), 1)
        second = prompt.model.generate(
            input_ids=turn,
            attention_mask=torch.ones_like(turn),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=-1,
            **with_cache(cache_in(first)),
        )
        assert run.kept.tolist() == kept
    with masked(prompt, 2, torch.tensor(kept)):
        reference = prompt.model.generate(
            **prompt.inputs(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, eos_token_id=-1
        )
        again = prompt.model.generate(
            input_ids=turn,
            attention_mask=torch.ones_like(turn),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=-1,
            **with_cache(cache_in(reference)),
        )
    assert first.sequences.tolist() == reference.sequences.tolist()
    assert second.tolist() == again.tolist()


def test_streamers_sampling_and_beams_keep_working(prompt: Prompt) -> None:
    model = prompt.model

    def generate(**more):
        torch.manual_seed(3)
        return model.generate(**prompt.inputs(), max_new_tokens=5, eos_token_id=-1, **more).tolist()

    with attach(FastV(retention=1.0), prompt):
        inside = [generate(do_sample=True), generate(do_sample=False, num_beams=3)]
    assert inside == [generate(do_sample=True), generate(do_sample=False, num_beams=3)]
    streamer = TextIteratorStreamer(prompt.backbone.processor.tokenizer, timeout=30)
    with attach(FastV(retention=0.25), prompt) as run:
        generate(do_sample=False, num_beams=3)
        assert len(run.kept) == budget(0.25, len(prompt.layout))
        answer = generate(do_sample=False, streamer=streamer)[0]
    streamed = "".join(streamer)
    assert streamed == prompt.backbone.processor.tokenizer.decode(answer)


def test_hidden_states_come_with_the_lengths_that_ran(prompt: Prompt) -> None:
    with attach(FastV(retention=0.25), prompt) as run, torch.no_grad():
        output = prompt.model(**prompt.inputs(), output_hidden_states=True, use_cache=True)
    text = prompt.length - len(prompt.layout)
    assert [h.shape[1] - text for h in output.hidden_states] == [*run.visual_per_layer, len(run.kept)]


@pytest.mark.parametrize("name", METHODS)
def test_twice_is_the_same_and_methods_do_not_disturb_each_other(name: str, prompt: Prompt) -> None:
    def once(chosen: str) -> tuple[list[int], Tensor]:
        with attach(make_method(chosen, 0.3), prompt) as run:
            _, logits, _ = greedy(prompt, steps=3)
        return run.kept.tolist(), logits

    first = once(name)
    once("sharp" if name != "sharp" else "fastv")
    again = once(name)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_the_block_leaves_no_trace(prompt: Prompt, vanilla: tuple[list[int], Tensor]) -> None:
    core, lm = prompt.model.model, prompt.model.model.language_model

    def fail() -> None:
        assert "forward" in lm.__dict__
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), attach(FastV(), prompt):
        fail()
    assert "forward" not in lm.__dict__
    assert not core._forward_pre_hooks
    assert torch.equal(greedy(prompt)[1], vanilla[1])


def test_vanilla_calls_the_untouched_forward_with_the_same_arguments(prompt: Prompt) -> None:
    lm = prompt.model.model.language_model
    calls: list[dict] = []
    original = lm.forward

    def spy(*args, **kwargs):
        calls.append(kwargs)
        assert not args
        return original(*args, **kwargs)

    lm.forward = spy
    try:
        greedy(prompt, steps=2)
        plain, calls = calls, []
        with attach(make_method("vanilla", 1.0), prompt):
            greedy(prompt, steps=2)
    finally:
        del lm.forward
    assert len(plain) == len(calls) == 4
    for before, after in zip(plain, calls, strict=True):
        for key in before.keys() | after.keys():
            one, other = before.get(key), after.get(key)
            if isinstance(one, Tensor):
                assert torch.equal(one, other), key
            elif key == cache_name():  # each run has its own
                assert type(one) is type(other)
            else:
                assert one == other, key


@pytest.mark.parametrize("frames", [np.zeros((8, 60, 80, 3), np.uint8), scenes(2), scenes(2)[:1].repeat(2, 0)])
@pytest.mark.parametrize("name", METHODS)
def test_degenerate_videos(name: str, frames: np.ndarray, tiny: Backbone) -> None:
    """All-identical frames, one layout frame or two, and budgets down to one token."""
    prompt = Prompt(tiny, frames)
    n = len(prompt.layout)
    for retention in (1e-9, 1 / n, 0.5, 1 - 1e-9):
        method = make_method(name, max(retention, lowest(name, prompt.layout)))
        with attach(method, prompt) as run:
            _, logits, _ = greedy(prompt, steps=2)
        assert 1 <= len(run.kept) <= n
        assert method.adaptive or len(run.kept) == method.visual_per_layer(4, n, prompt.layout.frames)[-1]
        assert run.kept.tolist() == sorted(set(run.kept.tolist()))
        assert not logits.isnan().any()


def test_prune_layer0_kv_shrinks_the_first_cache_too(prompt: Prompt) -> None:
    method = ShaRP(retention=0.3, prune_layer0_kv=True)
    with attach(method, prompt) as run:
        _, logits, cache = greedy(prompt)
    kept = len(run.kept)
    assert {c.get_seq_length() for c in cache.layers} == {prompt.length - len(prompt.layout) + kept + 13}
    with attach(replace(method, prune_layer0_kv=False), prompt):
        _, whole, _ = greedy(prompt)
    assert torch.equal(logits[0], whole[0])  # the first token does not depend on it
    assert not torch.equal(logits[1], whole[1])
