"""HoliTom against brute force, naive loops written from its formulas, and the shorter prompt that it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import MethodError, UnsupportedError
from sharp_demo.pruning.holitom import (
    HoliTom,
    absorb,
    best_segments,
    halve_into_nearest,
    removable,
    static_runs,
)
from sharp_demo.pruning.outcome import Role
from sharp_demo.pruning.peaks import density_peaks
from sharp_demo.pruning.schedule import ceil_share
from tests.pruning.prompts import Prompt, greedy, masked, scenes

KEEP_ALL = 1 - 1e-12  # an outer stage that keeps every token


def runs_of(same: np.ndarray) -> Tensor:
    """Run lengths of a [F-1, P] table of "same as the frame before"."""
    runs = np.zeros((len(same) + 1, same.shape[1]), int)
    for frame, row in enumerate(same, 1):
        runs[frame] = (runs[frame - 1] + 1) * row
    return torch.tensor(runs)


def static_in(same: np.ndarray, first: int, end: int) -> int:
    return int(same[first : end - 1].all(0).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_segments_are_the_best_of_all(data: st.DataObject) -> None:
    frames, patches = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    window = data.draw(st.integers(1, 8))
    table = data.draw(st.lists(st.booleans(), min_size=(frames - 1) * patches, max_size=(frames - 1) * patches))
    same = np.array(table, bool).reshape(frames - 1, patches)
    segments, gone = best_segments(removable(runs_of(same)), window)
    assert [first for first, _ in segments] == [0, *(end for _, end in segments[:-1])]
    assert segments[-1][1] == frames
    assert max(end - first for first, end in segments) <= window
    assert gone == sum((end - first - 1) * static_in(same, first, end) for first, end in segments)
    totals = []
    for cuts in product([False, True], repeat=frames - 1):
        edges = [0, *(i for i, cut in enumerate(cuts, 1) if cut), frames]
        cut = list(pairwise(edges))
        if max(end - first for first, end in cut) <= window:
            totals.append(sum((end - first - 1) * static_in(same, first, end) for first, end in cut))
    assert gone == max(totals)


@pytest.mark.parametrize(
    ("same", "segments"),
    [
        ([[1, 0], [0, 1]], [(0, 2), (2, 3)]),  # (0,1),(2) and (0),(1,2) free one token each: the single-frame tail
        ([[1, 1], [1, 1], [1, 1]], [(0, 4)]),
        ([[0, 0], [0, 0]], [(0, 1), (1, 2), (2, 3)]),
        # (0),(1),(2,3) and (0),(1..3) would both free 2 at the end: the shorter window
        ([[0, 0, 0], [1, 0, 0], [1, 1, 0]], [(0, 1), (1, 2), (2, 4)]),
    ],
)
def test_ties_prefer_a_single_frame_then_the_shorter_window(same: list, segments: list) -> None:
    assert best_segments(removable(runs_of(np.array(same, bool))), 1024)[0] == segments


def test_a_cosine_equal_to_tau_is_not_static() -> None:
    tokens = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    cosine = float(F.cosine_similarity(tokens[0], tokens[1]))
    assert static_runs(tokens, cosine).tolist() == [[0], [0], [0]]
    assert static_runs(tokens, cosine - 1e-6).tolist() == [[0], [1], [0]]


def test_density_peaks_find_one_centre_per_blob_and_repeat() -> None:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.cat([torch.randn(9, 4, generator=generator) * 0.1 + at for at in (0.0, 8.0)])
    found = [density_peaks(blobs, 2, 7, torch.Generator().manual_seed(seed))[0].tolist() for seed in (3, 3)]
    assert found[0] == found[1]
    assert [int(i >= 9) for i in found[0]] == [0, 1]


def test_the_seed_decides_between_rows_of_equal_density() -> None:
    """Of two pairs, equally dense and equally far apart, the jitter makes one row the densest of all."""
    rows = torch.tensor([[0.0, 0], [0, 1], [9, 0], [9, 1]])

    def chosen(seed: int) -> tuple[int, ...]:
        return tuple(density_peaks(rows, 1, 2, torch.Generator().manual_seed(seed))[0].tolist())

    assert {chosen(seed) for seed in range(40)} == {(0,), (1,), (2,), (3,)}
    assert all(chosen(seed) == chosen(seed) for seed in range(5))


def test_rows_without_any_distance_go_to_the_lower_index() -> None:
    """Every product with a distance of zero is zero, whatever the jitter."""
    rows = torch.ones(6, 3)
    chosen = {tuple(density_peaks(rows, 1, 7, torch.Generator().manual_seed(seed))[0].tolist()) for seed in range(9)}
    assert chosen == {(0,)}


def test_density_peaks_equal_loops() -> None:
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    for count, neighbors in ((1, 1), (4, 4), (4, 7), (9, 3), (12, 7), (12, 20)):
        centers, distance = density_peaks(rows, count, neighbors, torch.Generator().manual_seed(2))
        expected, apart = naive_peaks(rows, count, neighbors, torch.Generator().manual_seed(2))
        assert centers.tolist() == expected
        torch.testing.assert_close(distance, apart, atol=1e-6, rtol=0)


def naive_peaks(rows: Tensor, count: int, neighbors: int, generator: torch.Generator) -> tuple[list[int], Tensor]:
    n = len(rows)
    apart = torch.zeros(n, n)
    for i, j in product(range(n), repeat=2):
        apart[i, j] = (rows[i].float() - rows[j].float()).norm() / math.sqrt(rows.shape[1])
    jitter = torch.rand(n, generator=generator)
    density = torch.zeros(n)
    for i in range(n):
        near = sorted(apart[i].tolist())[:neighbors]
        density[i] = math.exp(-sum(x * x for x in near) / len(near)) + 1e-6 * float(jitter[i])
    merit = []
    for i in range(n):
        denser = [float(apart[i, j]) for j in range(n) if density[j] > density[i]]
        merit.append(float(density[i]) * (min(denser) if denser else float(apart.max())))
    return sorted(sorted(range(n), key=lambda i: (-merit[i], i))[:count]), apart


def test_absorb_blends_a_centre_with_the_mean_of_its_own() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [9.0, 9.0]])
    merged, nearest = absorb(rows, torch.tensor([0, 3]), torch.cdist(rows, rows), 0.6)
    assert nearest.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(merged, torch.tensor([[0.4 * 2.0, 0.0], [9.0, 9.0]]))


def test_halving_goes_one_after_another() -> None:
    """8, 0, 0, 0 gives 1, where a mean would be 2."""
    rows = torch.tensor([[1.0, 0.0, 8.0], [1e-3, 0.0, 0.0], [0.0, 5.0, 0.0], [2e-3, 0.0, 0.0], [3e-3, 0.0, 0.0]])
    merged, into = halve_into_nearest(rows, torch.tensor([0, 2]))
    assert into.tolist() == [-1, 0, -1, 0, 0]
    assert float(merged[0, 2]) == 1.0
    assert merged[1].tolist() == [0.0, 5.0, 0.0]


@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_halving_equals_the_loop(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    rows = torch.randn(40, 8, generator=generator)
    kept = torch.randperm(40, generator=generator)[:k].sort().values
    merged, into = halve_into_nearest(rows, kept)
    expected, targets = rows.clone(), torch.full((40,), -1)
    for i in range(40):
        if i not in kept.tolist():
            cosines = [float(F.cosine_similarity(rows[i], rows[j], dim=0)) for j in kept.tolist()]
            target = kept.tolist()[cosines.index(max(cosines))]
            expected[target] = (expected[target] + rows[i]) / 2
            targets[i] = target
    torch.testing.assert_close(merged, expected[kept], atol=1e-6, rtol=0)
    assert into.tolist() == targets.tolist()


# -- on the models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(HoliTom):
    """HoliTom that keeps the rows its stages put in."""

    seen: dict = field(default_factory=dict, hash=False)

    def before_layer(self, layer, prefill):
        before = prefill.hidden[0, prefill.rows].clone()
        selection = super().before_layer(layer, prefill)
        if selection is not None:
            self.seen[layer] = (before, selection.hidden, selection)
        return selection


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def run(prompt: Prompt, method: HoliTom):
    with method(prompt.model) as record, torch.no_grad():
        prompt.model(**prompt.inputs(), use_cache=True)
    return record


def visual(prompt: Prompt) -> Tensor:
    layout = prompt.layout
    return prompt.features.features[: len(layout)].view(layout.frames, layout.rows * layout.cols, -1)


def middle_tau(prompt: Prompt) -> float:
    tokens = visual(prompt).float()
    return float(F.cosine_similarity(tokens[:-1], tokens[1:], dim=-1).median())


def naive_outer(prompt: Prompt, method: HoliTom) -> tuple[dict[int, tuple[Tensor, Role]], dict[int, int]]:
    """Slot -> (row, role) of what the outer stage keeps, and slot -> slot of what it merges, in plain loops."""
    tokens, received = visual(prompt).float(), prompt.features.signals.received
    frames, patches = tokens.shape[:2]
    same = np.zeros((frames - 1, patches), bool)
    for f, p in product(range(frames - 1), range(patches)):
        same[f, p] = float(F.cosine_similarity(tokens[f, p], tokens[f + 1, p], dim=0)) > method.tau
    segments, gone = best_segments(removable(runs_of(same)), method.window)
    share = min(1.0, method.retention * frames * patches / (frames * patches - gone))
    generator = torch.Generator().manual_seed(method.seed)
    kept: dict[int, tuple[Tensor, Role]] = {}
    merged: dict[int, int] = {}

    def cluster(rows: list[Tensor], slots: list[int], count: int, role: Role) -> dict[int, int]:
        centers, apart = naive_peaks(torch.stack(rows), count, min(method.neighbors, count), generator)
        goes = {i: i if i in centers else min(centers, key=lambda c: (float(apart[i, c]), c)) for i in range(len(rows))}
        for center in centers:
            members = [rows[i] for i in range(len(rows)) if goes[i] == center and i != center]
            row = rows[center]
            if members:
                row = method.beta * row + (1 - method.beta) * torch.stack(members).mean(0)
            kept[slots[center]] = (row, role)
        return {slots[i]: slots[goes[i]] for i in goes}

    for first, end in segments:
        static = [p for p in range(patches) if end - first > 1 and same[first : end - 1, p].all()]
        count = round(len(static) * share)
        if count:
            rows = [tokens[first:end, p].mean(0) for p in static]
            goes = cluster(rows, [first * patches + p for p in static], count, Role.STATIC)
            for f, p in product(range(first, end), static):
                merged[f * patches + p] = goes[first * patches + p]
        for f in range(first, end):
            changing = [p for p in range(patches) if p not in static]
            count = math.ceil(len(changing) * share - 1e-9)
            dominant = round(count * (1 - method.contextual))
            ranked = sorted(changing, key=lambda p: (-float(received[f * patches + p]), p))
            for p in ranked[:dominant]:
                kept[f * patches + p] = (tokens[f, p], Role.DOMINANT)
            if count > dominant:
                rest = sorted(ranked[dominant:])
                slots = [f * patches + p for p in rest]
                merged |= cluster([tokens[f, p] for p in rest], slots, count - dominant, Role.CONTEXTUAL)
    return kept, {a: b for a, b in merged.items() if a != b}


@pytest.mark.parametrize("contextual", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.7])
def test_the_outer_stage_equals_loops(retention: float, contextual: float, prompt: Prompt) -> None:
    method = Watched(retention=retention, tau=middle_tau(prompt), contextual=contextual, drop=0.0)
    record = run(prompt, method)
    kept, merged = naive_outer(prompt, method)
    assert record.kept.tolist() == sorted(kept)
    assert record.role.tolist() == [int(kept[slot][1]) for slot in sorted(kept)]
    expected = torch.stack([kept[slot][0] for slot in sorted(kept)])
    torch.testing.assert_close(method.seen[0][1], expected, atol=1e-5, rtol=0)
    into = {slot: int(target) for slot, target in enumerate(record.merged_into) if target >= 0}
    assert into == merged
    others = {0.0: {Role.DOMINANT}, 0.5: {Role.CONTEXTUAL}, 1.0: {Role.CONTEXTUAL}}[contextual]
    assert {Role.STATIC, *others} <= set(record.role.tolist())
    assert len(record.segments) > 1


@pytest.mark.parametrize("tau", [0.2, 0.6, "middle"])
@pytest.mark.parametrize("retention", [0.05, 0.15, 0.4])
def test_counts_stay_within_the_rounding(retention: float, tau: float | str, prompt: Prompt) -> None:
    """Rounded up per frame, to the nearest per static block."""
    tau = middle_tau(prompt) if tau == "middle" else tau
    record = run(prompt, HoliTom(retention=retention, tau=tau, drop=0.0))
    n, frames, blocks = len(prompt.layout), prompt.layout.frames, len(record.segments)
    gone = best_segments(removable(static_runs(visual(prompt), tau)), 1024)[1]
    total = record.visual_per_layer[0]
    if retention * n < n - gone:
        assert retention * n - blocks / 2 <= total <= retention * n + frames + blocks / 2
    else:
        assert total == n - gone
    assert total == len(record.kept)


@pytest.mark.parametrize("retention", [0.02, 0.1, 0.3])
def test_a_static_video_is_one_frame_of_centres(retention: float, prompt: Prompt) -> None:
    n, frames = len(prompt.layout), prompt.layout.frames
    patches = n // frames
    record = run(prompt, HoliTom(retention=retention, tau=-1.0, drop=0.0))
    assert record.segments == [(0, frames)]
    assert len(record.kept) == max(1, round(patches * min(1.0, retention * frames)))
    assert set(record.role.tolist()) == {int(Role.STATIC)}
    assert int(record.kept.max()) < patches  # in the first frame of the segment
    assert int((record.merged_into >= 0).sum()) == n - len(record.kept)


@pytest.mark.parametrize("retention", [0.1, 0.34])
def test_without_static_patches_the_best_of_each_frame_stay_as_they_are(retention: float, prompt: Prompt) -> None:
    method = Watched(retention=retention, tau=1.0, drop=0.0)
    record = run(prompt, method)
    n, frames = len(prompt.layout), prompt.layout.frames
    k = ceil_share(retention, n // frames)
    received = prompt.features.signals.received.view(frames, -1)
    best = [(f * (n // frames) + received[f].topk(k).indices).sort().values for f in range(frames)]
    assert record.kept.tolist() == torch.cat(best).tolist()
    before, rows, _ = method.seen[0]
    assert torch.equal(rows.to(before.dtype), before[record.kept])
    assert len(record.kept) == method.schedule(4, n, frames)[0][1]
    assert not bool((record.merged_into >= 0).any())


@torch.no_grad()
def test_the_outer_stage_is_a_shorter_ordinary_prompt(prompt: Prompt) -> None:
    """The same rows fed to the untouched model: renumbered for LLaVA-OneVision, original ids for Qwen2-VL."""
    method = Watched(retention=0.3, tau=middle_tau(prompt), drop=0.0)
    with method(prompt.model) as record:
        ids, logits, _ = greedy(prompt, steps=4)
    layout, lm = prompt.layout, prompt.model.model.language_model
    hidden = lm.embed_tokens(prompt.tokens["input_ids"])
    video = prompt.tokens["input_ids"] == prompt.model.config.video_token_id
    hidden[video] = prompt.features.features
    hidden[0, layout.index[record.kept]] = method.seen[0][1]
    stays = torch.ones(prompt.length, dtype=torch.bool)
    stays[layout.index] = False
    stays[layout.index[record.kept]] = True
    positions = prompt.tokens.get("position_ids")
    rows = torch.arange(int(stays.sum()))[None] if positions is None else positions[-3:][..., stays]
    after = (rows if positions is None else positions[-3:]).max() + 1
    steps = torch.arange(4).expand(*rows.shape[:-1], 4) + after
    answer = lm.embed_tokens(torch.tensor([ids[:4]]))
    output = lm(inputs_embeds=torch.cat((hidden[:, stays], answer), 1), position_ids=torch.cat((rows, steps), -1))
    expected = prompt.model.lm_head(output.last_hidden_state)[0, -5:]
    seen = torch.isfinite(logits[:5])
    torch.testing.assert_close(logits[:5][seen], expected[seen], atol=2e-5, rtol=0)


@pytest.mark.parametrize("drop", [0.5, 0.8])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_inner_stage_equals_masking_with_its_merged_rows_put_in(layer: int, drop: float, prompt: Prompt) -> None:
    """Which also says that every layer, the scoring one included, attends causally."""
    method = Watched(retention=KEEP_ALL, tau=1.0, inner_layer=layer, drop=drop)
    with method(prompt.model) as record:
        ids, logits, cache = greedy(prompt)
    n = len(prompt.layout)
    assert len(record.kept) == round(n * (1 - drop))
    assert record.visual_per_layer == [n] * layer + [len(record.kept)] * (4 - layer)
    lengths = [layer_cache.get_seq_length() for layer_cache in cache.layers]
    assert lengths == [prompt.length + 13 - n + v for v in record.visual_per_layer]
    before, rows, selection = method.seen[layer]
    merged, into = halve_into_nearest(before, record.kept)
    assert torch.equal(rows, merged)
    assert torch.equal(selection.merged_into, into)
    with masked(prompt, layer, record.kept, rows):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_the_inner_stage_keeps_what_the_last_token_attends_to(prompt: Prompt) -> None:
    """The order of FastV at the same layer, on the same tokens."""
    from sharp_demo.pruning.fastv import FastV

    n = len(prompt.layout)
    record = run(prompt, HoliTom(retention=KEEP_ALL, tau=1.0, inner_layer=2, drop=0.5))
    with FastV(retention=round(n / 2) / n, layer=2)(prompt.model) as fastv, torch.no_grad():
        prompt.model(**prompt.inputs(), use_cache=True)
    assert record.kept.tolist() == fastv.kept.tolist()


def test_merges_of_both_stages_end_at_survivors(prompt: Prompt) -> None:
    record = run(prompt, HoliTom(retention=0.4, tau=middle_tau(prompt)))
    assert record.visual_per_layer[0] > record.visual_per_layer[3]
    assert record.visual_per_layer[3] == round(record.visual_per_layer[0] / 2) == len(record.kept)
    targets = record.merged_into[record.merged_into >= 0]
    assert set(targets.tolist()) <= set(record.kept.tolist())
    inside = record.visual_per_layer[0] - len(record.kept)
    assert len(targets) >= inside
    assert set(record.role.tolist()) <= {int(Role.STATIC), int(Role.DOMINANT)}


@pytest.mark.parametrize(("layers", "layer"), [(28, 18), (24, 15), (80, 51), (4, 3), (2, 1)])
def test_the_inner_layer_follows_the_depth(layers: int, layer: int) -> None:
    assert HoliTom().fitted(layers).inner_layer == layer
    assert [at for at, _ in HoliTom().schedule(layers, 1000)] == [0, layer]
    assert HoliTom(inner_layer=1).fitted(layers).inner_layer == 1


def test_the_nominal_schedule_is_the_papers() -> None:
    """15 % / 7.5 % on 32 frames of 196: 30 a frame, then half."""
    assert HoliTom(retention=0.15).schedule(28, 6272, 32) == [(0, 960), (18, 480)]
    assert HoliTom(retention=0.15, drop=0.0).schedule(28, 6272) == [(0, 941)]


@pytest.mark.parametrize(
    "frames", [np.zeros((8, 60, 80, 3), np.uint8), scenes(2), scenes(2)[:1].repeat(2, 0), scenes(2)[:1].repeat(9, 0)]
)
def test_degenerate_videos(frames: np.ndarray, tiny: Backbone) -> None:
    prompt = Prompt(tiny, frames)
    n = len(prompt.layout)
    for retention in (1e-9, 1 / n, 0.5, 1 - 1e-9):
        with HoliTom(retention=retention)(prompt.model) as record:
            _, logits, _ = greedy(prompt, steps=2)
        assert 1 <= len(record.kept) <= n
        assert not logits.isnan().any()


def test_refusals(prompt: Prompt) -> None:
    with pytest.raises(MethodError, match=r"tau is 1\.5; it must be at most 1"):
        HoliTom(tau=1.5)
    with HoliTom(inner_layer=9)(prompt.model), pytest.raises(MethodError, match="before layer 9, but this model has"):
        prompt.model(**prompt.inputs(), use_cache=True)
    features = replace(prompt.features, signals=None)
    blind = Prompt.__new__(Prompt)
    blind.__dict__ |= {**vars(prompt), "features": features}
    with HoliTom()(prompt.model), pytest.raises(UnsupportedError, match="attention of the vision tower"):
        prompt.model(**blind.inputs(), use_cache=True)


def test_signals_come_from_pixels_too(prompt: Prompt) -> None:
    record = run(prompt, HoliTom(retention=0.3))
    inputs = {**prompt.inputs(), **prompt.pixels}
    inputs.pop("mm_encoder_outputs")
    with HoliTom(retention=0.3)(prompt.model) as again, torch.no_grad():
        prompt.model(**inputs, use_cache=True)
    assert again.kept.tolist() == record.kept.tolist()
