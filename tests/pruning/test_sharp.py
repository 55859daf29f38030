"""ShaRP's three modules: what each must and must not change, and its bias against a whole black-video run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.tiny import TinyShape, write_checkpoint
from sharp_demo.errors import MethodError
from sharp_demo.pruning import attention
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.sharp import ShaRP, regd, segments
from sharp_demo.pruning.sharp import bias as sharp_bias
from sharp_demo.pruning.sharp.bias import BiasCache, BlackRows
from sharp_demo.pruning.sharp.segments import cut, frame_means, segment_frames, token_bounds
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, scenes
from tests.pruning.test_attention import varlen


@dataclass(frozen=True)
class Watched(ShaRP):
    """ShaRP that keeps the input of layer 1."""

    seen: dict = field(default_factory=dict)

    def before_layer(self, layer, prefill):
        if layer == 1:
            self.seen["h1"] = prefill.hidden[0].clone()
        return super().before_layer(layer, prefill)


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny, scenes(12))


def run(prompt: Prompt, method: ShaRP, features: Tensor | None = None, cache: BiasCache | None = None):
    with method(prompt.model, prompt.backbone.processor, cache) as record, torch.no_grad():
        prompt.model(**prompt.inputs(features), use_cache=True)
    return record


def black(prompt: Prompt) -> Tensor:
    """Features of an all-black video, every frame through the tower."""
    frames = np.zeros((12, 60, 80, 3), np.uint8)
    return encode_video(prompt.model, prompt.backbone.processor.video.pixels(frames)).features


def test_segments_are_cut_strictly_below_the_threshold() -> None:
    means = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])  # cosines 1, 0, .8, .6
    assert segment_frames(means, 0.7) == [(0, 2), (2, 4), (4, 5)]
    assert segment_frames(means[:1], 0.9) == [(0, 1)]
    same = torch.ones(3, 4)
    cosine = float(torch.nn.functional.cosine_similarity(same[:1], same[1:2]))
    assert segment_frames(same, cosine) == [(0, 3)]  # equal is not below


def test_frame_means_and_token_bounds_with_gaps() -> None:
    frames = torch.tensor([0, 0, 1, 3, 3, 3])
    tokens = torch.arange(12.0).view(6, 2)
    means = frame_means(tokens, frames, 4)
    assert means[:2].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert means[3].tolist() == [8.0, 9.0]
    assert token_bounds(frames, [(0, 1), (1, 3), (3, 4)]) == [(0, 2), (2, 3), (3, 6)]
    assert token_bounds(frames, [(0, 2), (2, 3), (3, 4)]) == [(0, 3), (3, 6)]


def test_segment_mask_isolates_segments(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing one frame, boundaries held fixed, leaves the layer-0 output of all others bit-equal."""
    layout, frames = prompt.layout, prompt.layout.frames
    fixed = [(f, f + 1) for f in range(frames)]
    bounds = token_bounds(layout.frame, fixed)
    monkeypatch.setattr(segments, "cut", lambda *args: replace(cut(*args), segments=fixed, ranges=bounds))
    changed = prompt.features.features.clone()
    inside = torch.arange(len(layout))[layout.frame == 2]
    changed[inside] += torch.randn(len(inside), changed.shape[1], generator=torch.Generator().manual_seed(0))
    states = []
    for features in (None, changed):
        method = Watched(retention=0.3, posc=False)
        run(prompt, method, features)
        states.append(method.seen["h1"])
    before, after = states
    visual = layout.index
    others = visual[layout.frame != 2]
    assert torch.equal(before[others], after[others])
    assert torch.equal(before[: visual[0]], after[: visual[0]])
    assert not torch.equal(before[visual[layout.frame == 2]], after[visual[layout.frame == 2]])
    suffix = slice(int(visual[-1]) + 1, None)
    assert (before[suffix] != after[suffix]).any(-1).all()


