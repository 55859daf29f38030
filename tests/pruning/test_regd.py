"""RegD against a plain loop written from the paper, and against toys worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.sharp import reference, regd
from sharp_demo.pruning.sharp.regd import RegDOptions, refine, run_leaders
from sharp_demo.pruning.sharp.trace import trace_regd

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


def naive_runs(
    vectors: list[np.ndarray], tau: float, reference: str, margins: list[float] | None = None
) -> list[list[int]]:
    """Runs of a sequence; `margins` collects how far every compared cosine was from the threshold."""
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
            likeness = cosine(vector, against)
            if margins is not None:
                margins.append(abs(likeness - tau))
            if likeness > tau:
                current.append(i)
                continue
        runs.append([i])
    return runs


def naive_refine(
    hidden: np.ndarray,
    segments: list[tuple[int, int]],
    scores: np.ndarray,
    registers: list[int],
    o: RegDOptions,
    margins: list[float] | None = None,
) -> dict[int, tuple[str, np.ndarray]]:
    """Paper Sec. 4.3 token by token: slot -> (role, row).

    `margins` collects how close every decision was: cosines to thresholds, and unequal diversities to each other.
    """
    margins = [] if margins is None else margins
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
            margins.append(abs(likeness[best] - o.tau_filter))
            if likeness[best] <= o.tau_filter:
                pool.append(t)
            elif o.prefilter_absorb == "mean":
                members[inside[best]].append(hidden[t])
        for r in inside:
            row[r] = np.mean(members[r], 0)
        pivots = []
        for group in naive_runs([row[r] for r in inside], o.tau_merge, o.dedup_reference, margins):
            pivot = inside[group[0]]
            vector = row[pivot]
            if o.dedup_absorb == "mean":
                everyone = [m for g in group for m in members[inside[g]]]
                vector = np.mean(everyone, 0)
            changed = len(members[pivot]) > 1 or (o.dedup_absorb == "mean" and len(group) > 1)
            kept[pivot] = ("merged" if changed else "register", vector)
            pivots.append(vector)
        candidates = []
        for group in naive_runs([hidden[t] for t in pool], o.tau_cluster, o.cluster_reference, margins):
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
        margins += gaps(candidates)
        missing = len(inside) - len(pivots)
        for _, token, center in candidates[:missing]:
            kept[token] = ("filled", center)
        leftover += candidates[missing:]
    if o.strict_budget:
        leftover.sort(key=lambda c: (-c[0], c[1]))
        margins += gaps(leftover)
        for _, token, center in leftover[: len(registers) - len(kept)]:
            kept[token] = ("filled", center)
        rest = sorted((t for t in range(len(hidden)) if t not in kept), key=lambda t: (-scores[t], t))
        for token in rest[: len(registers) - len(kept)]:
            kept[token] = ("filled", None)  # its own row, whatever absorbed it before
    return kept


def gaps(candidates: list[tuple[float, int, np.ndarray]]) -> list[float]:
    """Differences between neighbouring diversities; equal centres are an exact tie, which the lower index wins."""
    return [abs(one[0] - other[0]) for one, other in pairwise(candidates) if not np.array_equal(one[2], other[2])]


def clip_like(seed: int, n: int, d: int, duplicates: float) -> np.ndarray:
    """Rows drawn around a few centres, so that cosines spread over all thresholds."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 6), d))
    rows = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, d)) * rng.uniform(0.1, 1.2, (n, 1))
    copies = rng.random(n) < duplicates
    rows[1:][copies[1:]] = rows[:-1][copies[1:]]
    return rows.astype(np.float32)


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


# -- three implementations, one answer -----------------------------------------------------------------------------

MARGIN = 1e-5  # decisions closer than this may fall either way in fp32, whoever adds up first


def at_angles(cosines: np.ndarray, d: int, rng: np.random.Generator) -> np.ndarray:
    """Unit rows whose cosines to the first axis are the given ones."""
    rest = rng.normal(size=(len(cosines), d - 1))
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    return np.hstack((cosines[:, None], np.sqrt(1 - cosines[:, None] ** 2) * rest))


def near_thresholds(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Cosines to a common direction 1e-4 to either side of every threshold."""
    taus = rng.choice([0.4, 0.7, 0.8], n) + rng.choice([-1e-4, 1e-4], n)
    rows = at_angles(taus, d, rng)
    rows[rng.random(n) < 0.3] = np.eye(1, d)
    return rows


def drift(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """A slow turn in one plane: every neighbour alike, the ends opposite."""
    turn = np.cumsum(rng.uniform(0.02, 0.3, n))
    return np.stack((np.cos(turn), np.sin(turn), *np.zeros((d - 2, n))), 1)


def alternating(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Two directions in turn: no run is longer than one, and every cluster ties with others."""
    pair = rng.normal(size=(2, d))
    return pair[np.arange(n) % 2]


ADVERSARIAL: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "clips": lambda rng, n, d: clip_like(int(rng.integers(1 << 30)), n, d, 0.3),
    "copies": lambda rng, n, d: clip_like(int(rng.integers(1 << 30)), n, d, 0.9),
    "noise": lambda rng, n, d: rng.normal(size=(n, d)),
    "near thresholds": near_thresholds,
    "drift": drift,
    "alternating": alternating,
    "scaled copies": lambda rng, n, d: rng.normal(size=(1, d)) * rng.uniform(0.01, 100, (n, 1)),
    "opposites": lambda rng, n, d: rng.normal(size=(1, d)) * rng.choice([-1, 1], (n, 1)) + rng.normal(size=(n, d)) / 9,
    "orthogonal": lambda rng, n, d: np.eye(d)[rng.integers(0, d, n)],
    "some zeros": lambda rng, n, d: rng.normal(size=(n, d)) * (rng.random((n, 1)) < 0.7),
}


