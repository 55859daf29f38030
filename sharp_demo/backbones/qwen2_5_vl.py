"""Qwen2.5-VL: Qwen2-VL with windows in the vision tower and a time axis that counts seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones.family import Times, TinyShape, tiny_text_config
from sharp_demo.backbones.published import QWEN2_7B, PublishedModel
from sharp_demo.backbones.qwen2_vl import RELEASED, QwenVL, vision_ids
from sharp_demo.backbones.view import TowerShape
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel
else:
    torch = LazyModule("torch")

QWEN2_5_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}


def published_config(text: dict[str, int], vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return config.json of a hub repository."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **vision_ids(RELEASED),
        **text,
        "vocab_size": vocab_size,
        "max_position_embeddings": 128000,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    }


def window_order(frames: int, rows: int, cols: int, side: int) -> Tensor:
    """Return the slots of the tokens in the order of the tower, [N]: by frame, by window of `side` x `side`, by row."""
    slots = torch.arange(frames * rows * cols).view(frames, rows, cols)
    corners = [(row, col) for row in range(0, rows, side) for col in range(0, cols, side)]
    windows = [[frame[row : row + side, col : col + side].flatten() for row, col in corners] for frame in slots]
    return torch.cat([window for frame in windows for window in frame])


class Qwen2_5VL(QwenVL):
    """Qwen2.5-VL."""

    name = "qwen2.5-vl"
    title = "Qwen2.5-VL"
    model_type = "qwen2_5_vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"
    published = (  # sizes follow from the configurations
        PublishedModel(
            "qwen2.5-vl-3b",
            "Qwen/Qwen2.5-VL-3B-Instruct",
            published_config(QWEN2_5_3B, 151_936, tied=True),
            3_754_622_976,
        ),
        PublishedModel(
            "qwen2.5-vl-7b",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            published_config(QWEN2_7B, 152_064, tied=False),
            8_292_166_656,
        ),
    )
    small_tower: ClassVar[Mapping[str, Any]] = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 1,
        "fullatt_block_indexes": [0],
    }

    def time_axis(self, config: PreTrainedConfig, frames: int, times: Times | None) -> Tensor:
        """Return whole ticks, `tokens_per_second` of them in a second; a temporal patch lasts a second by default."""
        patch, seconds = self.frames_per_token(config), 1.0
        if times is not None and len(times) > 1:
            seconds = patch * (times[-1] - times[0]) / (len(times) - 1)
        return (torch.arange(frames) * (config.vision_config.tokens_per_second * seconds)).long()

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        """Windows that the edge of a frame cuts off count as whole ones."""
        tower = config["vision_config"]
        width, group = tower["hidden_size"], tower["spatial_merge_size"] ** 2
        patches, merged = group * tokens, group * width
        window = min(patches, (tower["window_size"] // tower["patch_size"]) ** 2)
        full = set(tower["fullatt_block_indexes"])
        return TowerShape(
            width=width,
            intermediate=tower["intermediate_size"],
            layers=tower["depth"],
            head_dim=width // tower["num_heads"],
            patches=patches,
            values=3 * tower["temporal_patch_size"] * tower["patch_size"] ** 2,
            former=tokens * merged * (merged + tower["out_hidden_size"]),
            matrices=3,
            pairs=tuple(patches * (patches if layer in full else window) for layer in range(tower["depth"])),
        )

    def in_layout_order(self, model: PreTrainedModel, arguments: Mapping[str, Any], rows: Tensor) -> Tensor:
        """The tower works window by window, and only what the merger makes of it is put back in order."""
        vision = model.config.vision_config
        side = vision.window_size // vision.patch_size // vision.spatial_merge_size
        ((frames, high, wide),) = arguments["grid_thw"].tolist()
        shape = (frames, high // vision.spatial_merge_size, wide // vision.spatial_merge_size)
        return rows[torch.argsort(window_order(*shape, side)).to(rows.device)]

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        half = shape.width // shape.heads // 2
        spatial = 3 * half // 8  # the published split, 16 : 24 : 24
        return {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            **vision_ids(ids),
            "rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * spatial, spatial, spatial]},
            **tiny_text_config(shape, vocab_size, ids),
            "vision_config": {
                "model_type": self.model_type,
                "depth": shape.vision_layers,
                "hidden_act": "silu",
                "hidden_size": shape.vision_width,
                "intermediate_size": shape.vision_mlp,
                "num_heads": shape.vision_heads,
                "out_hidden_size": shape.width,
                "patch_size": shape.patch_size,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 4 * shape.patch_size,  # 2 x 2 tokens, so that the last ones are cut off
                "fullatt_block_indexes": [shape.vision_layers - 1],
                "tokens_per_second": 2,
                "initializer_range": shape.initializer_range,
            },
        }

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        return super().tiny_preprocessor(shape) | {"processor_class": "Qwen2_5_VLProcessor"}

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        return {"processor_class": "Qwen2_5_VLProcessor"}
