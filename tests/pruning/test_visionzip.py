"""VisionZip against a loop written from its formulas, toys, and the ordinary model on the shorter sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.features import VideoFeatures, model_inputs
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.signals import VisionSignals
from sharp_demo.cost import paper_tflops, shape_named
from sharp_demo.engine.generation import prefill
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.matching import flops_matched_retention
from sharp_demo.pruning.outcome import Role, Run
from sharp_demo.pruning.schedule import framewise_budget, visual_per_layer
from sharp_demo.pruning.visionzip import VisionZip, assign, contextual_tokens, dominant_tokens, spread
from tests.pruning.prompts import Prompt, greedy, scenes, shortened


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def per_frame(prompt: Prompt) -> int:
    return prompt.layout.rows * prompt.layout.cols


@contextmanager
def first_input(prompt: Prompt) -> Iterator[list[Tensor]]:
    """What enters the first decoder layer, [1, n, d] per pass."""
    seen: list[Tensor] = []
    norm = prompt.model.model.language_model.layers[0].input_layernorm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()


def zipped(prompt: Prompt, method: VisionZip, features: VideoFeatures | None = None) -> tuple[Run, Tensor]:
    """The run, and the visual rows [k, d] that entered the first layer."""
    with first_input(prompt) as seen, method(prompt.model) as run, torch.no_grad():
        prefill(prompt.model, model_inputs(prompt.tokens, features or prompt.features))
    start = int(prompt.layout.index[0])
    return run, seen[0][0, start : start + len(run.kept)]


def naive(
    features: Tensor, signals: VisionSignals, frames: int, retention: float
) -> tuple[list[int], list[Role], dict[int, int], list[Tensor]]:
    """Kept slots, their roles, who went where, and the rows: frame by frame, token by token."""
    each = len(signals.received) // frames
    k = max(1, round(retention * each))
    result: dict[int, tuple[Role, Tensor]] = {}
    into: dict[int, int] = {}
    for frame in range(frames):
        slots = range(frame * each, (frame + 1) * each)
        by_score = sorted(slots, key=lambda j: (-float(signals.received[j]), j))
        dominant = sorted(by_score[: int(k * 54 / 64)])
        rest = [j for j in slots if j not in dominant]
        count = k - len(dominant)
        targets = rest[:: max(1, len(rest) // count)][:count]
        members: dict[int, list[int]] = {target: [] for target in targets}
        for j in rest:
            if j not in targets:
                cosines = [float(torch.cosine_similarity(signals.keys[j], signals.keys[t], dim=0)) for t in targets]
                into[j] = targets[cosines.index(max(cosines))]
                members[into[j]].append(j)
        result |= {j: (Role.DOMINANT, features[j]) for j in dominant}
        for target, joined in members.items():
            mean = sum((features[j] for j in joined), torch.zeros_like(features[0])) / max(1, len(joined))
            result[target] = (Role.CONTEXTUAL, features[target] + mean)
    kept = sorted(result)
    return kept, [result[j][0] for j in kept], into, [result[j][1] for j in kept]


def imagined(prompt: Prompt, seed: int = 0) -> VideoFeatures:
    """The prompt's features under random signals."""
    generator = torch.Generator().manual_seed(seed)
    n = len(prompt.layout)
    signals = VisionSignals(torch.rand(n, generator=generator), torch.randn(n, 16, generator=generator))
    return replace(prompt.features, signals=signals)


