"""Configurations and parameter counts of the published checkpoints; numbers only, no torch.

Sources: config.json of the hub repositories named in `PublishedModel.hub`. `parameters` counts tied weights once;
the Qwen2-VL counts are those of the repositories' safetensors metadata, the LLaVA-OneVision ones follow from the
configurations and agree with the published 0.9B and 8.03B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharp_demo.errors import ModelError


@dataclass(frozen=True)
class PublishedModel:
    """One published checkpoint: where it lives, its config.json and its size."""

    name: str
    hub: str
    family: str
    config: dict[str, Any]
    parameters: int

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config, whether nested or flat."""
        return self.config.get("text_config", self.config)


SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2_VIT = {
    "model_type": "qwen2_vl",
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN2_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QWEN2_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}


def _llava_onevision(text: dict[str, Any], vocab_size: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": 151646,
        "video_token_index": 151647,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "tie_word_embeddings": tied,
        "vision_config": SIGLIP_SO400M,
        "text_config": {
            "model_type": "qwen2",
            **text,
            "vocab_size": vocab_size,
            "max_position_embeddings": 32768,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": tied,
        },
    }


def _qwen2_vl(text: dict[str, Any], vocab_size: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        **text,
        "vocab_size": vocab_size,
        "max_position_embeddings": 32768,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "vision_config": {**QWEN2_VIT, "hidden_size": text["hidden_size"]},
    }


PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel(
            "llava-onevision-0.5b",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-onevision",
            _llava_onevision(QWEN2_0_5B, 152_000, tied=True),
            893_675_552,
        ),
        PublishedModel(
            "llava-onevision-7b",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "llava-onevision",
            _llava_onevision(QWEN2_7B, 152_128, tied=False),
            8_030_807_584,
        ),
        PublishedModel(
            "qwen2-vl-2b",
            "Qwen/Qwen2-VL-2B-Instruct",
            "qwen2-vl",
            _qwen2_vl(QWEN2_1_5B, 151_936, tied=True),
            2_208_985_600,
        ),
        PublishedModel(
            "qwen2-vl-7b",
            "Qwen/Qwen2-VL-7B-Instruct",
            "qwen2-vl",
            _qwen2_vl(QWEN2_7B, 152_064, tied=False),
            8_291_375_616,
        ),
    )
}


def published(name: str) -> PublishedModel:
    """A published configuration by its short name; `ModelError` lists the names."""
    if name not in PUBLISHED:
        raise ModelError(f"unknown configuration {name!r}; known are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