def test_layer_0_scores_do_not_depend_on_segm_but_its_output_does(prompt: Prompt) -> None:
    scores, states = {}, {}
    for tau in (-1.0, 1.0):
        for layer in ("first", "lookahead"):
            method = Watched(retention=0.3, posc=False, tau_seg=tau, score_layer=layer)
            scores[layer, tau] = run(prompt, method).scores["raw"]
            states[tau] = method.seen["h1"]
    assert torch.equal(scores["first", -1.0], scores["first", 1.0])
    assert not torch.allclose(scores["lookahead", -1.0], scores["lookahead", 1.0], atol=1e-6)
    visual = prompt.layout.index
    assert torch.equal(states[-1.0][: visual[0]], states[1.0][: visual[0]])
    assert not torch.allclose(states[-1.0][visual], states[1.0][visual], atol=1e-4)


def test_layer_0_scores_do_not_know_the_question_and_layer_1_scores_do(tiny: Backbone) -> None:
    """Its query is the template's last token: per head, only the text keys' share of the softmax can change."""
    prompts = [Prompt(tiny, scenes(12), question) for question in ("What color is the car?", "What color is the dog?")]
    for layer, blind in (("first", True), ("lookahead", False)):
        options = {"score_layer": layer, "score_norm": "visual", "posc": False}
        one, other = (run(prompt, ShaRP(retention=0.3, **options)).scores["raw"] for prompt in prompts)
        assert torch.equal(one, other) is blind


@pytest.mark.parametrize("space", [("prob", "row"), ("prob", "visual"), ("logit", "row")])
@pytest.mark.parametrize("layer", ["lookahead", "first"])
@pytest.mark.parametrize("sys_visible", [True, False])
def test_cached_bias_is_a_whole_black_video_run(
    space: tuple[str, str], layer: str, sys_visible: bool, tiny: Backbone
) -> None:
    """For two questions of equal length that share the cached rows (prompt length is not a sound key)."""
    options = {"score_space": space[0], "score_norm": space[1], "score_layer": layer, "sys_visible": sys_visible}
    cache, biases = BiasCache(), []
    for number, question in enumerate(("What color is the car?", "What color is the dog?")):
        prompt = Prompt(tiny, scenes(12), question)
        record = run(prompt, ShaRP(retention=0.3, **options), cache=cache)
        assert record.bias_cold is (number == 0)
        assert ("bias_setup" in record.stages) is (number == 0)
        assert len(cache) == 1
        whole = run(prompt, ShaRP(retention=0.3, posc=False, **options), black(prompt))
        assert whole.segments == [(0, prompt.layout.frames)]
        torch.testing.assert_close(record.scores["bias"], whole.scores["raw"], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            record.scores["debiased"], record.scores["raw"] - 0.6 * record.scores["bias"], atol=1e-7, rtol=0
        )
        biases.append(record.scores["bias"])
    if layer == "lookahead":
        assert (biases[0] - biases[1]).abs().max() > 1e-5


def test_deeper_scoring_layers_have_their_own_exact_bias(prompt: Prompt) -> None:
    record = run(prompt, ShaRP(retention=0.3, layer=3))
    whole = run(prompt, ShaRP(retention=0.3, layer=3, posc=False), black(prompt))
    torch.testing.assert_close(record.scores["bias"], whole.scores["raw"], atol=1e-5, rtol=0)


def test_bias_cache_keeps_apart_what_differs(tiny: Backbone) -> None:
    cache = BiasCache()
    eight, twelve = Prompt(tiny, scenes(8)), Prompt(tiny, scenes(12))
    for prompt, options in (
        (eight, {}),
        (twelve, {}),
        (eight, {"score_layer": "first"}),
        (eight, {"sys_visible": False}),
    ):
        assert run(prompt, ShaRP(retention=0.3, **options), cache=cache).bias_cold
    assert len(cache) == 4
    assert not run(eight, ShaRP(retention=0.1, penalty=0.3), cache=cache).bias_cold


