"""RegD against a plain loop written from the paper, and against toys worked out by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from sharp_demo.pruning.runtime import Role, Selection
from sharp_demo.pruning.sharp import regd
from sharp_demo.pruning.sharp.regd import RegDOptions, refine, run_leaders

WALK = pytest.mark.parametrize("walk", [True, False], ids=["walk", "blocks"])


def refined(
    hidden: Tensor,
    segments: list[tuple[int, int]],
    scores: Tensor,
    registers: Tensor,
    options: RegDOptions | None = None,
    walk: bool = True,
) -> Selection:
    segment = torch.cat([torch.full((b - a,), number) for number, (a, b) in enumerate(segments)])
    return refine(hidden, hidden, segment, len(segments), scores, registers, options or RegDOptions(), walk=walk)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def naive_runs(vectors: list[np.ndarray], tau: float, reference: str) -> list[list[int]]:
    runs: list[list[int]] = []
    for i, vector in enumerate(vectors):
        if runs:
            current = runs[-1]
            against = {
                "pivot": vectors[current[0]],
                "seed": vectors[current[0]],
                "predecessor": vectors[i - 1],
                "running_mean": np.mean([vectors[j] for j in current], 0),
                "mean": np.mean([vectors[j] for j in current], 0),
            }[reference]
            if cosine(vector, against) > tau:
                current.append(i)
                continue
        runs.append([i])
    return runs


def naive_refine(
    hidden: np.ndarray, segments: list[tuple[int, int]], scores: np.ndarray, registers: list[int], o: RegDOptions
) -> dict[int, tuple[str, np.ndarray]]:
    """Paper Sec. 4.3 token by token: slot -> (role, row)."""
    kept: dict[int, tuple[str, np.ndarray]] = {}
    leftover: list[tuple[float, int, np.ndarray]] = []
    for a, b in segments:
        inside = [r for r in registers if a <= r < b]
        if not inside:
            continue
        row = {r: hidden[r].copy() for r in inside}
        members = {r: [hidden[r]] for r in inside}
        pool = []
        for t in range(a, b):
            if t in inside:
                continue
            likeness = [cosine(hidden[t], hidden[r]) for r in inside]
            best = int(np.argmax(likeness))
            if likeness[best] <= o.tau_filter:
                pool.append(t)
            elif o.prefilter_absorb == "mean":
                members[inside[best]].append(hidden[t])
        for r in inside:
            row[r] = np.mean(members[r], 0)
        pivots = []
        for group in naive_runs([row[r] for r in inside], o.tau_merge, o.dedup_reference):
            pivot = inside[group[0]]
            vector = row[pivot]
            if o.dedup_absorb == "mean":
                everyone = [m for g in group for m in members[inside[g]]]
                vector = np.mean(everyone, 0)
            changed = len(members[pivot]) > 1 or (o.dedup_absorb == "mean" and len(group) > 1)
            kept[pivot] = ("merged" if changed else "register", vector)
            pivots.append(vector)
        candidates = []
        for group in naive_runs([hidden[t] for t in pool], o.tau_cluster, o.cluster_reference):
            tokens = [pool[g] for g in group]
            mean = np.mean(hidden[tokens], 0)
            token, center = tokens[0], mean
            if o.cluster_center == "first":
                center = hidden[token]
            if o.cluster_center == "medoid":
                token = max(tokens, key=lambda t: cosine(hidden[t], mean))
                center = hidden[token]
            diversity = 1 - np.mean([cosine(center, p) for p in pivots]) + o.beta * len(tokens)
            candidates.append((float(diversity), token, center))
        candidates.sort(key=lambda c: (-c[0], c[1]))
        missing = len(inside) - len(pivots)
        for _, token, center in candidates[:missing]:
            kept[token] = ("filled", center)
        leftover += candidates[missing:]
    if o.strict_budget:
        leftover.sort(key=lambda c: (-c[0], c[1]))
        for _, token, center in leftover[: len(registers) - len(kept)]:
            kept[token] = ("filled", center)
        rest = sorted((t for t in range(len(hidden)) if t not in kept), key=lambda t: (-scores[t], t))
        for token in rest[: len(registers) - len(kept)]:
            kept[token] = ("filled", None)  # its own row, whatever absorbed it before
    return kept


def clip_like(seed: int, n: int, d: int, duplicates: float) -> np.ndarray:
    """Rows drawn around a few centres, so that cosines spread over all thresholds."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 6), d))
    rows = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, d)) * rng.uniform(0.1, 1.2, (n, 1))
    copies = rng.random(n) < duplicates
    rows[1:][copies[1:]] = rows[:-1][copies[1:]]
    return rows.astype(np.float32)


def tie_free(hidden: np.ndarray, taus: tuple[float, ...]) -> bool:
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    values = unit @ unit.T
    return all(np.abs(values - tau).min() > 1e-5 for tau in taus)


