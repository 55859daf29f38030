"""Clips put together from cached scenes, and the few tokens and questions of them that a training step sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from lab.tabletop.plan import scene_lengths
from lab.tabletop.questions import UNANSWERABLE, UNKNOWN_WORD, Fact, facts_of, put, unanswerable
from lab.tabletop.truth import GRID, Truth
from lab.tabletop.vision import CELLS
from lab.world.packing import Sample
from lab.world.records import INTERVALS

SLOTS = INTERVALS * CELLS
WHOLE = {"count_things", "more", "way"}  # kinds that need more than one look at each thing


class Pool:
    """Cached scenes with the features of their frames, and new clips put together from them."""

    def __init__(self, scenes: Sequence[Truth | None], features: Tensor) -> None:
        self.features = features.reshape(-1, *features.shape[2:])  # [frames * 100, 4, d]
        self.by_length: dict[int, list[tuple[Truth, int]]] = defaultdict(list)
        self.foreign: list[int] = []
        start = 0
        for scene in scenes:
            if scene is None:
                self.foreign.append(start)
            else:
                self.by_length[scene.length].append((scene, start))
            start += INTERVALS if scene is None else scene.length
        if start != len(features):
            raise ValueError(f"the scenes last {start} intervals, the features {len(features)}")

    def clip(self, rng: np.random.Generator) -> tuple[tuple[Truth, ...], np.ndarray]:
        """A clip of cached scenes: (scenes, row of the features of each of the 1,600 slots)."""
        while True:
            chosen: list[tuple[Truth, int]] = []
            for length in scene_lengths(rng):
                fitting = [
                    (scene, start)
                    for scene, start in self.by_length[length]
                    if all(scene.surface != other.surface for other, _ in chosen)
                ]
                if not fitting:
                    break
                chosen.append(fitting[int(rng.integers(len(fitting)))])
            else:
                break
        rows = np.concatenate([np.arange(start * CELLS, (start + scene.length) * CELLS) for scene, start in chosen])
        return tuple(scene for scene, _ in chosen), rows


def draw_sample(
    rng: np.random.Generator,
    pool: Pool,
    *,
    questions: int,
    kinds: Mapping[str, float],
    things: int | None,
    background: int | None,
    foreign: float,
) -> Sample:
    """A clip with a few of its questions and, at true positions, a few of its tokens.

    `things` are fed as they are seen in one to three intervals, with `background` other tokens, at least one for each
    scene; None feeds everything. Only questions whose evidence is fed are asked; `kinds` weighs them. A share `foreign`
    of the clips is of no table: whatever is asked about them cannot be told.
    """
    scenes, rows = pool.clip(rng)
    if pool.foreign and rng.random() < foreign:
        start = pool.foreign[int(rng.integers(len(pool.foreign)))]
        rows = np.arange(start * CELLS, (start + INTERVALS) * CELLS)
        slots = np.arange(SLOTS)
        if background is not None:
            slots = np.sort(rng.choice(SLOTS, min(SLOTS, background + 8), replace=False))
        facts = facts_of(scenes)
        asked = [_untold(facts[int(i)], rng) for i in rng.integers(len(facts), size=max(1, questions // 2))]
        return Sample(slots, rows[slots], tuple(put(fact, rng) for fact in asked))
    looks = _looks(rng, scenes, things)
    starts = np.cumsum([0, *(scene.length for scene in scenes)]).tolist()
    slots = np.arange(SLOTS) if background is None else _slots(rng, scenes, starts, looks, background)
    possible: dict[str, list[Fact]] = defaultdict(list)
    for fact in [*facts_of(scenes), *unanswerable(rng, scenes)]:
        if kinds.get(fact.kind, 0) > 0 and _is_fed(fact, looks, whole=things is None):
            possible[fact.kind].append(fact)
    names = list(possible)
    weights = np.array([kinds[name] for name in names])
    facts = []
    for name in rng.choice(names, questions, p=weights / weights.sum()):
        if possible[name]:
            facts.append(possible[name].pop(int(rng.integers(len(possible[name])))))
    return Sample(slots, rows[slots], tuple(put(fact, rng) for fact in facts))


def _untold(fact: Fact, rng: np.random.Generator) -> Fact:
    text = put(fact, rng).text
    return Fact(UNANSWERABLE, UNKNOWN_WORD, (("text", text),), (0, INTERVALS - 1), spread=True)


def _looks(
    rng: np.random.Generator, scenes: Sequence[Truth], things: int | None
) -> dict[tuple[int, int], tuple[int, ...]]:
    """The intervals in which things are fed, by (start of the scene, track's identity)."""
    tracks, start = [], 0
    for scene in scenes:
        tracks += [(start, track) for track in scene.tracks if track.seen]
        start += scene.length
    chosen = [tracks[i] for i in rng.permutation(len(tracks))[:things]]
    if things is None:
        return {(start, id(track)): track.seen for start, track in chosen}
    looks = {}
    for start, track in chosen:
        count = int(rng.integers(1, 4))
        some = set(rng.choice(track.seen, min(count, len(track.seen)), replace=False).tolist())
        if track.air:
            some.add(int(rng.choice(track.air)))
        elif track.act in ("slide", "cross", "leave"):
            some |= {track.seen[0], track.seen[-1]}
        looks[start, id(track)] = tuple(sorted(some))
    return looks


def _slots(
    rng: np.random.Generator, scenes: Sequence[Truth], starts: Sequence[int],
    looks: Mapping[tuple[int, int], tuple[int, ...]], background: int,
) -> np.ndarray:  # fmt: skip
    taken, filled = set(), set()
    for scene, start in zip(scenes, starts[:-1], strict=True):
        for track in scene.tracks:
            fed = looks.get((start, id(track)), ())
            for interval, cells in track.cells.items():
                here = {(start + interval) * CELLS + row * GRID + col for row, col in cells}
                taken |= here
                if interval in fed:
                    filled |= here
    empty = np.array(sorted(set(range(SLOTS)) - taken))
    bounds = pairwise(starts)
    each = [int(rng.choice(empty[(empty >= a * CELLS) & (empty < b * CELLS)])) for a, b in bounds]
    more = rng.choice(empty, max(0, background - len(each)), replace=False).tolist()
    return np.array(sorted({*filled, *each, *more}))


def _is_fed(fact: Fact, looks: Mapping[tuple[int, int], tuple[int, ...]], *, whole: bool) -> bool:
    """Whether what is fed tells the answer: for each thing of the evidence, one look at least."""
    if whole:
        return True
    if fact.kind in WHOLE:
        return False
    needed: dict[tuple[int, int], set[int]] = defaultdict(set)
    for start, track, interval in fact.evidence:
        needed[start, id(track)].add(interval)
    return all(intervals & set(looks.get(key, ())) for key, intervals in needed.items())
