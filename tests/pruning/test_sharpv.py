"""SharpV: shares by frame against a naive loop, one factor for an exact budget, and a cache that forgets by layer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.sharpv import COSINE, SharpV, adaptive_counts, best_of_each_frame, importance, scaled_counts
from tests.pruning.prompts import Prompt, greedy, masked, naive_logits, with_frames


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def frames_of(prompt: Prompt) -> Tensor:
    layout = prompt.layout
    return prompt.features.features[: len(layout)].view(layout.frames, layout.rows * layout.cols, -1)


def naive_importance(frames: Tensor, weight: float, unit_mean: bool) -> tuple[list[list[float]], list[float]]:
    """Importance of every token and share of every frame, one vector at a time in double precision."""

    def unit(v: list[float]) -> list[float]:
        length = math.sqrt(sum(a * a for a in v))
        return [a / length for a in v]

    def dissim(u: list[float], v: list[float]) -> float:
        cosine = sum(a * b for a, b in zip(unit(u), unit(v), strict=True))
        return math.sqrt(max(0.0, 2 - 2 * cosine))

    scores, shares = [], []
    video = frames.double().tolist()
    for t, frame in enumerate(video):
        members = [unit(token) for token in frame] if unit_mean else frame
        mean = [sum(column) / len(frame) for column in zip(*members, strict=True)]
        spatial = [dissim(token, mean) for token in frame]
        if t == 0:
            scores.append(spatial)
            judged = spatial
        else:
            judged = [dissim(token, before) for token, before in zip(frame, video[t - 1], strict=True)]
            scores.append([change + weight * s for change, s in zip(judged, spatial, strict=True)])
        shares.append(math.sqrt(sum(d * d for d in judged)) / (2 * math.sqrt(len(frame))))
    return scores, shares


@pytest.mark.parametrize("unit_mean", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_importance_and_shares_are_the_formulas(weight: float, unit_mean: bool) -> None:
    frames = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(3)) * torch.rand(5, 6, 1) * 9
    scores, shares = importance(frames, weight, unit_mean=unit_mean)
    expected_scores, expected_shares = naive_importance(frames, weight, unit_mean)
    torch.testing.assert_close(scores, torch.tensor(expected_scores), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares, torch.tensor(expected_shares), atol=1e-5, rtol=0)


def test_a_toy_by_hand() -> None:
    """Two frames of two tokens: one stays, one turns by a right angle."""
    frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    scores, shares = importance(frames)
    side = math.sqrt(2 - math.sqrt(2))  # to the diagonal
    torch.testing.assert_close(scores, torch.tensor([[side, side], [0.0, math.sqrt(2)]]))
    torch.testing.assert_close(shares, torch.tensor([side / 2, math.sqrt((0 + 2) / 2) / 2]))  # .383 and .5
    assert adaptive_counts(shares.tolist(), 2) == [1, 1]
    assert best_of_each_frame(scores, [1, 1]).tolist() == [0, 3]


def test_temporal_ignores_lengths_and_the_spatial_of_raw_tokens_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 6, 16, generator=generator)
    longer = frames * (torch.rand(4, 6, 1, generator=generator) * 5 + 0.1)
    temporal = [importance(x, weight=0.0)[0][1:] for x in (frames, longer)]
    torch.testing.assert_close(*temporal, atol=1e-6, rtol=0)
    unit = [importance(x, unit_mean=True)[0] for x in (frames, longer)]
    torch.testing.assert_close(*unit, atol=1e-6, rtol=0)
    raw = [importance(x)[0] for x in (frames, longer)]
    assert (raw[0] - raw[1]).abs().max() > 0.05


def test_degenerate_vectors_are_no_nan() -> None:
    same = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)).bfloat16().expand(3, -1, -1).float()
    scores, shares = importance(same)
    assert shares[1:].tolist() == [0, 0]
    for frames in (same, torch.zeros(3, 6, 16), torch.cat((same, torch.zeros(1, 6, 16)))):
        scores, shares = importance(frames)
        assert scores.isfinite().all()
        assert ((shares >= 0) & (shares <= 1)).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.0, 1e-7, 0.05, 0.1, 0.1, 0.2, 0.37, 0.5, 0.9, 1.0]), min_size=1, max_size=9),
    st.integers(1, 20),
    st.floats(0, 1),
)
def test_one_factor_meets_the_budget_exactly(ratios: list[float], size: int, share: float) -> None:
    total = max(1, round(share * len(ratios) * size))
    counts = scaled_counts(ratios, size, total)
    assert sum(counts) == total
    least = 1 if total >= len(ratios) else 0
    assert all(least <= count <= size for count in counts)
    for one, more in zip(ratios, counts, strict=True):  # livelier frames never get less, but for one left-over token
        assert all(more <= count + 1 for ratio, count in zip(ratios, counts, strict=True) if ratio > one)


def test_the_factor_keeps_proportions() -> None:
    assert scaled_counts([0.1, 0.2, 0.3], 100, 120) == [20, 40, 60]
    assert scaled_counts([0.1, 0.2, 0.3], 100, 6) == [1, 2, 3]
    assert scaled_counts([0.1, 0.2, 0.8], 100, 190) == [30, 60, 100]  # the last frame is full
    assert scaled_counts([0.25, 0.25, 0.25, 0.25], 100, 10) == [3, 3, 2, 2]  # left-overs to the earlier frames
    assert scaled_counts([0.0, 0.5], 10, 6) == [1, 5]  # a static frame keeps its one token
    assert scaled_counts([0.1, 0.4, 0.4], 10, 1) == [0, 1, 0]  # fewer tokens than frames
    assert scaled_counts([0.0, 0.0], 10, 7) == [4, 3]


@pytest.mark.parametrize("retention", [0.05, 0.2, 0.5])
def test_the_best_of_each_frame_are_kept(retention: float, prompt: Prompt) -> None:
    layout, size = prompt.layout, prompt.layout.rows * prompt.layout.cols
    scores, shares = naive_importance(frames_of(prompt), 1.0, unit_mean=False)
    for method, counts in (
        (SharpV(retention=retention), scaled_counts(shares, size, budget(retention, len(layout)))),
        (SharpV(retention=retention, ratio="adaptive"), [max(1, round(share * size)) for share in shares]),
    ):
        with method(prompt.model) as run:
            greedy(prompt, steps=1)
        expected = []
        for t, (frame, count) in enumerate(zip(scores, counts, strict=True)):
            best = sorted(range(size), key=lambda i: (-frame[i], i))[:count]
            expected += [t * size + i for i in sorted(best)]
        assert run.kept.tolist() == expected
        assert run.visual_per_layer == [sum(counts)] * 4
    torch.testing.assert_close(run.scores["raw"], torch.tensor(scores).flatten(), atol=1e-5, rtol=0)


def test_a_static_video_keeps_one_token_a_frame_after_the_first(prompt: Prompt) -> None:
    layout = prompt.layout
    size = layout.rows * layout.cols
    first = frames_of(prompt)[0]
    with with_frames(prompt, first.expand(layout.frames, -1, -1)):
        with SharpV(ratio="adaptive")(prompt.model) as run:
            greedy(prompt, steps=1)
        counts = torch.bincount(run.kept // size, minlength=layout.frames).tolist()
        _, shares = naive_importance(first[None], 1.0, unit_mean=False)
        assert counts == [max(1, round(shares[0] * size))] + [1] * (layout.frames - 1)
        with SharpV(retention=0.5)(prompt.model) as run:
            greedy(prompt, steps=1)
        assert len(run.kept) == budget(0.5, len(layout))


def test_a_video_that_turns_around_keeps_everything_after_the_first_frame(prompt: Prompt) -> None:
    layout = prompt.layout
    first = frames_of(prompt)[0]
    signs = torch.tensor([(-1.0) ** t for t in range(layout.frames)])[:, None, None]
    _, shares = importance(signs * first)
    torch.testing.assert_close(shares[1:], torch.ones(layout.frames - 1))
    with with_frames(prompt, signs * first), SharpV(ratio="adaptive")(prompt.model) as run:
        greedy(prompt, steps=1)
    size = layout.rows * layout.cols
    assert torch.bincount(run.kept // size).tolist()[1:] == [size] * (layout.frames - 1)


def test_pruning_before_the_llm_is_a_shorter_prompt(prompt: Prompt) -> None:
    mrope = prompt.tokens.get("position_ids") is not None
    with SharpV(retention=0.4, memory_threshold=-1)(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    expected = naive_logits(prompt, {0: run.kept}, ids, renumbered=not mrope)
    seen = logits[: len(ids) + 1].isfinite()  # placeholders are suppressed
    torch.testing.assert_close(logits[: len(ids) + 1][seen], expected[seen], atol=2e-5, rtol=0)
    text = prompt.length - len(prompt.layout)
    assert {layer.get_seq_length() for layer in cache.layers} == {text + len(run.kept) + 8 + 5}


def layer_inputs(prompt: Prompt, kept: Tensor) -> list[Tensor]:
    """Input of every layer, and the last one's output, [k, d] of the kept tokens, without a cache or our loop."""
    lm, states = prompt.model.model.language_model, []
    hooks = [layer.register_forward_hook(lambda m, args, out: states.append((args[0], out))) for layer in lm.layers]
    try:
        mrope = prompt.tokens.get("position_ids") is not None
        naive_logits(prompt, {0: kept}, [], renumbered=not mrope)
    finally:
        for hook in hooks:
            hook.remove()
    start = int(prompt.layout.index[0])
    return [rows[0, start : start + len(kept)] for rows in (*(before for before, _ in states), states[-1][1])]