def cut(rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """One segment, a few, or one for every token."""
    count = int(rng.choice([0, 1, 3, n - 1]))
    cuts = sorted(rng.choice(np.arange(1, n), min(count, n - 1), replace=False).tolist())
    return list(zip([0, *cuts], [*cuts, n], strict=True))


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_loop_walk_and_blocks_keep_the_same_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 cases of each of 10 kinds, 300 in all, with the published thresholds, in fp32."""
    monkeypatch.setattr(regd, "ROW_BLOCK", 16)
    monkeypatch.setattr(regd, "SCAN_BLOCK", 5)
    compared = drawn = 0
    while compared < 30:
        rng = np.random.default_rng([list(ADVERSARIAL).index(kind), drawn])
        drawn += 1
        n, d = int(rng.integers(2, 100)), int(rng.integers(3, 16))
        hidden = ADVERSARIAL[kind](rng, n, d).astype(np.float32)
        segments, k = cut(rng, n), int(rng.integers(1, n + 1))
        scores = rng.permutation(n).astype(np.float32)
        registers = sorted(np.argsort(-scores)[:k].tolist())
        margins: list[float] = []
        expected = naive_refine(hidden, segments, scores, registers, RegDOptions(), margins)
        if min(margins, default=1.0) < MARGIN:
            continue
        compared += 1
        walked, blocked = (
            refined(torch.from_numpy(hidden), segments, torch.from_numpy(scores), torch.tensor(registers), walk=walk)
            for walk in (True, False)
        )
        assert walked.kept.tolist() == blocked.kept.tolist() == sorted(expected), drawn
        roles = [expected[slot][0] for slot in sorted(expected)]
        pieces = [list(range(a, b)) for a, b in segments]
        told = reference.deduplicate(torch.from_numpy(hidden), pieces, torch.from_numpy(scores), registers)
        assert list(told) == sorted(expected)
        assert [role.label for role, _ in told.values()] == roles
        for selection in (walked, blocked):
            assert [Role(role).label for role in selection.role.tolist()] == roles, drawn
        assert torch.equal(walked.merged_into, blocked.merged_into)
    assert drawn <= 60, "too many cases hang on rounding"


@WALK
def test_half_precision_states_are_compared_in_fp32(walk: bool) -> None:
    """What bf16 can flip is the rounding of the states; the similarities add none of their own."""
    rows = torch.from_numpy(clip_like(3, 200, 64, 0.4)).bfloat16()
    scores, registers = torch.arange(200.0), torch.arange(150, 200)
    half, full = (
        refined(hidden, [(0, 90), (90, 200)], scores, registers, walk=walk) for hidden in (rows, rows.float())
    )
    assert torch.equal(half.kept, full.kept)
    assert torch.equal(half.hidden, full.hidden)


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


@pytest.mark.parametrize("seed", range(6))
def test_the_trace_is_what_refine_does(seed: int) -> None:
    """The steps add up to refine's selection, and pre-filtering is the plain comparison with every register."""
    rng = np.random.default_rng(seed)
    n, k = 96, 48
    hidden = torch.from_numpy(clip_like(seed, n, 16, 0.5)).float()
    segment = torch.arange(n) // 40
    scores = torch.from_numpy(rng.random(n)).float()
    registers = scores.topk(k).indices.sort().values
    arguments = (hidden, hidden, segment, 3, scores, registers, RegDOptions())
    traced, selection = trace_regd(*arguments), refine(*arguments, walk=True)
    absorbed = {int(a) for a, _ in traced["absorbed"]}
    added = {*traced["filled"].tolist(), *traced["repaired"].tolist()}
    chosen = (set(registers.tolist()) - absorbed) | added
    assert chosen == set(selection.kept.tolist())
    filled = selection.kept[selection.role == int(Role.FILLED)]
    assert added == set(filled.tolist())
    for register, pivot in traced["absorbed"].tolist():
        assert selection.merged_into is not None
        assert int(selection.merged_into[register]) in (pivot, -1)
    vectors = hidden.numpy()
    alike = {
        i
        for i in set(range(n)) - set(registers.tolist())
        if any(segment[i] == segment[r] and cosine(vectors[i], vectors[r]) > 0.7 for r in registers.tolist())
    }
    assert set(traced["prefiltered"].tolist()) == alike
    assert absorbed
    assert alike