def test_bias_cache_serves_no_other_model_or_processor(tiny: Backbone, tmp_path: Path, cpu_settings: Settings) -> None:
    other = load(str(write_checkpoint(tmp_path / "other", tiny.family, TinyShape(), seed=1)), cpu_settings)
    darker = replace(tiny.processor, video=replace(tiny.processor.video, image_mean=(0.1, 0.2, 0.3)))
    cache = BiasCache()
    run(Prompt(tiny), ShaRP(retention=0.3), cache=cache)
    for backbone in (other, replace(tiny, processor=darker)):
        prompt = Prompt(backbone)
        fresh, shared = (run(prompt, ShaRP(retention=0.3), cache=c).scores["bias"] for c in (None, cache))
        assert torch.equal(fresh, shared)


def test_bias_cache_holds_no_autograd_graph(tiny: Backbone) -> None:
    prompt, cache = Prompt(tiny), BiasCache()
    tiny.model.requires_grad_(True)
    try:
        with ShaRP(retention=0.3)(prompt.model, tiny.processor, cache):
            assert prompt.model(**prompt.inputs(), use_cache=True).logits.requires_grad
    finally:
        tiny.model.requires_grad_(False)
    ((_, black),) = cache.items()
    assert not black.keys.requires_grad


def test_bias_cache_forgets_the_least_recently_used() -> None:
    cache = BiasCache(capacity=2)
    rows = BlackRows((), torch.zeros(1))
    for key in "ab":
        cache.put(key, rows)
    cache.get("a")
    cache.put("c", rows)
    assert [key for key in "abc" if cache.get(key) is not None] == ["a", "c"]


def test_full_penalty_on_a_black_video_leaves_nothing(prompt: Prompt) -> None:
    record = run(prompt, ShaRP(retention=0.3, penalty=1.0), black(prompt))
    assert record.scores["debiased"].abs().max() <= 1e-6 * record.scores["raw"].max()


def test_all_modules_off_is_fastv_at_layer_1(prompt: Prompt) -> None:
    plain = {"segm": False, "regd": False, "score_layer": "first"}
    fastv = run(prompt, FastV(retention=0.3, layer=1))
    for off in ({"posc": False}, {"penalty": 0.0}):
        assert run(prompt, ShaRP(retention=0.3, **plain, **off)).kept.tolist() == fastv.kept.tolist()