@pytest.mark.parametrize("states", ["input", "output"])
def test_layers_are_judged_by_their_mean_cosine_to_the_input(states: str, prompt: Prompt) -> None:
    with SharpV(retention=0.4, memory_threshold=-1, memory_states=states)(prompt.model) as run:
        greedy(prompt, steps=1)
    inputs = layer_inputs(prompt, run.kept)
    expected = []
    for state in inputs[1:] if states == "output" else inputs[:-1]:
        pairs = zip(state.double().tolist(), inputs[0].double().tolist(), strict=True)
        cosines = [sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v) for u, v in pairs]
        expected.append(sum(cosines) / len(cosines))
    torch.testing.assert_close(run.layer_scores[COSINE], torch.tensor(expected), atol=1e-5, rtol=0)
    assert (expected[0] > 0.999) == (states == "input")


def test_the_memory_stage_forgets_the_layers_below_the_threshold(prompt: Prompt) -> None:
    with SharpV(retention=0.4, memory_threshold=-1)(prompt.model) as run:
        _, logits, whole = greedy(prompt, steps=0, second_turn=1)
    kept, text, start = len(run.kept), prompt.length - len(prompt.layout), int(prompt.layout.index[0])
    cosines = run.layer_scores[COSINE].tolist()
    between = (sorted(cosines)[1] + sorted(cosines)[2]) / 2
    for threshold, forgotten in ((-1, 0), (between, 2), (0.999, 3), (1.01, 4)):
        with SharpV(retention=0.4, memory_threshold=threshold)(prompt.model):
            _, other, cache = greedy(prompt, steps=0, second_turn=1)
        assert torch.equal(other[0], logits[0])  # the first answer token cannot know
        gone = [cosine < threshold for cosine in cosines]
        assert sum(gone) == forgotten
        lengths = [layer.get_seq_length() - 1 for layer in cache.layers]
        assert lengths == [text if lost else text + kept for lost in gone]
        rows = torch.tensor([*range(start), *range(start + kept, text + kept)])
        for now, then, lost in zip(cache.layers, whole.layers, gone, strict=True):
            prompt_rows = slice(0, text if lost else text + kept)
            expected = (then.keys[:, :, rows], then.values[:, :, rows]) if lost else (then.keys, then.values)
            assert torch.equal(now.keys[:, :, prompt_rows], expected[0][:, :, prompt_rows])
            assert torch.equal(now.values[:, :, prompt_rows], expected[1][:, :, prompt_rows])


