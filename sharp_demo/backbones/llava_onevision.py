"""LLaVA-OneVision: SigLIP frames pooled 2 x 2, one newline after the video, plain positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones import siglip
from sharp_demo.backbones.family import Encoded, TinyShape, TrainableFamily, tiny_text_config
from sharp_demo.backbones.preprocessing import Grid, VideoPreprocessor
from sharp_demo.backbones.published import QWEN2_0_5B, QWEN2_7B, PublishedModel
from sharp_demo.backbones.view import TowerShape
from sharp_demo.errors import ModelError, UnsupportedError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from sharp_demo.backbones.family import SignalReader
    from sharp_demo.backbones.layout import VisualLayout
    from sharp_demo.backbones.merging import TowerLayer
else:
    torch = LazyModule("torch")

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

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def published_config(text: dict[str, int], vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return config.json of a hub repository."""
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


@dataclass(frozen=True)
class LlavaOnevisionVideo(VideoPreprocessor):
    """Every frame to `size`, (height, width) in pixels, whatever its aspect. Pixels are [1, T, 3, height, width]."""

    official = "LlavaOnevisionVideoProcessor"
    defaults: ClassVar[Mapping[str, Any]] = {"size": {"height": 384, "width": 384}}

    size: tuple[int, int]

    @classmethod
    def own_values(cls, values: Mapping[str, Any], tokens_per_frame: int | None) -> dict[str, Any]:
        size = dict(values["size"])
        if not {"height", "width"} <= size.keys():
            raise ModelError(f"preprocessor: size needs height and width, not {sorted(size)}")
        return {"size": (size["height"], size["width"])}

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return self.size

    def arrange(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixel_values_videos": x[None]}

    def black_frame(self, layout: VisualLayout) -> Tensor:
        return torch.zeros(1, 3, *self.size, dtype=torch.uint8)


class LlavaOnevision(TrainableFamily):
    """LLaVA-OneVision with a Qwen2 decoder."""

    name = "llava-onevision"
    title = "LLaVA-OneVision"
    model_type = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    preprocessor = LlavaOnevisionVideo
    published = (  # sizes follow from the configurations and agree with the published 0.9B and 8.03B
        PublishedModel(
            "llava-onevision-0.5b",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            published_config(QWEN2_0_5B, 152_000, tied=True),
            893_675_552,
        ),
        PublishedModel(
            "llava-onevision-7b",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            published_config(QWEN2_7B, 152_128, tied=False),
            8_030_807_584,
        ),
    )
    newlines = 1
    merge_similarity = 0.6
    merge_queries = 1
    chat_template = CHAT_TEMPLATE
    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    small_tower: ClassVar[Mapping[str, int]] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }

    def frames_per_token(self, config: PreTrainedConfig) -> int:
        return 1

    def shape(self, config: PreTrainedConfig, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        side = pooled_side(config)
        frames, rest = divmod(placeholders - self.newlines, side * side)
        if rest or frames < 1:
            raise ModelError(
                f"the prompt has {placeholders} video placeholders, which is not one video: a frame takes "
                f"{side * side} and the video ends with one newline placeholder"
            )
        return frames, side, side

    def placeholders(self, config: PreTrainedConfig, frames: int, grid: Grid | None = None) -> int:
        return frames * pooled_side(config) ** 2 + self.newlines

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        values = pixels["pixel_values_videos"].to(model.device, model.dtype)
        frames = values.shape[1]
        step = max(1, chunk_frames)
        parts = [
            model.get_video_features(
                pixel_values_videos=values[:, start : start + step], return_dict=True
            ).pooler_output[0]
            for start in range(0, frames, step)
        ]
        newline = parts[0][-self.newlines :]
        return Encoded(torch.cat([part[: -self.newlines] for part in parts] + [newline]), frames)

    def encoder_output(self, encoded: Encoded) -> dict[str, Any]:
        return {"pooler_output": encoded.features[None]}  # a batch of videos

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_tower

    def tower_layers(self, model: PreTrainedModel) -> Sequence[TowerLayer]:
        if refusal := self.signals_refusal(model.config):
            raise UnsupportedError(refusal)
        layer, blocks = model.config.vision_feature_layer, model.model.vision_tower.encoder.layers
        last = len(blocks) + layer if layer < 0 else layer - 1  # as in `signal_source`
        return siglip.tower_layers(blocks[: last + 1])

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        hidden, width = config["text_config"]["hidden_size"], config["vision_config"]["hidden_size"]
        return siglip.tower_shape(config["vision_config"], (width + hidden) * hidden)  # the projector is before pooling

    def signals_refusal(self, config: PreTrainedConfig) -> str | None:
        if isinstance(config.vision_feature_layer, int) and config.vision_feature_select_strategy == "full":
            return None
        return (
            "This checkpoint joins several vision layers or drops a class token; vision-tower attention is read from "
            "one layer without a class token."
        )

    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, SignalReader]:
        layer = model.config.vision_feature_layer
        layers = model.model.vision_tower.encoder.layers
        # hidden_states[0] is what enters layer 0, so the output of layer i is hidden_states[i + 1].
        return layers[layer if layer < 0 else layer - 1].self_attn, _read

    def token_former(self, model: PreTrainedModel) -> nn.Module:
        return model.model.multi_modal_projector

    def tower_parameters(self, model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
        named = model.model.vision_tower.named_parameters()
        return [(name, p) for name, p in named if "post_layernorm" not in name]  # the projector reads before it

    def patch_features(self, model: PreTrainedModel, pixels: Mapping[str, Tensor]) -> Tensor:
        seen = model.model.vision_tower(pixels["pixel_values_videos"][0], output_hidden_states=True, return_dict=True)
        half = pooled_side(model.config)
        hidden = seen.hidden_states[model.config.vision_feature_layer]
        grid = hidden.view(-1, half, 2, half, 2, hidden.shape[-1])
        return grid.transpose(2, 3).reshape(-1, 4, hidden.shape[-1])

    def form_tokens(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        return model.model.multi_modal_projector(patches).mean(1)

    def preprocessor_values(self, config: PreTrainedConfig) -> dict[str, Any]:
        side = config.vision_config.image_size
        return {"size": {"height": side, "width": side}}

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "image_token_index": ids["<image>"],
            "video_token_index": ids["<video>"],
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": [[shape.image_size, shape.image_size]],
            "tie_word_embeddings": shape.tied,
            "text_config": {"model_type": "qwen2", **tiny_text_config(shape, vocab_size, ids)},
            "vision_config": {
                "model_type": "siglip_vision_model",
                **siglip.tiny_tower(shape),
                "image_size": shape.image_size,
                "vision_use_head": False,
            },
        }

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "processor_class": "LlavaOnevisionProcessor",
            "image_grid_pinpoints": [[shape.image_size, shape.image_size]],
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": shape.image_size, "width": shape.image_size},
        }

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        return {
            "image_token": "<image>",
            "num_image_tokens": (shape.image_size // shape.patch_size) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        }


def pooled_side(config: PreTrainedConfig) -> int:
    """Return the tokens along one side of a frame: the patch grid after 2x2 pooling, rounded up."""
    return math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)


def _read(
    model: PreTrainedModel, attention: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    both = siglip.patch_signals(attention, hidden)
    pooled = model.model.apply_pooling(both).flatten(0, 1)
    return pooled[:, 0], pooled[:, 1:]
