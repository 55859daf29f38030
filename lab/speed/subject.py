"""What is measured: a published configuration with random weights, or a checkpoint, and a prompt for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from lab.speed.content import Content, clip_like
from sharp_demo.backbones.families import family_of, family_of_type, published
from sharp_demo.backbones.family import Family
from sharp_demo.backbones.features import VideoFeatures, model_inputs
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Placement, choose_placement, load
from sharp_demo.backbones.preprocessing import TOKENS_PER_FRAME
from sharp_demo.backbones.processor import Processor
from sharp_demo.backbones.signals import VisionSignals
from sharp_demo.cost import ModelShape
from sharp_demo.errors import InputError
from sharp_demo.settings import Settings

FRAME_SIZE = (360, 640)  # height, width in pixels of the video that is imagined
PREFIX_SHARE = 0.35  # of the text tokens: 14 of 40 stand before the video
TEXT_IDS = 200  # text is drawn from the first ids: ordinary tokens in every vocabulary


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to measure and what is known about it.

    `stand_in_tower`: the vision tower is a one-layer stand-in and must not be timed.
    """

    name: str
    model: PreTrainedModel
    processor: Processor
    shape: ModelShape
    placement: Placement
    trained: bool
    stand_in_tower: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def family(self) -> Family:
        return family_of(self.model.config)

    def grid(self, sampled: int) -> list[list[int]] | None:
        """`video_grid_thw` of a video of so many sampled frames; None for families without."""
        return self.processor.video.grid(sampled, *FRAME_SIZE)

    @property
    def per_frame(self) -> int:
        """Visual tokens of one layout frame."""
        config, family = self.model.config, self.family
        step = family.frames_per_token(config)
        return family.placeholders(config, step, self.grid(step)) - family.newlines

    def frames(self, tokens: int | None) -> int:
        """Layout frames of a video of `tokens` visual tokens; by default as many as its family's.

        Raises InputError when no whole number of frames has so many tokens.
        """
        step, each = self.family.frames_per_token(self.model.config), self.per_frame
        if tokens is None:
            return self.family.default_frames // step
        if tokens < each or tokens % each:
            near = max(1, round(tokens / each)) * each
            raise InputError(f"{self.name} has {each} visual tokens a frame, so {tokens} is no whole video; try {near}")
        return tokens // each


def random_subject(
    name: str, settings: Settings, *, layers: int | None = None, vision: bool = False, seed: int = 0
) -> Subject:
    """Build a published configuration with random weights, on the device and in the dtype of `settings`.

    `layers` shortens the language model. Without `vision` the tower is a one-layer stand-in. Raises ModelError for
    an unknown name, InputError for a wrong number of layers.
    """
    known = published(name)
    notes = ["random weights: answers mean nothing, times and memory do"]
    if layers is not None and layers != known.text["num_hidden_layers"]:
        notes.append(f"{layers} of {known.text['num_hidden_layers']} decoder layers")
    if not vision:
        notes.append("the vision tower is a one-layer stand-in, there only to give black frames features")
    return build_subject(name, known.config, settings, layers=layers, vision=vision, seed=seed, notes=tuple(notes))


def build_subject(
    name: str,
    config: Mapping[str, Any],
    settings: Settings,
    *,
    layers: int | None = None,
    vision: bool = False,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Subject:
    """Build a config.json's model with random weights; see `random_subject`."""
    values: dict[str, Any] = copy.deepcopy(dict(config))
    family = family_of_type(values.pop("model_type"))
    text = values.get("text_config", values)
    if layers is not None:
        if not 2 <= layers <= text["num_hidden_layers"]:
            raise InputError(f"layers is {layers}; {name} can be built with 2 to {text['num_hidden_layers']}")
        text["num_hidden_layers"] = layers
    if not vision:
        # Of the right outline, so that a black frame has features; the language model sees no difference.
        values["vision_config"].update(family.small_tower)
    values.pop("architectures", None)
    placement = choose_placement(settings)
    parsed = AutoConfig.for_model(family.model_type, **values)
    model = _random_model(parsed, placement, seed)
    video = family.preprocessor.from_values(family.preprocessor_values(parsed), TOKENS_PER_FRAME)
    processor = Processor(tokenizer=None, video=video, config=model.config, chat_template="")
    shape = ModelShape.from_config(model.config.get_text_config())
    return Subject(name, model, processor, shape, placement, False, not vision, notes)


def _random_model(config: PreTrainedConfig, placement: Placement, seed: int) -> PreTrainedModel:
    """Weights are drawn where they will live: a 7B model never passes through host memory."""
    device = torch.device(placement.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(
            config, dtype=placement.dtype, attn_implementation=placement.attention
        )
    return model.eval().requires_grad_(False)


def checkpoint_subject(name: str, settings: Settings) -> Subject:
    """Load a checkpoint by embedded name, folder or hub id."""
    backbone = load(name, settings)
    shape = ModelShape.from_config(backbone.model.config.get_text_config())
    notes = () if backbone.info.trained else ("untrained weights: answers mean nothing, times and memory do",)
    trained = backbone.info.trained
    return Subject(name, backbone.model, backbone.processor, shape, choose_placement(settings), trained, False, notes)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Arguments of one prefill, and where its visual tokens sit."""

    inputs: dict[str, Any]
    layout: VisualLayout
    text_tokens: int


def _stand_in_ids(text: str) -> list[int]:
    """Ids for text between frames, one for each word: which words they are does not change what a prefill costs."""
    return list(range(len(text.split())))


def make_prompt(subject: Subject, frames: int, content: Content, text_tokens: int = 40, seed: int = 0) -> Prompt:
    """A prompt of `frames` layout frames of clip-like embeddings and `text_tokens` other tokens.

    What the family writes behind the video is among the text tokens, what it writes between the frames is on top of
    them. Raises InputError when `text_tokens` are too few.
    """
    config, family, model = subject.model.config, subject.family, subject.model
    sampled = frames * family.frames_per_token(config)
    grid = subject.grid(sampled)
    video = family.video_ids(config, _stand_in_ids, sampled, grid)
    visual = family.placeholders(config, sampled, grid) - family.newlines
    prefix, inside = round(PREFIX_SHARE * text_tokens), len(video) - visual
    if family.text_between:
        text_tokens += inside
    suffix = text_tokens - prefix - inside
    if prefix < 1 or suffix < 2:
        raise InputError(f"text_tokens is {text_tokens}; it must be at least {5 + inside}")
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.randint(TEXT_IDS, (count,), generator=generator) for count in (prefix, suffix))
    ids = torch.cat((before, torch.tensor(video), after))[None]
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tokens |= family.prompt_inputs(config, ids, None if grid is None else torch.tensor(grid))
    layout = family.layout(config, ids, tokens.get("video_grid_thw"))
    rows = clip_like(content, layout.frames, layout.rows * layout.cols, subject.shape.hidden, seed)
    rows = torch.cat((rows, torch.randn(family.newlines, rows.shape[1], generator=generator)))
    features: Tensor = rows.to(model.device, model.dtype)
    # What methods that read the vision tower choose by costs the same whatever its values are.
    received = torch.rand(len(layout), generator=generator).to(model.device)
    signals = VisionSignals(received, features[: len(layout), : subject.shape.head_dim].float())
    inputs = model_inputs(tokens, VideoFeatures(features, layout.frames, family, layout.frames, signals))
    return Prompt(inputs, layout, text_tokens)
