"""How a method has a video shown to the model, and what the vision tower computes for it. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True)
class TowerMerging:
    """Patches of a frame merge between the layers of the vision tower (ToMe), as many in each layer but the last.

    Attributes
    ----------
    share : patches left behind the last layer.
    proportional : a merged patch weighs in attention as much as those that it stands for.
    """

    share: float
    proportional: bool = True

    def counts(self, patches: int, layers: int) -> list[int]:
        """Return the patches that enter each of `layers` layers, and last those that are left.

        At most half of a layer's patches merge in it, so a small share of a shallow tower is not reached. Nothing
        merges in the last layer: that would save its MLP only.
        """
        goal, merging = max(1, round(self.share * patches)), layers - 1
        counts = [patches]
        for layer in range(merging):
            wanted = patches - round((patches - goal) * (layer + 1) / merging)
            counts.append(max(wanted, counts[-1] - counts[-1] // 2))
        return [*counts, counts[-1]]


@dataclass(frozen=True)
class View:
    """How a video is shown to the model, where not as it is.

    Attributes
    ----------
    frames : layout frames, evenly spaced; None: all. cells : (rows, cols) of a frame's tokens; None: as ever.
    merging : what happens in the vision tower; None: nothing.
    """

    frames: int | None = None
    cells: tuple[int, int] | None = None
    merging: TowerMerging | None = None

    def sampled(self, count: int, step: int) -> list[int]:
        """Return which of `count` sampled frames are shown, `step` of them to a layout frame: the middles of parts."""
        shown = count if self.frames is None else min(count, self.frames * step)
        return [(2 * i + 1) * count // (2 * shown) for i in range(shown)]


WHOLE = View()
"""The video as it is."""


@dataclass(frozen=True)
class VideoShape:
    """The layout of a whole video; `resizable` where the vision tower takes frames of other sizes."""

    frames: int
    rows: int
    cols: int
    resizable: bool

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.cols

    def seen(self, view: View) -> VideoShape:
        """Return the layout of what a view shows."""
        rows, cols = view.cells or (self.rows, self.cols)
        frames = self.frames if view.frames is None else min(self.frames, view.frames)
        return replace(self, frames=frames, rows=rows, cols=cols)


@dataclass(frozen=True)
class TowerShape:
    """The dimensions of a vision tower that decide its cost for one layout frame.

    Attributes
    ----------
    width, intermediate, layers, head_dim : of its layers; `matrices` of each MLP (3 where it is gated).
    patches : of a frame. values : of a patch's pixels.
    pairs : (query, key) pairs of each layer where patches attend in windows; empty where all attend to all.
    former : multiply-adds of what turns the patches into visual tokens.
    """

    width: int
    intermediate: int
    layers: int
    head_dim: int
    patches: int
    values: int
    former: int
    matrices: int = 2
    pairs: tuple[int, ...] = ()

    def macs(self, merging: TowerMerging | None = None) -> int:
        """Return the multiply-adds of one layout frame, with those that find what to merge."""
        counts = self._counts(merging)
        layers = sum(
            4 * n * self.width**2 + 2 * pairs * self.width + self.matrices * after * self.width * self.intermediate
            for n, pairs, (_, after) in zip(counts, self._pairs(counts), pairwise(counts), strict=False)
        )
        matched = [n for n, after in pairwise(counts) if after < n]
        matching = sum((n - n // 2) * (n // 2) * self.head_dim for n in matched)
        return self.patches * self.values * self.width + layers + matching + self.former

    def paper_macs(self, merging: TowerMerging | None = None) -> int:
        """Return the same as the pruning papers count a decoder: 4nd^2 + 2n^2 d + 2ndm a layer, and nothing else."""
        d, m, counts = self.width, self.intermediate, self._counts(merging)
        return sum(4 * n * d**2 + 2 * n**2 * d + 2 * after * d * m for n, after in pairwise(counts))

    def _counts(self, merging: TowerMerging | None) -> list[int]:
        return [self.patches] * (self.layers + 1) if merging is None else merging.counts(self.patches, self.layers)

    def _pairs(self, counts: Sequence[int]) -> Sequence[int]:
        return self.pairs or [n * n for n in counts]
