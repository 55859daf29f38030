"""Frames to pixels, without torchvision: what all preprocessing has in common. Importing this loads no torch.

A subclass in a family's module reads the numbers of a checkpoint's preprocessor files and equals transformers' video
processor bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sharp_demo.backbones.files import read_json
from sharp_demo.errors import ModelError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from transformers import ProcessorMixin
    from transformers.video_processing_utils import BaseVideoProcessor

    from sharp_demo.backbones.layout import VisualLayout
else:
    np, torch, F = LazyModule("numpy"), LazyModule("torch"), LazyModule("torch.nn.functional")

Grid = list[list[int]]  # video_grid_thw: one [t, h, w] in patches per video

TOKENS_PER_FRAME = 180  # visual tokens a layout frame at most, where frames keep their aspect: ShaRP Table 2, 16 x 180
LANCZOS, BICUBIC = 1, 3  # as Pillow numbers its filters
FILTERS = {LANCZOS: "lanczos", BICUBIC: "bicubic"}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What transformers 5.23's video processor classes assume for keys a checkpoint's file does not have.
DEFAULTS: dict[str, Any] = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "rescale_factor": 1 / 255,
}


@dataclass(frozen=True)
class VideoPreprocessor(ABC):
    """The numbers of one checkpoint's video preprocessing, and the preprocessing itself.

    Attributes
    ----------
    official : transformers' class that this one equals.
    defaults : what that class assumes in addition to `DEFAULTS`.
    resizable : `sized` makes frames of another size, which the vision tower takes.
    resample : the one filter it resizes with, by Pillow's number.
    image_mean, image_std, rescale_factor : per RGB channel, on pixel values times `rescale_factor`.
    """

    official: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    resizable: ClassVar[bool] = False
    resample: ClassVar[int] = BICUBIC

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float

    @classmethod
    def from_folder(cls, folder: Path, tokens_per_frame: int | None = None) -> Self:
        """Read a checkpoint folder as transformers does.

        Precedence: `video_processor` in processor_config.json, then video_preprocessor_config.json, then
        preprocessor_config.json; class defaults for missing keys. Raises `ModelError` when there is no such file.
        """
        values = read_json(folder / "processor_config.json").get("video_processor")
        for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
            values = values or read_json(folder / name)
        if not values:
            raise ModelError(f"{folder} has no preprocessor_config.json or video_preprocessor_config.json")
        return cls.from_values(values, tokens_per_frame)

    @classmethod
    def from_official(cls, processor: ProcessorMixin | BaseVideoProcessor, tokens_per_frame: int | None = None) -> Self:
        """Take the numbers from a transformers processor, or from its `video_processor`."""
        official = getattr(processor, "video_processor", processor)
        if type(official).__name__ != cls.official:
            raise ModelError(f"{type(official).__name__} is not the model's video processor, which is {cls.official}")
        return cls.from_values(official.to_dict(), tokens_per_frame)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], tokens_per_frame: int | None = None) -> Self:
        """Build from the keys of a preprocessor file. Raises `ModelError` for a step this code does not do.

        `tokens_per_frame` bounds the visual tokens of a layout frame where the size follows the video; None: no bound.
        """
        given = {key: value for key, value in values.items() if value is not None}
        merged = {**DEFAULTS, "resample": cls.resample, **cls.defaults, **given}
        if merged["resample"] != cls.resample:
            only = f"{cls.resample} ({FILTERS[cls.resample]})"
            raise ModelError(f"preprocessor: resample={merged['resample']} is not supported, only {only}")
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not merged.get(step, True):
                raise ModelError(f"preprocessor: {step}=false is not supported")
        if merged.get("do_center_crop"):
            raise ModelError("preprocessor: do_center_crop=true is not supported")
        return cls(
            image_mean=tuple(merged["image_mean"]),
            image_std=tuple(merged["image_std"]),
            rescale_factor=merged["rescale_factor"],
            **cls.own_values(merged, tokens_per_frame),
        )

    @classmethod
    @abstractmethod
    def own_values(cls, values: Mapping[str, Any], tokens_per_frame: int | None) -> dict[str, Any]:
        """Read the fields of the subclass from the keys of a preprocessor file, `defaults` filled in."""

    @abstractmethod
    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return height and width in pixels to which `frames` frames of the given size are resized."""

    def grid(self, frames: int, height: int, width: int) -> Grid | None:
        """Return `video_grid_thw` of such a video, [[t, h, w]] in patches; None for families without."""
        return None

    def sized(self, rows: int, cols: int) -> Self:
        """Return what makes frames of rows x cols tokens; only where `resizable`."""
        raise ModelError("the vision tower of this model takes frames of one size only")

    @abstractmethod
    def arrange(self, x: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs for normalised frames [T, 3, h, w] of the model's size; see `pixels`."""

    @abstractmethod
    def black_frame(self, layout: VisualLayout) -> Tensor:
        """Return the black (RGB 0) sampled frames, uint8 [T, 3, h, w], that one layout frame of `layout` is made of."""

    def pixels(self, frames: np.ndarray) -> dict[str, Tensor]:
        """Preprocess uint8 frames [T, H, W, 3] into what the vision tower takes, in float32."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
        return self.from_resized(self.resize(x))

    def resize(self, x: Tensor) -> Tensor:
        """Return uint8 frames [T, 3, H, W] in the model's size."""
        size = self.resized(len(x), *x.shape[2:])
        if size == tuple(x.shape[2:]):
            return x
        return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)

    def from_resized(self, x: Tensor) -> dict[str, Tensor]:
        """Normalise and arrange uint8 frames [T, 3, h, w] that already have the model's size; returns as `pixels`."""
        mean = torch.tensor(self.image_mean)[:, None, None] * (1.0 / self.rescale_factor)
        std = torch.tensor(self.image_std)[:, None, None] * (1.0 / self.rescale_factor)
        return self.arrange(x.float().sub_(mean).div_(std))
