"""Vision features, computed once per video and shared by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.family import Encoded, Family
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.merging import merging_tower
from sharp_demo.backbones.preprocessing import VideoPreprocessor
from sharp_demo.backbones.signals import VisionSignals, tapped
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.errors import UnsupportedError

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of so many bytes
CHUNK_FRAMES = 8  # sampled frames per pass through the vision tower: bounds its memory


@dataclass(frozen=True, eq=False)
class VideoFeatures(Encoded):
    """What the language model of a `family` sees of a video, in the model's dtype.

    `encoded` of the layout frames went through the tower: the others equal one of them. `signals` are there when
    `encode_video` was asked for them, and `merging` says what merged in the tower.
    """

    family: Family
    encoded: int
    signals: VisionSignals | None = None
    merging: TowerMerging | None = None


@dataclass
class EncodedVideo(BaseModelOutputWithPooling):
    """What the vision tower returns, with its signals for methods that choose by them, and what merged in it.

    `generate` copies it, and a copy has the declared fields only: those of all families stand here.
    """

    deepstack_features: list[tuple[Tensor, ...]] | None = None
    signals: VisionSignals | None = None
    merging: TowerMerging | None = None


@torch.no_grad()
def encode_video(
    model: PreTrainedModel,
    pixels: Mapping[str, Tensor],
    chunk_frames: int = CHUNK_FRAMES,
    *,
    signals: bool = False,
    merging: TowerMerging | None = None,
) -> VideoFeatures:
    """Run the vision tower and projector over `VideoPreprocessor.pixels`, `chunk_frames` sampled frames at a time.

    Of layout frames whose pixels are equal bit for bit only the first is encoded. Layout frames do not attend to each
    other, so neither that nor chunks change anything but the shape of the matrix products: a video of at most
    `chunk_frames` frames is bit-identical to the model's own pass, a longer one within rounding (measured on CPU in
    float32 and bfloat16, 32 frames: no difference). With `signals` the last layer's attention is read as well, for
    methods with `needs_vision`. With `merging` patches merge between the tower's layers. Raises UnsupportedError for
    both at once, and for a tower that cannot do one.
    """
    if signals and merging:
        raise UnsupportedError("attention of the vision tower cannot be read while patches merge inside it")
    family = family_of(model.config)
    frames = family.by_frame(pixels)
    source = first_equal(frames)
    distinct = sorted(set(source))
    if len(distinct) < len(source):
        pixels = family.of_frames(pixels, frames[distinct])
    tower = merging_tower(family.tower_layers(model), merging) if merging else nullcontext()
    with tower, tapped(model) if signals else nullcontext() as tap:
        encoded = family.encode(model, pixels, chunk_frames)
    seen = VideoFeatures(
        **vars(encoded),
        family=family,
        encoded=len(distinct),
        signals=tap.signals() if tap is not None else None,
        merging=merging,
    )
    return _spread(seen, [distinct.index(frame) for frame in source]) if len(distinct) < len(source) else seen


def first_equal(frames: Tensor) -> list[int]:
    """Return for each of frames [F, ...] the first one that is equal to it bit for bit."""
    bits = frames.flatten(1).view(BITS[frames.element_size()])
    found: dict[int, list[int]] = {}  # frames that are unlike each other, by a sum that equal ones share
    source = []
    for number, total in enumerate(bits.sum(1, dtype=torch.int64).tolist()):
        alike = found.setdefault(total, [])
        same = next((other for other in alike if torch.equal(bits[other], bits[number])), number)
        if same == number:
            alike.append(number)
        source.append(same)
    return source


def _spread(seen: VideoFeatures, place: Sequence[int]) -> VideoFeatures:
    """Return the features of a video whose layout frame i is frame place[i] of the one that was seen."""
    size = (len(seen.features) - seen.family.newlines) // seen.frames
    at = torch.tensor(place, device=seen.features.device)

    def spread(rows: Tensor) -> Tensor:
        frames = rows[: seen.frames * size].unflatten(0, (seen.frames, size))
        return torch.cat((frames[at].flatten(0, 1), rows[seen.frames * size :]))

    signals = seen.signals
    return replace(
        seen,
        features=spread(seen.features),
        frames=len(place),
        injections=tuple(map(spread, seen.injections)),
        signals=signals and replace(signals, received=spread(signals.received), keys=spread(signals.keys)),
    )


def model_inputs(prompt: Mapping[str, Tensor], features: VideoFeatures) -> dict[str, Any]:
    """Keyword arguments for `forward` or `generate` that reuse `features` instead of running the tower again.

    `prompt` is `Processor.prompt`'s answer; its tensors are moved to the features' device. Do not add pixels.
    """
    family, output = features.family, EncodedVideo(signals=features.signals, merging=features.merging)
    for name, value in family.encoder_output(features).items():
        setattr(output, name, value)
    inputs: dict[str, Any] = {key: value.to(features.features.device) for key, value in prompt.items()}
    return {**inputs, "mm_encoder_outputs": {family.features_key: output}}


def black_features(model: PreTrainedModel, video: VideoPreprocessor, layout: VisualLayout) -> VideoFeatures:
    """Return features [N, d] and injections of an all-black (RGB 0) video of the same layout, without newlines.

    Black goes through the same normalisation (a zero tensor would be mid-grey for SigLIP). One layout frame is
    encoded and tiled: every frame of a black video is the same. Source: ShaRP, the text before Eq. 5.
    """
    one = encode_video(model, video.from_resized(video.black_frame(layout)))

    def tiled(rows: Tensor) -> Tensor:
        return rows[: layout.rows * layout.cols].repeat(layout.frames, 1)

    injections = tuple(tiled(rows) for rows in one.injections)
    return replace(one, features=tiled(one.features), frames=layout.frames, injections=injections)


def black_video(
    model: PreTrainedModel, video: VideoPreprocessor, layout: VisualLayout, features: VideoFeatures
) -> VideoFeatures:
    """Return the features of a black video in the place of `features`, whose newlines stay."""
    black = black_features(model, video, layout)
    rest = features.features[len(layout) :]
    injections = tuple(rows.to(rest) for rows in black.injections)
    return replace(features, features=torch.cat((black.features.to(rest), rest)), injections=injections)
