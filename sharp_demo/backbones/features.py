"""Vision features, computed once per video and shared by every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.processor import VideoPreprocessor
from sharp_demo.backbones.signals import VisionSignals, tapped

CHUNK_FRAMES = 8  # sampled frames per pass through the vision tower: bounds its memory


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """What the language model sees of a video.

    `features` is [n, d] in the model's dtype, in prompt order; for LLaVA-OneVision the last row is the newline.
    `grid_thw` is LongTensor [1, 3] for Qwen2-VL, else None. `frames` counts layout frames. `signals` are there
    when `encode_video` was asked for them.
    """

    features: Tensor
    grid_thw: Tensor | None
    frames: int
    signals: VisionSignals | None = None


@dataclass
class EncodedVideo(BaseModelOutputWithPooling):
    """What `get_video_features` returns, and the tower's signals for methods that choose by them."""

    signals: VisionSignals | None = None


@torch.no_grad()
def encode_video(
    model: Any, pixels: Mapping[str, Tensor], chunk_frames: int = CHUNK_FRAMES, *, signals: bool = False
) -> VideoFeatures:
    """Run the vision tower and projector over `VideoPreprocessor.pixels`, `chunk_frames` sampled frames at a time.

    Frames (LLaVA-OneVision) and temporal patches (Qwen2-VL) do not attend to each other, so chunks change nothing
    but the shape of the matrix products: a video of at most `chunk_frames` frames is bit-identical to the model's
    own pass, a longer one within rounding (measured on CPU in float32 and bfloat16, 32 frames: no difference).
    With `signals` the last layer's attention is read as well, for methods with `needs_vision`.
    """
    if signals:
        with tapped(model) as tap:
            features = encode_video(model, pixels, chunk_frames)
        return replace(features, signals=tap.signals())
    features, frames = family_of(model.config).encode(model, pixels, chunk_frames)
    return VideoFeatures(features, pixels.get("video_grid_thw"), frames)


def model_inputs(prompt: Mapping[str, Tensor], features: VideoFeatures) -> dict[str, Any]:
    """Keyword arguments for `forward` or `generate` that reuse `features` instead of running the tower again.

    `prompt` is `Processor.prompt`'s answer; its tensors are moved to the features' device. Do not add pixels.
    """
    inputs: dict[str, Any] = {key: value.to(features.features.device) for key, value in prompt.items()}
    inputs.pop("pixel_values_videos", None)
    rows = features.features
    # LLaVA-OneVision reads a batch [1, n, d], Qwen2-VL one tensor per video.
    pooled = rows[None] if features.grid_thw is None else (rows,)
    inputs["mm_encoder_outputs"] = {"video": EncodedVideo(pooler_output=pooled, signals=features.signals)}
    return inputs


def black_features(model: Any, video: VideoPreprocessor, layout: VisualLayout) -> Tensor:
    """Features of an all-black (RGB 0) video of the same layout, [N, d], without the newline.

    Black goes through the same normalisation (a zero tensor would be mid-grey for SigLIP). One layout frame is
    encoded and tiled: every frame of a black video is the same. Source: ShaRP, the text before Eq. 5.
    """
    if video.size is not None:
        height, width = video.size
    else:
        height, width = layout.rows * video.cell, layout.cols * video.cell
    black = torch.zeros(video.temporal_patch_size, 3, height, width, dtype=torch.uint8)
    rows = encode_video(model, video.from_resized(black)).features[: layout.rows * layout.cols]
    return rows.repeat(layout.frames, 1)


def black_video(model: Any, video: VideoPreprocessor, layout: VisualLayout, features: VideoFeatures) -> VideoFeatures:
    """Return the features of a black video in the place of `features` (LLaVA-OneVision's newline kept)."""
    black = black_features(model, video, layout)
    rest = features.features[len(black) :]
    return replace(features, features=torch.cat((black.to(rest), rest)))