def test_posc_brings_a_planted_token_back(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw scores = a ramp towards the end plus a small bump; the bias knows the ramp."""
    n = len(prompt.layout)
    ramp = torch.linspace(0, 1, n)
    raw = ramp.clone()
    raw[3] += 0.5
    answers = iter((raw, ramp, raw))
    monkeypatch.setattr(ShaRP, "_scores", lambda self, logits, rows: next(answers))
    options = {"retention": 4 / n, "penalty": 1.0, "regd": False}
    assert 3 in run(prompt, ShaRP(**options)).kept
    assert run(prompt, ShaRP(posc=False, **options)).kept.tolist() == list(range(n - 4, n))


def test_every_option_runs_and_keeps_the_budget(prompt: Prompt) -> None:
    n = len(prompt.layout)
    for name, values in {
        "score_space": ("prob", "logit"),
        "score_norm": ("row", "visual"),
        "regd_features": ("hidden", "input", "key"),
        "prefilter_absorb": ("drop", "mean"),
        "dedup_absorb": ("drop", "mean"),
        "dedup_reference": ("pivot", "predecessor", "running_mean"),
        "cluster_reference": ("seed", "mean"),
        "cluster_center": ("mean", "first", "medoid"),
        "segm": (True, False),
        "posc": (True, False),
        "regd": (True, False),
        "sys_visible": (True, False),
    }.items():
        for value in values:
            record = run(prompt, ShaRP(retention=0.25, **{name: value}))
            assert len(record.kept) == round(0.25 * n), (name, value)
            assert all(a < b for a, b in pairwise(record.kept.tolist()))
    loose = run(prompt, ShaRP(retention=0.25, strict_budget=False, tau_merge=-1.0, tau_cluster=-1.0))
    assert len(loose.kept) < round(0.25 * n)
    assert loose.visual_per_layer[1] == len(loose.kept)


def test_no_processor_is_said_in_one_line(prompt: Prompt) -> None:
    with pytest.raises(MethodError, match="needs the processor"):
        ShaRP()(prompt.model)
    with ShaRP(posc=False)(prompt.model) as record:
        greedy(prompt, steps=1)
    assert set(record.scores) == {"raw"}


def test_stages_are_named_and_add_up(prompt: Prompt) -> None:
    record = run(prompt, ShaRP(retention=0.2))
    assert {"mask", "scores", "bias_setup", "bias", "select", "pre-filter", "dedup", "fill", "gather"} <= set(
        record.stages
    )
    assert all(ms >= 0 for ms in record.stages.values())


def test_segm_without_a_layer_to_mask_in_is_refused() -> None:
    with pytest.raises(MethodError, match="segm_layers is empty"):
        ShaRP(segm_layers=())
    ShaRP(segm=False, segm_layers=())


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device: reads of values, and sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or name in ("nonzero", "_local_scalar_dense", "masked_select", "unique_consecutive", "_unique2"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_formulation_for_gpus_waits_twice(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment boundaries and the count after pre-filtering; what is kept is what walking keeps."""
    expected = run(prompt, ShaRP(retention=0.25)).kept
    monkeypatch.setattr(regd, "refine", partial(regd.refine, walk=False))
    cache, waits = BiasCache(), Waits()
    plain = Tensor.tolist

    def tolist(tensor: Tensor) -> list:
        waits.seen.append("tolist")
        return plain(tensor)

    with ShaRP(retention=0.25)(prompt.model, prompt.backbone.processor, cache):
        greedy(prompt, steps=1)  # the bias is warm from here on
    hooks = {name: getattr(Prefill, name) for name in ("attention", "before_layer", "finish")}

    def counted(hook):
        def call(*args):
            with waits, monkeypatch.context() as patch:
                patch.setattr(Tensor, "tolist", tolist)
                for name in ("item", "cpu", "numpy"):
                    patch.setattr(Tensor, name, refuse)
                return hook(*args)

        return call

    def refuse(*args: object) -> None:
        raise AssertionError("a wait for the device")

    for name, hook in hooks.items():
        monkeypatch.setattr(Prefill, name, counted(hook))
    monkeypatch.setattr(sharp_bias, "bias_key", lambda *args: next(iter(cache.items()))[0])  # reads host tensors
    with ShaRP(retention=0.25)(prompt.model, prompt.backbone.processor, cache) as record:
        greedy(prompt, steps=1)
    assert torch.equal(record.kept, expected)
    assert waits.seen == ["tolist", "index"]


def test_all_formulations_for_gpus_together_are_those_for_the_cpu(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variable-length call for the segment mask, blocks and pointer doubling in RegD: kept, roles and answer."""
    with ShaRP(retention=0.25)(prompt.model, prompt.backbone.processor, BiasCache()) as walked:
        expected, logits, _ = greedy(prompt, steps=3)
    calls: list[int] = []

    def kernel(q: Tensor, *rest) -> Tensor:
        calls.append(len(q))
        return varlen(q, *rest)

    monkeypatch.setattr(attention, "varlen_kernel", lambda device, dtype, backend: kernel)
    monkeypatch.setattr(regd, "refine", partial(regd.refine, walk=False))
    with ShaRP(retention=0.25)(prompt.model, prompt.backbone.processor, BiasCache()) as packed:
        tokens, packed_logits, _ = greedy(prompt, steps=3)
    assert calls[0] == prompt.length  # layer 0, all rows in one call
    assert len(walked.segments) > 1
    assert torch.equal(packed.kept, walked.kept)
    assert torch.equal(packed.role, walked.role)
    assert torch.equal(packed.merged_into, walked.merged_into)
    torch.testing.assert_close(packed_logits, logits, atol=2e-5, rtol=0)
    assert tokens == expected
