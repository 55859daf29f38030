"""What differs between the supported model families, in one table.

No torch: the table is plain arithmetic on a checkpoint's config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sharp_demo.errors import ModelError

Grid = Sequence[Sequence[int]]  # video_grid_thw: one [t, h, w] in patches per video


@dataclass(frozen=True)
class Family:
    """One model family: its transformers classes and how its video placeholders are laid out.

    `shape(config, placeholders, grid)` returns (frames, rows, cols) of the visual tokens. The last `newlines`
    placeholders carry the video's token id but are text. `placeholders(config, frames, grid)` counts both kinds.
    """

    name: str
    model_type: str
    model_class: str
    video_processor: str
    newlines: int
    needs_grid: bool
    frames_per_token: Callable[[Any], int]
    shape: Callable[[Any, int, Grid | None], tuple[int, int, int]]

    def placeholders(self, config: Any, frames: int, grid: Grid | None = None) -> int:
        """Number of placeholder ids that a prompt for `frames` sampled frames must hold."""
        if self.needs_grid:
            frames, rows, cols = self.shape(config, 0, grid)
        else:
            rows = cols = pooled_side(config)
        return frames * rows * cols + self.newlines


def pooled_side(config: Any) -> int:
    """Tokens along one side of a LLaVA-OneVision frame: the patch grid after 2x2 pooling, rounded up."""
    return math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)


def _llava_shape(config: Any, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
    side = pooled_side(config)
    frames, rest = divmod(placeholders - 1, side * side)
    if rest or frames < 1:
        raise ModelError(
            f"the prompt has {placeholders} video placeholders, which is not one video: a frame takes {side * side} "
            "and the video ends with one newline placeholder"
        )
    return frames, side, side


def _qwen_shape(config: Any, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
    if grid is None:
        raise ModelError("video_grid_thw is missing: without it the layout of a Qwen2-VL video is unknown")
    if len(grid) != 1:
        raise ModelError(f"the request has {len(grid)} videos in video_grid_thw; exactly one is supported")
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(side) for side in grid[0])
    return t, h // merge, w // merge


FAMILIES = (
    Family(
        name="llava-onevision",
        model_type="llava_onevision",
        model_class="LlavaOnevisionForConditionalGeneration",
        video_processor="LlavaOnevisionVideoProcessor",
        newlines=1,
        needs_grid=False,
        frames_per_token=lambda config: 1,
        shape=_llava_shape,
    ),
    Family(
        name="qwen2-vl",
        model_type="qwen2_vl",
        model_class="Qwen2VLForConditionalGeneration",
        video_processor="Qwen2VLVideoProcessor",
        newlines=0,
        needs_grid=True,
        frames_per_token=lambda config: int(config.vision_config.temporal_patch_size),
        shape=_qwen_shape,
    ),
)


def family_of(config: Any) -> Family:
    """The family of a checkpoint's config; `ModelError` names the supported ones."""
    return family_of_type(getattr(config, "model_type", None))


def family_of_type(model_type: Any) -> Family:
    """The family of a config's `model_type`; `ModelError` names the supported ones."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise ModelError(f"the checkpoint's architecture {model_type!r} is not supported; supported are {supported}")
