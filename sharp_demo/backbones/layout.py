"""Where each visual token of a prompt sits: sequence index, frame, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from sharp_demo import records
from sharp_demo.errors import ModelError


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """The visual tokens of one video in a prompt, N = frames * rows * cols, frame by frame and row by row.

    `index` is LongTensor [N], the position of each visual token in the prompt. One layout frame covers
    `frames_per_token` sampled frames; `length` is the whole prompt's length in tokens.
    """

    index: Tensor
    frames: int
    rows: int
    cols: int
    frames_per_token: int
    length: int

    def __len__(self) -> int:
        return self.frames * self.rows * self.cols

    @property
    def frame(self) -> Tensor:
        """Layout frame of each visual token, LongTensor [N]."""
        return self._slots // (self.rows * self.cols)

    @property
    def row(self) -> Tensor:
        """Row of each visual token in its frame, LongTensor [N]."""
        return self._slots // self.cols % self.rows

    @property
    def col(self) -> Tensor:
        """Column of each visual token in its frame, LongTensor [N]."""
        return self._slots % self.cols

    @property
    def _slots(self) -> Tensor:
        return torch.arange(len(self), device=self.index.device)

    def record(self, timestamps: Sequence[float]) -> records.Layout:
        """The plain-data record; a layout frame's time is the mean of the sampled frames it covers.

        `timestamps` are the seconds of the T sampled frames. Raises `ModelError` when T does not fit the layout.
        """
        step = self.frames_per_token
        groups = [timestamps[start : start + step] for start in range(0, len(timestamps), step)]
        if len(groups) != self.frames:
            raise ModelError(
                f"{len(timestamps)} timestamps do not fit {self.frames} layout frames of {step} sampled frames each"
            )
        times = tuple(fmean(group) for group in groups)
        return records.Layout(self.frames, self.rows, self.cols, step, times)
