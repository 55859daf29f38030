"""A pruned prefill for people: what was kept of every frame, and where the time went, as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharp_demo.pruning.outcome import Run

CELL = 4  # pixels of one visual token in the HTML grid


@dataclass(frozen=True)
class RunReport:
    """What `Run.report()` returns: prints as text, and shows as a picture in a notebook.

    Attributes
    ----------
    title : the method.
    kept : slots (0..N-1, frame by frame, row by row) that survived, ascending.
    frames, rows, cols : the layout of the N = frames * rows * cols visual tokens; 0 where no video was seen.
    stages : milliseconds per stage of the method.
    note : why nothing was pruned, where nothing could be.
    """

    title: str
    kept: tuple[int, ...]
    frames: int
    rows: int
    cols: int
    stages: Mapping[str, float]
    note: str = ""

    @classmethod
    def of(cls, run: Run) -> RunReport:
        """Read the report off a run; on an accelerator this waits for the prefill."""
        layout = run.layout
        size = (0, 0, 0) if layout is None else (layout.frames, layout.rows, layout.cols)
        kept = () if layout is None else tuple(run.kept.tolist())
        return cls(run.method.title, kept, *size, dict(run.stages), run.note)

    @property
    def per_frame(self) -> tuple[int, ...]:
        """Tokens kept of each layout frame."""
        counts = [0] * self.frames
        for slot in self.kept:
            counts[slot // (self.rows * self.cols)] += 1
        return tuple(counts)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._lines())
        pictures = "".join(self._picture(frame) for frame in range(self.frames))
        return f'<div>{lines}<div style="display:flex;flex-wrap:wrap;gap:4px">{pictures}</div></div>'

    def _lines(self) -> list[str]:
        total = self.frames * self.rows * self.cols
        if not total:
            return [f"{self.title}: {self.note or 'no video was seen'}"]
        times = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in self.stages.items())
        return [
            f"{self.title}: {len(self.kept)} of {total} visual tokens kept ({len(self.kept) / total:.1%})",
            f"per frame, of {self.rows * self.cols}: {' '.join(map(str, self.per_frame))}",
            *([f"stages: {times}"] if times else []),
        ]

    def _picture(self, frame: int) -> str:
        """One frame as SVG: a dark square for each token that was kept."""
        size, width, height = self.rows * self.cols, self.cols * CELL, self.rows * CELL
        slots = (slot - frame * size for slot in self.kept if slot // size == frame)
        corners = ((slot % self.cols * CELL, slot // self.cols * CELL) for slot in slots)
        path = "".join(f"M{x} {y}h{CELL}v{CELL}h-{CELL}z" for x, y in corners)
        return (
            f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'
            f"<title>frame {frame + 1}: {self.per_frame[frame]} of {size} tokens kept</title>"
            f'<rect width="{width}" height="{height}" fill="#ddd"/><path d="{path}" fill="#333"/></svg>'
        )
