"""DivPrune: greedy max-min against loops in double precision, brute force, and cases by hand."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.divprune import DivPrune, farthest_from_mean, max_min_order, most_apart
from sharp_demo.pruning.frames import even_split, first_of_each
from sharp_demo.pruning.schedule import budget
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, with_frames


def pick(rows: Tensor, count: int) -> list[int]:
    """DivPrune's picks of rows [n, d], in order."""
    unit = F.normalize(rows, dim=-1)[None]
    return max_min_order(unit, most_apart(unit), count)[0].tolist()


def distances(rows: Tensor) -> list[list[float]]:
    """Cosine distances of all pairs, one by one in double precision."""
    lists = rows.double().tolist()
    norms = [math.sqrt(sum(a * a for a in row)) for row in lists]
    return [
        [1 - sum(a * b for a, b in zip(u, v, strict=True)) / (p * q) for v, q in zip(lists, norms, strict=True)]
        for u, p in zip(lists, norms, strict=True)
    ]


def shortfall(apart: list[list[float]], order: list[int], since: int = 0) -> float:
    """By how much a pick falls short of the best of its step, at worst, from step `since` on."""
    n, worst = len(apart), 0.0
    for step in range(since, len(order)):
        merit = {
            i: min(apart[i][j] for j in (order[:step] or range(n)) if j != i) for i in range(n) if i not in order[:step]
        }
        worst = max(worst, max(merit.values()) - merit[order[step]])
    return worst


def naive_order(apart: list[list[float]], count: int) -> list[int]:
    n, order = len(apart), []
    for _ in range(count):
        left = [i for i in range(n) if i not in order]
        order.append(max(left, key=lambda i: (min(apart[i][j] for j in (order or range(n)) if j != i), -i)))
    return order


def test_by_hand() -> None:
    """Directions at 0, 10, 90 and 200 degrees: 200 is loneliest, then 10 (170 away), then 90 (80 from 10), then 0."""
    angles = torch.tensor([0.0, 10, 90, 200]).deg2rad()
    rows = torch.stack((angles.cos(), angles.sin()), 1) * torch.tensor([[1.0], [5], [2], [3]])
    assert pick(rows, 4) == [3, 1, 2, 0]


@pytest.mark.parametrize("seed", range(4))
def test_equals_loops_on_random_rows(seed: int) -> None:
    rows = random_rows(60, 12, seed)
    assert pick(rows, 25) == naive_order(distances(rows), 25)


def test_first_may_be_the_farthest_from_the_mean() -> None:
    rows = random_rows(40, 6)
    unit = F.normalize(rows.double(), dim=-1)
    expected = int((unit @ unit.mean(0)).argmin())
    assert farthest_from_mean(F.normalize(rows, dim=-1)[None]).tolist() == [expected]


def test_blocks_of_the_first_comparison_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = F.normalize(random_rows(50, 8).view(2, 25, 8), dim=-1)
    whole = most_apart(unit)
    monkeypatch.setattr("sharp_demo.pruning.divprune.BLOCK", 7)
    assert torch.equal(most_apart(unit), whole)


def test_equal_rows_are_picked_once_each_by_index() -> None:
    assert pick(torch.ones(9, 5), 9) == list(range(9))
    rows = torch.cat((torch.ones(20, 16), random_rows(4, 16)))  # twenty equal rows and four others
    order = pick(rows, 10)
    assert len(set(order)) == 10
    assert set(order[:5]) == {20, 21, 22, 23, 0}
    assert order[5:] == [1, 2, 3, 4, 5]


def test_clusters_give_one_each() -> None:
    centres = torch.eye(6).repeat_interleave(7, 0)
    order = pick(centres + 0.01 * random_rows(42, 6), 6)
    assert sorted(i // 7 for i in order) == list(range(6))


def test_greedy_is_within_half_of_the_best() -> None:
    for seed in range(6):
        rows = random_rows(9, 3, seed)
        chord = torch.tensor(distances(rows)).mul(2).clamp(min=0).sqrt()

        def closest(chosen: tuple[int, ...], chord: Tensor = chord) -> float:
            return min(float(chord[i, j]) for i, j in combinations(chosen, 2))

        best = max(closest(chosen) for chosen in combinations(range(9), 4))
        assert closest(tuple(pick(rows, 4))) >= best / 2 - 1e-6


def test_fewer_picks_are_a_prefix() -> None:
    rows = random_rows(30, 8)
    assert pick(rows, 20)[:7] == pick(rows, 7)


def test_even_split_and_first_of_each() -> None:
    assert even_split(7, 3) == [2, 2, 3]
    assert even_split(2, 4) == [0, 1, 0, 1]
    ranked = torch.tensor([[2, 0], [1, 2], [0, 1]])
    assert first_of_each(ranked, [2, 0, 1], 3).tolist() == [0, 2, 6]


@pytest.mark.parametrize("scope", ["video", "frame"])
@pytest.mark.parametrize("first", ["nearest", "mean"])
def test_on_states_of_the_embedded_models(
    world: Prompt, scope: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pick is the best there is, to rounding; as a set it is what the run kept."""
    orders: list[Tensor] = []

    def noted(unit: Tensor, begin: Tensor, count: int) -> Tensor:
        orders.append(max_min_order(unit, begin, count))
        return orders[-1]

    monkeypatch.setattr("sharp_demo.pruning.divprune.max_min_order", noted)
    with DivPrune(retention=0.08, scope=scope, first=first)(world.model) as run:
        greedy(world, steps=1)
    (order,), rows = orders, frames_of(world)
    k = budget(0.08, len(world.layout))
    sets = [rows.flatten(0, 1)] if scope == "video" else list(rows)
    kept = []
    for at, (one, count) in enumerate(zip(sets, even_split(k, len(sets)), strict=True)):
        picks = order[at, :count].tolist()
        if picks:
            apart = (1 - (unit := F.normalize(one.double(), dim=-1)) @ unit.T).tolist()
            assert shortfall(apart, picks, since=int(first == "mean")) < 1e-5
        kept += [at * len(one) + i for i in picks]
    assert run.kept.tolist() == sorted(kept)
    assert len(run.kept) == k


def test_frames_share_the_budget_evenly(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size = prompt.layout.rows * prompt.layout.cols
    with DivPrune(retention=0.35, scope="frame")(prompt.model) as run:
        greedy(prompt, steps=1)
    counts = (run.kept // size).bincount(minlength=prompt.layout.frames).tolist()
    assert counts == even_split(budget(0.35, len(prompt.layout)), prompt.layout.frames)


def test_a_still_keeps_its_first_frame(tiny: Backbone) -> None:
    """Of equal tokens in every frame the lowest index is picked."""
    prompt = Prompt(tiny)
    size, frames = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    still = prompt.features.features[:size].expand(frames, -1, -1)
    with with_frames(prompt, still), DivPrune(retention=1 / frames)(prompt.model) as run:
        greedy(prompt, steps=1)
    assert run.kept.tolist() == list(range(size))
