"""How ShaRP came to its selection on one clip: the numbers and per-token codes of SegM, PosC and RegD."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sharp_demo.records import Result
from sharp_demo.views.overlay import colour_range

# Codes of the per-token pictures; `WALK_FATES` in the page's strings names them.
FATES = ("other", "register", "prefiltered", "absorbed", "pivot", "filled", "repaired", "gone", "added", "removed")


@dataclass(frozen=True)
class Walk:
    """The figures of one traced ShaRP result; every list of tokens holds slots.

    `visible` is the share of the causal visual pairs that SegM's mask leaves; `late_raw` and `late` the share of the
    top K tokens in the last third of the frames before and after debiasing; `late_frames` those frames' own share.
    """

    cosines: list[float]
    tau_seg: float
    segments: list[list[int]]
    visible: float
    registers: set[int]
    by_raw: set[int]
    late_frames: float
    late_raw: float
    late: float
    prefiltered: set[int]
    absorbed: dict[int, int]
    filled: set[int]
    repaired: set[int]

    @property
    def pivots(self) -> set[int]:
        """Registers that absorbed others."""
        return set(self.absorbed.values())


def walk_of(result: Result) -> Walk:
    """Return the figures of a ShaRP result that was made with its option `trace` and all modules on."""
    trace, layout = result.trace, result.layout
    per_frame = layout.rows * layout.cols
    registers = set(trace["registers"])
    by_raw = top(result.scores["raw"], len(registers))
    sizes = [(end - start) * per_frame for start, end in result.segments]
    late = range(-(-2 * layout.frames // 3) * per_frame, layout.tokens)
    return Walk(
        cosines=list(trace["cosines"]),
        tau_seg=result.config["tau_seg"],
        segments=result.segments,
        visible=sum(map(causal_pairs, sizes)) / causal_pairs(layout.tokens),
        registers=registers,
        by_raw=by_raw,
        late_frames=len(late) / layout.tokens,
        late_raw=share_in(by_raw, late),
        late=share_in(registers, late),
        prefiltered=set(trace["prefiltered"]),
        absorbed=dict(trace["absorbed"]),
        filled=set(trace["filled"]),
        repaired=set(trace["repaired"]),
    )


def top(scores: Sequence[float | None], k: int) -> set[int]:
    """Slots of the k highest scores; of equal ones the lower slot wins, as in `pruning.method.top_k`."""
    values = np.array([-np.inf if score is None else score for score in scores])
    return set(np.argsort(-values, kind="stable")[:k].tolist())


def heat_of(scores: Sequence[float | None]) -> tuple[np.ndarray, float, float]:
    """Return scores as uint8 [tokens] between the two ends of their colour range, and those ends."""
    low, high = colour_range(scores)
    values = np.array([low if score is None else score for score in scores])
    return np.round(np.clip((values - low) / ((high - low) or 1), 0, 1) * 255).astype(np.uint8), low, high


def causal_pairs(n: int) -> int:
    """Pairs of n tokens that see themselves and what is before them."""
    return n * (n + 1) // 2


def share_in(slots: set[int], part: range) -> float:
    return sum(slot in part for slot in slots) / max(len(slots), 1)


def steps_of(walk: Walk, tokens: int) -> list[tuple[str, np.ndarray]]:
    """Return the pictures of RegD: after the top K, pre-filtering, deduplication and filling, uint8 [tokens] each."""
    first = codes(tokens, register=walk.registers)
    second = first.copy()
    paint(second, walk.prefiltered, "prefiltered")
    third = second.copy()
    paint(third, walk.absorbed, "absorbed")
    paint(third, walk.pivots, "pivot")
    last = np.full(tokens, FATES.index("gone"), np.uint8)
    paint(last, walk.registers - set(walk.absorbed), "register")
    paint(last, walk.pivots, "pivot")
    paint(last, walk.filled, "filled")
    paint(last, walk.repaired, "repaired")
    return [("registers", first), ("prefilter", second), ("dedup", third), ("fill", last)]


def change_of(walk: Walk, tokens: int) -> np.ndarray:
    """Return the picture of what PosC changed among the top K: uint8 [tokens]."""
    both = walk.registers & walk.by_raw
    return codes(tokens, register=both, added=walk.registers - both, removed=walk.by_raw - both)


def codes(tokens: int, **sets: Iterable[int]) -> np.ndarray:
    """Return uint8 [tokens], "other" but for the named sets of slots."""
    picture = np.zeros(tokens, np.uint8)
    for fate, slots in sets.items():
        paint(picture, slots, fate)
    return picture


def paint(picture: np.ndarray, slots: Iterable[int], fate: str) -> None:
    """Set the code of some slots in place."""
    picture[list(slots)] = FATES.index(fate)
