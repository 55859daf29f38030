"""Selections that know what no method can know: where the things are, or where this answer's evidence is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lab.world.records import INTERVALS, Cell, Question
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.errors import MethodError
from sharp_demo.pruning.method import SingleStage, knob
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.prefill import Prefill


@dataclass(frozen=True)
class Oracle(SingleStage):
    """Keep the given slots first, drawn at random where they are too many; fill up at random."""

    seed: int = knob(0, "seed of what is drawn at random", low=0)
    slots: tuple[int, ...] = knob((), "slots to keep first")

    def select(self, prefill: Prefill, k: int) -> Selection:
        n = len(prefill.rows)
        if any(not 0 <= slot < n for slot in self.slots):
            raise MethodError(f"{self.name}: a slot is outside 0..{n - 1}, the visual tokens of this video")
        order = torch.rand(n, generator=torch.Generator().manual_seed(self.seed))
        order[list(self.slots)] += 1
        return Selection(order.topk(k).indices.sort().values.to(prefill.rows.device))


@dataclass(frozen=True)
class SaliencyOracle(Oracle):
    """Knows every thing in the clip, but not the question."""

    name = "saliency"
    title = "Saliency oracle"
    summary = "Ceiling of question-blind selection: tokens that hold a thing, whatever is asked."


@dataclass(frozen=True)
class EvidenceOracle(Oracle):
    """Knows which tokens this very answer needs."""

    name = "evidence"
    title = "Evidence oracle"
    summary = "Ceiling: the tokens that hold the answer, then random ones."
    question_aware = True


def slots_of(cells: Iterable[Cell], layout: VisualLayout, grid: int) -> tuple[int, ...]:
    """Slots of all tokens that overlap the given cells of a clip, ascending; a layout may be finer than the cells.

    grid : cells along one side of the picture.
    """

    def span(index: int, parts: int, size: int) -> range:
        return range(index * size // parts, -(-(index + 1) * size // parts))

    return tuple(
        sorted(
            {
                (frame * layout.rows + row) * layout.cols + col
                for interval, cell_row, cell_col in cells
                for frame in span(interval, INTERVALS, layout.frames)
                for row in span(cell_row, grid, layout.rows)
                for col in span(cell_col, grid, layout.cols)
            }
        )
    )


def evidence_slots(question: Question, layout: VisualLayout, grid: int) -> tuple[int, ...]:
    """Slots of a question's evidence cells; where any token of the right frames will do, all of those frames."""
    if question.evidence_cells:
        return slots_of(question.evidence_cells, layout, grid)
    first, last = question.evidence_frames
    return slots_of(
        (
            (i, row, col)
            for i in range(first, min(last, INTERVALS - 1) + 1)
            for row in range(grid)
            for col in range(grid)
        ),
        layout,
        grid,
    )
