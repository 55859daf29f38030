"""Qwen3-VL, dense: time stamps between the frames, and features of the tower injected behind the first layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones.family import Encoded, Times, TinyShape, tiny_text_config
from sharp_demo.backbones.preprocessing import Grid
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.qwen2_vl import CHAT_REST, RELEASED, Qwen2VLVideo, QwenVL, vision_ids
from sharp_demo.backbones.view import TowerShape
from sharp_demo.errors import ModelError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel
else:
    torch = LazyModule("torch")

SAMPLED_S = 0.5  # between sampled frames where nobody knows the times: the model's own two frames a second
WIDEST = 200  # times as wide as high, or as high as wide, that transformers takes

SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}

# No default system message, unlike Qwen2-VL.
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}") + CHAT_REST


def published_config(
    hidden: int, mlp: int, layers: int, heads: int, tower: Mapping[str, Any], tied: bool
) -> dict[str, Any]:
    """Return config.json of a hub repository."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **vision_ids(RELEASED),
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 262_144,
            "rope_theta": 5_000_000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            **tower,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


class Qwen3VLVideo(Qwen2VLVideo):
    """As Qwen2-VL, but the bounds are on the pixels of the whole video, frames times height times width."""

    official = "Qwen3VLVideoProcessor"
    defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "cap_pixels_per_frame": False,
        "max_video_tokens": 768,
    }

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return height and width in pixels to which `frames` frames of the given size are resized.

        `tokens_per_frame` bounds the tokens of a temporal patch as for Qwen2-VL. One frame alone, which transformers
        refuses, counts as two.
        """
        if self.size is not None:
            return self.size
        frames = max(frames, self.temporal_patch_size)
        bound = self.max_pixels
        if self.cap_pixels_per_frame:
            each = min(self.max_video_tokens * self.cell**2, bound // frames)
            bound = max(each, int(self.min_pixels * 1.05)) * frames
        best = self._within(frames, height, width, bound)
        limit = self.tokens_per_frame
        if limit is None or self._tokens(best) <= limit:
            return best
        sizes = (self._within(frames, height, width, k * self.cell**2 * frames) for k in range(2 * limit, 0, -1))
        fitting = next((size for size in sizes if self._tokens(size) <= limit), None)
        if fitting is None:
            raise ModelError(f"a {width} x {height} frame does not fit into {limit} tokens")
        return fitting

    def _within(self, frames: int, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        cell, step = self.cell, self.temporal_patch_size
        if min(height, width) < cell:
            scale = max(cell / height, cell / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > WIDEST * min(height, width):
            raise ModelError(
                f"a {width} x {height} video cannot be resized for this model: its aspect ratio is over {WIDEST}"
            )
        volume, whole = frames * height * width, round(frames / step) * step
        high, wide = (round(side / cell) * cell for side in (height, width))
        if whole * high * wide > max_pixels:
            shrink = math.sqrt(volume / max_pixels)
            high, wide = (max(cell, math.floor(side / shrink / cell) * cell) for side in (height, width))
        elif whole * high * wide < (fewest := min(self.min_pixels, max_pixels)):
            grow = math.sqrt(fewest / volume)
            high, wide = (math.ceil(side * grow / cell) * cell for side in (height, width))
        return high, wide


class Qwen3VL(QwenVL):
    """Qwen3-VL with a dense decoder."""

    name = "qwen3-vl"
    title = "Qwen3-VL"
    model_type = "qwen3_vl"
    model_class = "Qwen3VLForConditionalGeneration"
    preprocessor = Qwen3VLVideo
    published = (  # sizes follow from the configurations
        PublishedModel(
            "qwen3-vl-2b",
            "Qwen/Qwen3-VL-2B-Instruct",
            published_config(2048, 6144, 28, 16, SMALL_TOWER, tied=True),
            2_127_532_032,
        ),
        PublishedModel(
            "qwen3-vl-4b",
            "Qwen/Qwen3-VL-4B-Instruct",
            published_config(2560, 9728, 36, 32, SMALL_TOWER, tied=True),
            4_437_815_808,
        ),
        PublishedModel(
            "qwen3-vl-8b",
            "Qwen/Qwen3-VL-8B-Instruct",
            published_config(4096, 12288, 36, 32, LARGE_TOWER, tied=False),
            8_767_123_696,
        ),
        PublishedModel(
            "qwen3-vl-32b",
            "Qwen/Qwen3-VL-32B-Instruct",
            published_config(5120, 25600, 64, 64, LARGE_TOWER, tied=False),
            33_357_390_064,
        ),
    )
    injection_arguments = ("visual_pos_masks", "deepstack_visual_embeds")
    text_between = True
    replaced_around = 1  # the template's vision marks: as released, every frame has its own and the video none
    chat_template = CHAT_TEMPLATE
    small_tower: ClassVar[Mapping[str, Any]] = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 1,
        "deepstack_visual_indexes": [],
    }

    def video_ids(
        self,
        config: PreTrainedConfig,
        encode: Callable[[str], list[int]],
        frames: int,
        grid: Grid | None = None,
        times: Times | None = None,
    ) -> list[int]:
        count, rows, cols = self.shape(config, 0, grid)
        step = self.frames_per_token(config)
        times = [SAMPLED_S * frame for frame in range(frames)] if times is None else list(times)
        times += [times[-1]] * (count * step - len(times))
        frame = [
            config.vision_start_token_id,
            *[self.visual_token_id(config)] * (rows * cols),
            config.vision_end_token_id,
        ]
        ids: list[int] = []
        for first in range(0, len(times), step):
            middle = (times[first] + times[first + step - 1]) / 2
            ids += encode(f"<{middle:.1f} seconds>") + frame
        return ids

    def positions(
        self, config: PreTrainedConfig, input_ids: Tensor, grid: Tensor | None, times: Times | None = None
    ) -> Tensor:
        """Positions of a prompt with one video, as for Qwen2-VL, but every frame is a video of its own.

        A frame's time is where it starts, and the text behind it goes on after the larger of its sides. The stamps
        between the frames say when they were; `times` are not needed.
        """
        layout = self.layout(config, input_ids, grid)
        device, cells = layout.index.device, layout.rows * layout.cols
        visual = torch.zeros(layout.length, dtype=torch.long, device=device).index_fill(0, layout.index, 1)
        text_before = torch.arange(layout.length, device=device) - visual.cumsum(0) + visual
        frames_before = (visual.cumsum(0) - visual) // cells
        rotary = (text_before + frames_before * max(layout.rows, layout.cols)).repeat(3, 1)
        rotary[1, layout.index] += layout.row
        rotary[2, layout.index] += layout.col
        return torch.cat((torch.arange(layout.length, device=device)[None], rotary))[:, None]

    def injections(self, arguments: Mapping[str, Any]) -> Sequence[Tensor]:
        embeds, mask = arguments.get("deepstack_visual_embeds"), arguments.get("visual_pos_masks")
        if not embeds or mask is None:
            return ()
        return [rows[: len(rows) // len(mask)] for rows in embeds]  # of the first prompt: all have the same video

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        parts, stacks, frames = [], [], 0
        for seen, count in self.seen(model, pixels, chunk_frames):
            parts.append(seen.pooler_output[0])
            stacks.append([features[0] for features in seen.deepstack_features])
            frames += count
        injections = tuple(torch.cat(rows) for rows in zip(*stacks, strict=True))
        return Encoded(torch.cat(parts), frames, injections=injections)

    def encoder_output(self, encoded: Encoded) -> dict[str, Any]:
        return {
            "pooler_output": (encoded.features,),
            "deepstack_features": [(rows.to(encoded.features),) for rows in encoded.injections],
        }

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        tower = config["vision_config"]
        width, group = tower["hidden_size"], tower["spatial_merge_size"] ** 2
        merged, mergers = group * width, 1 + len(tower["deepstack_visual_indexes"])
        return TowerShape(
            width=width,
            intermediate=tower["intermediate_size"],
            layers=tower["depth"],
            head_dim=width // tower["num_heads"],
            patches=group * tokens,
            values=3 * tower["temporal_patch_size"] * tower["patch_size"] ** 2,
            former=mergers * tokens * merged * (merged + tower["out_hidden_size"]),
        )

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        half = shape.width // shape.heads // 2
        spatial = 5 * half // 16  # the published split, 24 : 20 : 20
        return {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            **vision_ids(ids),
            "tie_word_embeddings": shape.tied,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "head_dim": shape.width // shape.heads,
                **tiny_text_config(shape, vocab_size, ids),
                "rope_scaling": {
                    "rope_type": "default",
                    "mrope_interleaved": True,
                    "mrope_section": [half - 2 * spatial, spatial, spatial],
                },
            },
            "vision_config": {
                "model_type": self.model_type,
                "depth": shape.vision_layers,
                "hidden_size": shape.vision_width,
                "intermediate_size": shape.vision_mlp,
                "num_heads": shape.vision_heads,
                "out_hidden_size": shape.width,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": list(range(shape.vision_layers)),
                "patch_size": shape.patch_size,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": shape.initializer_range,
            },
        }

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        cell = (2 * shape.patch_size) ** 2
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "size": {"shortest_edge": 2 * cell, "longest_edge": 400 * cell},
            "patch_size": shape.patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        return {"processor_class": "Qwen3VLProcessor"}
