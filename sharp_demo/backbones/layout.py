"""Where each visual token of a prompt sits: sequence index, frame, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sharp_demo import records
from sharp_demo.backbones.families import family_of
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


def visual_layout(config: Any, input_ids: Tensor, video_grid_thw: Tensor | None = None) -> VisualLayout:
    """Find the visual tokens of the one video in a prompt.

    Parameters
    ----------
    config : `model.config` of a supported family.
    input_ids : LongTensor [n] or [1, n], with placeholders expanded.
    video_grid_thw : LongTensor [1, 3], patches in time, height and width; needed for Qwen2-VL only.

    Raises
    ------
    ModelError : no video, more than one, placeholders that do not match the grid, or image placeholders.

    LLaVA-OneVision's last placeholder is the newline embedding: text, and no part of the layout.
    """
    family = family_of(config)
    if input_ids.ndim == 2 and input_ids.shape[0] != 1:
        raise ModelError(f"the batch has {input_ids.shape[0]} prompts; one prompt at a time is supported")
    ids = input_ids.reshape(-1)
    if bool((ids == config.image_token_id).any()):
        raise ModelError("the prompt holds image placeholders; only a single video is supported")
    found = (ids == family.visual_token_id(config)).nonzero().reshape(-1)
    if not found.numel():
        raise ModelError("the prompt holds no video")
    grid = None if video_grid_thw is None else video_grid_thw.reshape(-1, 3).tolist()
    index, (frames, rows, cols) = family.place(config, found, grid)
    return VisualLayout(
        index=index,
        frames=frames,
        rows=rows,
        cols=cols,
        frames_per_token=family.frames_per_token(config),
        length=ids.numel(),
    )
