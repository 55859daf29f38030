"""Where an example clip shows what its question asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """A stretch of a clip, [start, end) in seconds, and the part of the picture that matters.

    `box` is left, top, right, bottom as shares of the picture's width and height; None means any of it.
    """

    start: float
    end: float
    box: tuple[float, float, float, float] | None = None


def evidence_frames(evidence: Sequence[Evidence], timestamps: Sequence[float]) -> list[int]:
    """Return the frames whose time lies in any of the stretches."""
    return [frame for frame, time in enumerate(timestamps) if any(one.start <= time < one.end for one in evidence)]