@WALK
@pytest.mark.parametrize("seed", range(60))
def test_refine_is_the_naive_loop(seed: int, walk: bool) -> None:
    rng = np.random.default_rng(1000 + seed)
    n, d = int(rng.integers(2, 90)), int(rng.integers(2, 12))
    options = RegDOptions(
        prefilter_absorb=str(rng.choice(["drop", "mean"])),
        dedup_absorb=str(rng.choice(["drop", "mean"])),
        dedup_reference=str(rng.choice(["pivot", "predecessor", "running_mean"])),
        cluster_reference=str(rng.choice(["seed", "mean"])),
        cluster_center=str(rng.choice(["mean", "first", "medoid"])),
        strict_budget=bool(rng.integers(0, 2)),
    )
    if options.prefilter_absorb == "mean" and options.dedup_reference == "running_mean":
        options = RegDOptions(**{**vars(options), "dedup_reference": "pivot"})
    hidden = clip_like(seed, n, d, duplicates=float(rng.choice([0.0, 0.5])))
    cuts = sorted(set(rng.integers(1, n, rng.integers(0, 4)).tolist())) if n > 1 else []
    segments = list(zip([0, *cuts], [*cuts, n], strict=True))
    scores = rng.permutation(n).astype(np.float32)
    k = int(rng.integers(1, n + 1))
    registers = sorted(np.argsort(-scores)[:k].tolist())
    before = torch.from_numpy(hidden.copy())
    selection = refined(before, segments, torch.from_numpy(scores), torch.tensor(registers), options, walk)
    assert torch.equal(before, torch.from_numpy(hidden))  # inputs are left alone
    expected = naive_refine(hidden, segments, scores, registers, options)
    assert selection.kept.tolist() == sorted(expected)
    for slot, role, row in zip(selection.kept.tolist(), selection.role.tolist(), selection.hidden, strict=True):
        want_role, want_row = expected[slot]
        assert Role(role).label == want_role, slot
        if want_row is not None:
            np.testing.assert_allclose(row.numpy(), want_row, atol=2e-5)
    if options.strict_budget:
        assert len(selection.kept) == k
    segment_of = np.searchsorted([b for _, b in segments], np.arange(n), side="right")
    for slot, target in enumerate(selection.merged_into.tolist()):
        if target >= 0:
            assert segment_of[slot] == segment_of[target]  # never across a cut
            assert target in expected
            assert slot not in expected


@WALK
@pytest.mark.parametrize(
    ("angles", "reference", "leaders"),
    [
        ((0, 30, 60), "pivot", [0, 0, 2]),
        ((0, 30, 60), "predecessor", [0, 0, 0]),
        ((0, 30, 60), "running_mean", [0, 0, 2]),
        ((0, 30, 50), "pivot", [0, 0, 2]),
        ((0, 30, 50), "predecessor", [0, 0, 0]),
        ((0, 30, 50), "running_mean", [0, 0, 0]),
    ],
)
def test_the_three_readings_of_dedup_differ_as_worked_out(
    angles: tuple[int, ...], reference: str, leaders: list[int], walk: bool
) -> None:
    radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float32))
    vectors = torch.stack((radians.cos(), radians.sin()), 1)
    assert run_leaders(vectors, torch.zeros(3), 0.8, reference, walk=walk).tolist() == leaders


@WALK
@pytest.mark.parametrize("reference", ["pivot", "seed", "predecessor", "running_mean", "mean"])
@pytest.mark.parametrize("m", [0, 1, 2, 127, 128, 129, 300])
def test_run_leaders_is_the_naive_walk(m: int, reference: str, walk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regd, "ROW_BLOCK", 100)
    vectors = clip_like(m, max(m, 1), 6, 0.3)[:m]
    segment = torch.arange(m) // 130
    leaders: list[int] = []
    for a in range(0, m, 130):
        leaders += [a + group[0] for group in naive_runs(list(vectors[a : a + 130]), 0.5, reference) for _ in group]
    assert run_leaders(torch.from_numpy(vectors), segment, 0.5, reference, walk=walk).tolist() == leaders


def test_equal_similarity_is_not_absorbed() -> None:
    pair = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for walk in (True, False):
        assert run_leaders(pair, torch.zeros(2), 1.0, "pivot", walk=walk).tolist() == [0, 1]
        assert run_leaders(pair, torch.zeros(2), 0.999, "pivot", walk=walk).tolist() == [0, 0]


@WALK
@pytest.mark.parametrize(("segments", "k"), list(product(([(0, 12)], [(0, 5), (5, 12)]), (1, 4, 12))))
def test_all_identical_tokens_still_fill_the_budget(segments: list[tuple[int, int]], k: int, walk: bool) -> None:
    hidden = torch.ones(12, 3)
    scores = torch.arange(12.0)
    registers = torch.arange(12 - k, 12)
    selection = refined(hidden, segments, scores, registers, walk=walk)
    assert len(selection.kept) == k
    assert torch.equal(selection.hidden, torch.ones(k, 3))


def test_a_segment_without_registers_is_dropped_whole() -> None:
    hidden = torch.eye(6)
    selection = refined(hidden, [(0, 3), (3, 6)], torch.arange(6.0), torch.tensor([4, 5]))
    assert selection.kept.tolist() == [4, 5]


def test_diversity_prefers_the_odd_one_and_big_clusters() -> None:
    """Eq. 6 on a toy: two candidates equally unlike the register, one of them a cluster of three."""
    east, north, up = torch.eye(3)
    hidden = torch.stack((east, east, north, up, up, up))
    selection = refined(hidden, [(0, 6)], torch.tensor([9.0, 8, 0, 0, 0, 0]), torch.tensor([0, 1]))
    assert selection.kept.tolist() == [0, 3]
    assert [Role(r).label for r in selection.role.tolist()] == ["merged", "filled"]
    assert selection.merged_into.tolist() == [-1, 0, -1, -1, 3, 3]


def test_weighted_means_count_every_original_token_once() -> None:
    """Two registers, one with a pre-filtered neighbour, merge into the mean of all three."""

    def at(degrees: float) -> Tensor:
        return torch.tensor([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], dtype=torch.float32)

    hidden = torch.stack((at(0), at(10), at(20), at(180)))
    options = RegDOptions(prefilter_absorb="mean")
    selection = refined(hidden, [(0, 4)], torch.tensor([9.0, 0, 8, 0]), torch.tensor([0, 2]), options)
    assert selection.kept.tolist() == [0, 3]
    torch.testing.assert_close(selection.hidden[0], hidden[:3].mean(0))
    assert selection.merged_into.tolist() == [-1, 0, 0, -1]
