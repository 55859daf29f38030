"""A question about a rendered clip: that of the drawn world, with the boxes of its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from lab.world import records


@dataclass(frozen=True)
class Question(records.Question):
    """As `lab.world.records.Question`, on a grid of 10 x 10 cells.

    Attributes
    ----------
    evidence_boxes : (interval, left, top, right, bottom) of what decides the answer, as shares of the picture's side.
    """

    evidence_boxes: tuple[tuple[int, float, float, float, float], ...] = ()