def test_after_forgetting_positions_go_on_from_the_prompt(prompt: Prompt) -> None:
    ids = prompt.tokens.get("position_ids")
    asked: list[Tensor] = []
    hook = prompt.model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda module, args: asked.append(args[1].clone())
    )
    try:
        with SharpV(retention=0.4, memory_threshold=1.01)(prompt.model) as run:
            greedy(prompt, steps=2, second_turn=1)
    finally:
        hook.remove()
    steps = [positions.unique().tolist() for positions in asked if positions.shape[-1] == 1]
    if ids is None:  # the shorter prompt's end; the first of each pair is what the caller counted
        end = prompt.length - len(prompt.layout) + len(run.kept)
        assert steps[1::2] == [[end], [end + 1], [end + 2]]
    else:
        end = int(ids[-3:].max()) + 1
        assert steps == [[end], [end + 1], [end + 2]]


def test_a_forgotten_layer_is_a_masked_layer(tiny_qwen: Backbone) -> None:
    """With original positions: the visual keys of all layers are hidden from everything after the prompt."""
    prompt = Prompt(tiny_qwen)
    with SharpV(retention=0.4, memory_threshold=1.01)(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    with masked(prompt, 0, run.kept, hidden_later=prompt.layout.index):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_with_a_method_inside_the_llm(prompt: Prompt) -> None:
    """Layers that hold different numbers of visual tokens are trimmed to the same text."""
    n, text = len(prompt.layout), prompt.length - len(prompt.layout)
    with (SharpV(retention=0.5, memory_threshold=1.01) + FastV(retention=0.2))(prompt.model) as run:
        _, _, cache = greedy(prompt, steps=0, second_turn=1)
    assert run.visual_per_layer == [budget(0.5, n)] * 2 + [budget(0.2, n)] * 2
    assert [layer.get_seq_length() for layer in cache.layers] == [text + 1] * 4