@pytest.mark.parametrize("retention", [0.1, 0.35, 0.6, 0.9])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_equals_the_loop(seed: int | None, retention: float, prompt: Prompt) -> None:
    features = prompt.features if seed is None else imagined(prompt, seed)
    assert features.signals is not None
    run, rows = zipped(prompt, VisionZip(retention=retention), features)
    kept, roles, into, expected = naive(features.features, features.signals, prompt.layout.frames, retention)
    assert run.kept.tolist() == kept
    assert run.role.tolist() == roles
    assert {j: int(t) for j, t in enumerate(run.merged_into) if t >= 0} == into
    torch.testing.assert_close(rows, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(run.scores["raw"], features.signals.received)


def test_every_frame_keeps_k_whatever_k(prompt: Prompt) -> None:
    each, frames = per_frame(prompt), prompt.layout.frames
    for k in range(1, each):
        method = VisionZip(retention=k / each)
        run, _ = zipped(prompt, method)
        assert (run.kept // each).bincount(minlength=frames).tolist() == [k] * frames
        assert int((run.role == Role.DOMINANT).sum()) == frames * int(k * 54 / 64)
        assert run.visual_per_layer == [k * frames] * 4 == method.visual_per_layer(4, len(prompt.layout), frames)


def test_at_least_one_token_a_frame(prompt: Prompt) -> None:
    run, _ = zipped(prompt, VisionZip(retention=1e-6))
    assert len(run.kept) == prompt.layout.frames
    assert set(run.role.tolist()) == {Role.CONTEXTUAL}


def test_frames_do_not_know_each_other(prompt: Prompt) -> None:
    """Exchanging frames exchanges blocks of the result."""
    each, frames = per_frame(prompt), prompt.layout.frames
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(2))
    index = (order[:, None] * each + torch.arange(each)).flatten()
    features = imagined(prompt)
    assert features.signals is not None
    newline = features.features[len(index) :]
    shuffled = replace(
        features,
        features=torch.cat((features.features[index], newline)),
        signals=VisionSignals(features.signals.received[index], features.signals.keys[index]),
    )
    run, rows = zipped(prompt, VisionZip(retention=0.5), features)
    other, other_rows = zipped(prompt, VisionZip(retention=0.5), shuffled)
    k = len(run.kept) // frames
    assert torch.equal((run.kept % each).view(frames, k)[order], (other.kept % each).view(frames, k))
    torch.testing.assert_close(rows.view(frames, k, -1)[order], other_rows.view(frames, k, -1), atol=1e-6, rtol=0)


def test_dominant_tokens_are_bit_copies_in_order(prompt: Prompt) -> None:
    run, rows = zipped(prompt, VisionZip(retention=0.5))
    dominant = run.role == Role.DOMINANT
    assert torch.equal(rows[dominant], prompt.features.features[run.kept[dominant]])
    assert (run.kept.diff() > 0).all()


def test_dominant_by_hand() -> None:
    received = torch.tensor([[0.1, 0.4, 0.4, 0.2, 0.4]])
    assert dominant_tokens(received, 2).tolist() == [[1, 2]]  # of equals the lower index
    assert dominant_tokens(received, 4).tolist() == [[1, 2, 3, 4]]
    assert dominant_tokens(received, 0).shape == (1, 0)


def test_targets_are_evenly_spread_from_the_first() -> None:
    assert spread(10, 3).tolist() == [0, 3, 6]
    assert spread(3, 3).tolist() == [0, 1, 2]
    assert spread(7, 1).tolist() == [0]
    assert spread(7, 0).tolist() == []


def test_contextual_by_hand() -> None:
    """Five tokens, targets 0, 2 and 4: token 1 resembles target 2, token 3 too, and nobody target 4."""
    keys = torch.tensor([[[1.0, 0], [1, 3], [0, 2], [-1, 9], [-5, -5]]])
    hidden = torch.tensor([[[1.0, 0], [4, 0], [10, 0], [0, 8], [7, 7]]])
    targets = torch.tensor([0, 2, 4])
    nearest = assign(keys, targets)
    assert nearest.tolist() == [[0, 1, 1, 1, 2]]
    # a sum of the target and the mean of the two others, not a mean of three; targets alone stay as they are
    assert contextual_tokens(hidden, targets, nearest).tolist() == [[[1, 0], [10 + 2, 4], [7, 7]]]


def test_of_equal_targets_the_first_takes_all_but_the_targets_themselves() -> None:
    keys = torch.ones(1, 5, 3)
    assert assign(keys, torch.tensor([0, 2])).tolist() == [[0, 0, 1, 0, 0]]
    assert assign(torch.zeros(1, 4, 3), torch.tensor([0, 2])).tolist() == [[0, 0, 1, 0]]  # no direction at all


def test_no_merge_when_the_rest_are_all_targets(prompt: Prompt) -> None:
    """A retention below 1 that rounds to whole frames."""
    method = VisionZip(retention=1 - 1e-6)
    assert method.active
    run, rows = zipped(prompt, method)
    assert len(run.kept) == len(prompt.layout)
    assert (run.merged_into == -1).all()
    assert torch.equal(rows, prompt.features.features[: len(prompt.layout)])


def test_all_dominant_drops_and_merges_nothing(prompt: Prompt) -> None:
    run, rows = zipped(prompt, VisionZip(retention=0.5, dominant=64))
    assert set(run.role.tolist()) == {Role.DOMINANT}
    assert (run.merged_into == -1).all()
    assert torch.equal(rows, prompt.features.features[run.kept])


@pytest.mark.parametrize("retention", [0.2, 0.6])
def test_the_rest_is_the_ordinary_model_on_a_shorter_sequence(retention: float, prompt: Prompt) -> None:
    """Renumbered for LLaVA-OneVision, with the survivors' own three coordinates for Qwen2-VL."""
    method = VisionZip(retention=retention)
    compact = "position_ids" not in prompt.tokens
    run, rows = zipped(prompt, method)
    kept = run.kept
    with method(prompt.model):
        ids, logits, cache = greedy(prompt)
    expected_ids, expected = shortened(prompt, kept, rows, compact=compact)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    lengths = {layer.get_seq_length() for layer in cache.layers}
    assert lengths == {prompt.length - len(prompt.layout) + len(kept) + 8 + 5}


def test_pixels_and_features_choose_alike(prompt: Prompt) -> None:
    more = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    pixels = {**prompt.inputs(), **prompt.pixels}
    pixels.pop("mm_encoder_outputs")
    with VisionZip(retention=0.4)(prompt.model) as run:
        by_features = prompt.model.generate(**prompt.inputs(), **more)
        kept = run.kept.tolist()
        by_pixels = prompt.model.generate(**pixels, **more)
    assert run.kept.tolist() == kept
    assert torch.equal(by_features, by_pixels)


def test_features_without_signals_are_refused(prompt: Prompt) -> None:
    bare = replace(prompt.features, signals=None)
    with VisionZip()(prompt.model), pytest.raises(UnsupportedError, match="pass the video's pixels"):
        prefill(prompt.model, model_inputs(prompt.tokens, bare))


def test_one_frame(tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(2)[:1].repeat(2, 0))
    run, _ = zipped(prompt, VisionZip(retention=0.3))
    assert len(run.kept) == framewise_budget(0.3, len(prompt.layout), prompt.layout.frames)


def test_flops_matched_counts_are_whole_in_every_frame() -> None:
    """What the arithmetic predicts with the frames is what a run keeps; nearer to FastV's cost is no other k."""
    shape = shape_named("llava-onevision-7b")

    target = paper_tflops(shape, FastV(retention=0.2).visual_per_layer(28, 6272))
    share = flops_matched_retention(VisionZip(), shape, 6272, 0.2, frames=32)
    (count,) = set(VisionZip(retention=share).visual_per_layer(28, 6272, 32))
    assert count % 32 == 0
    costs = {k: abs(paper_tflops(shape, [32 * k] * 28) - target) for k in range(1, 197)}
    assert min(costs, key=costs.__getitem__) == count // 32


def test_the_papers_row() -> None:
    """Table 3 prints 12.8 % and 4.3 T: 25 of 196 tokens in each of 32 frames, in all layers."""
    shape = shape_named("llava-onevision-7b")
    stages = VisionZip(retention=0.128).schedule(28, 6272, 32)
    assert list(stages) == [(0, 25 * 32)]
    assert f"{25 / 196:.1%}" == "12.8%"
    assert f"{paper_tflops(shape, visual_per_layer(28, 6272, stages)):.1f}" == "4.3"
