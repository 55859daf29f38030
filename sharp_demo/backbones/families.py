"""The supported model families, and which one a config belongs to. Importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharp_demo.backbones.family import Family
from sharp_demo.backbones.llava_onevision import LlavaOnevision
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.qwen2_5_vl import Qwen2_5VL
from sharp_demo.backbones.qwen2_vl import Qwen2VL
from sharp_demo.backbones.qwen3_vl import Qwen3VL
from sharp_demo.backbones.smolvlm2 import SmolVLM2
from sharp_demo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from sharp_demo.backbones.layout import VisualLayout
    from sharp_demo.settings import Settings

FAMILIES: tuple[Family, ...] = (LlavaOnevision(), Qwen2VL(), Qwen2_5VL(), Qwen3VL(), SmolVLM2())


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a checkpoint's config; `ModelError` names the supported ones."""
    return family_of_type(getattr(config, "model_type", None))


def family_of_type(model_type: str | None) -> Family:
    """Return the family of a config's `model_type`; `ModelError` names the supported ones."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise ModelError(f"the checkpoint's architecture {model_type!r} is not supported; supported are {supported}")


def family_named(name: str) -> Family:
    """Return the family with this name; `ModelError` lists the names."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ModelError(f"unknown family {name!r}; known are {', '.join(family.name for family in FAMILIES)}")


def published_models() -> dict[str, PublishedModel]:
    """Return the published checkpoints of all families by their short names."""
    return {model.name: model for family in FAMILIES for model in family.published}


def published(name: str) -> PublishedModel:
    """Return a published checkpoint by its short name; `ModelError` lists the names."""
    known = published_models()
    if name not in known:
        raise ModelError(f"unknown configuration {name!r}; known are {', '.join(known)}")
    return known[name]


def hub_models() -> tuple[str, ...]:
    """Return the hub ids of the published checkpoints."""
    return tuple(model.hub for model in published_models().values())


def menu(settings: Settings) -> list[str]:
    """Return names of models to choose from: the configured one, the embedded ones that are there, those of the hub."""
    configured = [settings.model_name] if settings.model_name else []
    return list(dict.fromkeys([*configured, *settings.embedded, *hub_models()]))


def visual_layout(config: PreTrainedConfig, input_ids: Tensor, video_grid_thw: Tensor | None = None) -> VisualLayout:
    """Find the visual tokens of the one video in a prompt; see `Family.layout`."""
    return family_of(config).layout(config, input_ids, video_grid_thw)
