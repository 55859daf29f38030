"""Qwen2-VL: frames of any aspect, merged 2 x 2 x 2, positions with three axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones.family import Encoded, Family, Times, TinyShape, TrainableFamily, tiny_text_config
from sharp_demo.backbones.preprocessing import CLIP_MEAN, CLIP_STD, Grid, VideoPreprocessor
from sharp_demo.backbones.published import QWEN2_1_5B, QWEN2_7B, PublishedModel
from sharp_demo.backbones.view import TowerShape
from sharp_demo.errors import ModelError
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

VIDEO_TYPE = 2  # mm_token_type_ids: 0 text, 1 image, 2 video

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
# What a message holds, and the end of the prompt: alike in all families; what stands before it is not.
CHAT_REST = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
) + CHAT_REST


RELEASED = {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<|vision_start|>": 151652, "<|vision_end|>": 151653}


def vision_ids(ids: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of config.json that stand around and for a picture, by a tokenizer's words."""
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def published_config(text: dict[str, int], vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return config.json of a hub repository."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **vision_ids(RELEASED),
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


@dataclass(frozen=True)
class Qwen2VLVideo(VideoPreprocessor):
    """Frames keep their aspect and are cut into patches.

    Pixels are one row per patch, [t * h * w, 3 * temporal_patch_size * patch_size ** 2], with `video_grid_thw` [1, 3].

    Attributes
    ----------
    min_pixels, max_pixels : bounds of one resized frame, in pixels.
    patch_size, temporal_patch_size, merge_size : pixels, frames, and patches along one side of a token.
    cap_pixels_per_frame, max_video_tokens : transformers' optional bound on the whole video.
    tokens_per_frame : bound on the merged tokens of a temporal patch, on top of `max_pixels`; None for no bound.
    size : height and width in pixels for every frame, whatever the bounds say; None: by them.
    """

    official = "Qwen2VLVideoProcessor"
    resizable = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "cap_pixels_per_frame": False,
        "max_video_tokens": 128_000,
    }

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    cap_pixels_per_frame: bool
    max_video_tokens: int
    tokens_per_frame: int | None
    size: tuple[int, int] | None = field(default=None, kw_only=True)

    @classmethod
    def own_values(cls, values: Mapping[str, Any], tokens_per_frame: int | None) -> dict[str, Any]:
        size = dict(values["size"])
        lowest = values.get("min_pixels", size.get("shortest_edge", size.get("min_pixels")))
        highest = values.get("max_pixels", size.get("longest_edge", size.get("max_pixels")))
        if lowest is None or highest is None:
            raise ModelError(f"preprocessor: size needs shortest_edge and longest_edge, not {sorted(size)}")
        names = ("patch_size", "temporal_patch_size", "merge_size", "cap_pixels_per_frame", "max_video_tokens")
        copied = {key: values[key] for key in names}
        return {"min_pixels": lowest, "max_pixels": highest, "tokens_per_frame": tokens_per_frame, **copied}

    @property
    def cell(self) -> int:
        """Pixels along one side of a merged token."""
        return self.patch_size * self.merge_size

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return height and width in pixels to which `frames` frames of the given size are resized.

        With `tokens_per_frame` it is the largest size, by the checkpoint's own rule, whose frame has at most that
        many tokens: 640 x 360 becomes 504 x 280, 18 x 10 = 180 tokens per temporal patch.
        """
        if self.size is not None:
            return self.size
        bound = self.max_pixels
        if self.cap_pixels_per_frame:
            total = int(self.max_video_tokens * self.cell**2 * 0.9)
            bound = max(min(bound, total * self.temporal_patch_size // frames), int(self.min_pixels * 1.05))
        best = self._fit(height, width, bound)
        limit = self.tokens_per_frame
        if limit is None or self._tokens(best) <= limit:
            return best
        # Both sides are rounded down to whole tokens, so the bound that fills the limit lies above the limit itself.
        sizes = (self._fit(height, width, cells * self.cell**2) for cells in range(2 * limit, 0, -1))
        fitting = next((size for size in sizes if self._tokens(size) <= limit), None)
        if fitting is None:
            raise ModelError(f"a {width} x {height} frame does not fit into {limit} tokens")
        return fitting

    def grid(self, frames: int, height: int, width: int) -> Grid:
        high, wide = self.resized(frames, height, width)
        return [[-(-frames // self.temporal_patch_size), high // self.patch_size, wide // self.patch_size]]

    def arrange(self, x: Tensor) -> dict[str, Tensor]:
        # One row per patch, and the patches of one merged token side by side: the order the vision tower merges in.
        step, side, merge = self.temporal_patch_size, self.patch_size, self.merge_size
        missing = -len(x) % step
        x = torch.cat((x, x[-1:].expand(missing, -1, -1, -1)))
        t, h, w = len(x) // step, x.shape[2] // side, x.shape[3] // side
        x = x.view(t, step, 3, h // merge, merge, side, w // merge, merge, side)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [t, h/m, w/m, m, m, rgb, step, side, side]
        patches = x.reshape(t * h * w, 3 * step * side * side)
        return {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([[t, h, w]])}

    def sized(self, rows: int, cols: int) -> Qwen2VLVideo:
        return replace(self, size=(rows * self.cell, cols * self.cell))

    def black_frame(self, layout: VisualLayout) -> Tensor:
        size = (layout.rows * self.cell, layout.cols * self.cell)
        return torch.zeros(self.temporal_patch_size, 3, *size, dtype=torch.uint8)

    def _tokens(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] // self.cell**2

    def _fit(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        try:
            size: tuple[int, int] = smart_resize(height, width, self.cell, min(self.min_pixels, max_pixels), max_pixels)
        except ValueError as error:
            raise ModelError(f"a {width} x {height} video cannot be resized for this model: {error}") from None
        return size


class QwenVL(Family):
    """What the Qwen-VL families have in common: merged patches, and positions of time, row and column."""

    preprocessor: ClassVar[type[VideoPreprocessor]] = Qwen2VLVideo
    renumbers = False
    merge_similarity = 0.5
    merge_queries = 4
    chat_template: ClassVar[str] = CHAT_TEMPLATE
    special_tokens = (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    )

    def mark_ids(self, config: PreTrainedConfig) -> list[int]:
        return [config.vision_start_token_id, config.vision_end_token_id]

    def frames_per_token(self, config: PreTrainedConfig) -> int:
        return int(config.vision_config.temporal_patch_size)

    def shape(self, config: PreTrainedConfig, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        if grid is None:
            raise ModelError(f"video_grid_thw is missing: without it the layout of a {self.title} video is unknown")
        if len(grid) != 1:
            raise ModelError(f"the request has {len(grid)} videos in video_grid_thw; exactly one is supported")
        merge = config.vision_config.spatial_merge_size
        t, h, w = (int(side) for side in grid[0])
        return t, h // merge, w // merge

    def placeholders(self, config: PreTrainedConfig, frames: int, grid: Grid | None = None) -> int:
        frames, rows, cols = self.shape(config, 0, grid)
        return frames * rows * cols

    def prompt_inputs(
        self, config: PreTrainedConfig, input_ids: Tensor, grid: Tensor | None, times: Times | None = None
    ) -> dict[str, Tensor]:
        if grid is None:
            raise ModelError(f"video_grid_thw is missing: without it the layout of a {self.title} video is unknown")
        return {
            "video_grid_thw": grid,
            "mm_token_type_ids": (input_ids == config.video_token_id).int() * VIDEO_TYPE,
            "position_ids": self.positions(config, input_ids, grid, times),
        }

    def positions(
        self, config: PreTrainedConfig, input_ids: Tensor, grid: Tensor | None, times: Times | None = None
    ) -> Tensor:
        """Positions of a prompt with one video, for prefill and for every later turn of the same conversation.

        Parameters
        ----------
        config : `model.config` of a checkpoint.
        input_ids : LongTensor [n] or [1, n]; the whole sequence, earlier turns and answers included.
        grid : `video_grid_thw`, LongTensor [1, 3].
        times : seconds of the sampled frames, for `time_axis`.

        Returns
        -------
        LongTensor [4, 1, n]: rows are the plain sequence index (the causal mask is built from it), then time, height
        and width. `generate` adds one to every row for each new token, which is right in all four because the text
        after the video has equal time, height and width.

        The text after the video starts at max(all positions) + 1, as in the code released with the weights
        (transformers up to 4.5x); transformers 5.23 leaves the time axis out of that maximum.
        """
        layout = self.layout(config, input_ids, grid)
        start, visual, length = int(layout.index[0]), len(layout), layout.length
        device = layout.index.device
        ticks = self.time_axis(config, layout.frames, times).to(device)
        video = torch.stack((ticks[layout.frame], layout.row, layout.col)) + start
        after = start + max(int(ticks[-1]) + 1, layout.rows, layout.cols)
        suffix = torch.arange(after, after + length - start - visual, device=device).expand(3, -1)
        prefix = torch.arange(start, device=device).expand(3, -1)
        rotary = torch.cat((prefix, video, suffix), dim=1)
        return torch.cat((torch.arange(length, device=device)[None], rotary))[:, None]

    def time_axis(self, config: PreTrainedConfig, frames: int, times: Times | None) -> Tensor:
        """Return the first axis of the positions for every layout frame, from 0: the frame's number by default."""
        return torch.arange(frames)

    def grid_of_positions(self, config: PreTrainedConfig, input_ids: Tensor, position_ids: Tensor) -> Tensor | None:
        """Read `video_grid_thw` [1, 3] back from the positions [3 or 4, 1, n] of a prompt with one video.

        `generate` runs the vision tower itself and keeps the grid from the language model; the positions still hold
        it, in the rows and columns of the tokens that share the first one's time. Positions that are not multimodal
        give a grid that does not match the placeholders, which `layout` refuses.
        """
        if position_ids.ndim != 3:
            return None
        visual = position_ids[-3:, 0, (input_ids.reshape(-1) == config.video_token_id).to(position_ids.device)].cpu()
        first = visual[1:, visual[0] == visual[0, 0]]
        rows, cols = (first.amax(1) - first.amin(1) + 1).tolist()
        merge = config.vision_config.spatial_merge_size
        frames = visual.shape[1] // (rows * cols) if rows * cols > 1 else 1
        return torch.tensor([[frames, merge * rows, merge * cols]])

    def rotary_positions(self, position_ids: Tensor) -> Tensor:
        if position_ids.ndim == 2:
            return position_ids[None].expand(3, -1, -1)
        return position_ids[-3:]  # generate() puts a row of text positions in front

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        seen, counts = zip(*self.seen(model, pixels, chunk_frames), strict=True)
        return Encoded(torch.cat([one.pooler_output[0] for one in seen]), sum(counts))

    def seen(
        self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int
    ) -> Iterator[tuple[Any, int]]:
        """Yield the model's own output and the number of layout frames, for `chunk_frames` sampled frames at a time."""
        values = pixels["pixel_values_videos"].to(model.device, model.dtype)
        frames, high, wide = pixels["video_grid_thw"][0].tolist()
        step = max(1, chunk_frames // self.frames_per_token(model.config))
        for start in range(0, frames, step):
            count = min(step, frames - start)
            patches = values[start * high * wide : (start + count) * high * wide]
            grid = torch.tensor([[count, high, wide]], device=model.device)
            yield model.get_video_features(pixel_values_videos=patches, video_grid_thw=grid, return_dict=True), count

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.visual

    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, SignalReader]:
        return model.model.visual.blocks[-1].attn, _read

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        cell = (2 * shape.patch_size) ** 2
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "min_pixels": shape.cells // 2 * cell,
            "max_pixels": shape.cells * cell,
            "patch_size": shape.patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        return {"processor_class": "Qwen2VLProcessor"}


class Qwen2VL(QwenVL, TrainableFamily):
    """Qwen2-VL."""

    name = "qwen2-vl"
    title = "Qwen2-VL"
    model_type = "qwen2_vl"
    model_class = "Qwen2VLForConditionalGeneration"
    published = (  # sizes are those of the repositories' safetensors metadata
        PublishedModel(
            "qwen2-vl-2b",
            "Qwen/Qwen2-VL-2B-Instruct",
            published_config(QWEN2_1_5B, 151_936, tied=True),
            2_208_985_600,
        ),
        PublishedModel(
            "qwen2-vl-7b",
            "Qwen/Qwen2-VL-7B-Instruct",
            published_config(QWEN2_7B, 152_064, tied=False),
            8_291_375_616,
        ),
    )
    small_tower: ClassVar[Mapping[str, int]] = {"depth": 1, "embed_dim": 64, "num_heads": 1}

    def tower_layers(self, model: PreTrainedModel) -> Sequence[TowerLayer]:
        from sharp_demo.backbones.merging import TowerLayer

        return [
            TowerLayer(block, block.norm1, partial(_heads, block.attn), block.attn.proj, block.norm2, block.mlp)
            for block in model.model.visual.blocks
        ]

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        tower = config["vision_config"]
        width, group = tower["embed_dim"], tower["spatial_merge_size"] ** 2
        merged = group * width
        return TowerShape(
            width=width,
            intermediate=int(width * tower["mlp_ratio"]),
            layers=tower["depth"],
            head_dim=width // tower["num_heads"],
            patches=group * tokens,
            values=3 * tower["temporal_patch_size"] * tower["patch_size"] ** 2,
            former=tokens * merged * (merged + tower["hidden_size"]),
        )

    def token_former(self, model: PreTrainedModel) -> nn.Module:
        return model.model.visual.merger

    def tower_parameters(self, model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
        named = model.model.visual.named_parameters()
        return [(name, p) for name, p in named if not name.startswith("merger")]

    def patch_features(self, model: PreTrainedModel, pixels: Mapping[str, Tensor]) -> Tensor:
        hidden = model.model.visual(pixels["pixel_values_videos"], pixels["video_grid_thw"]).last_hidden_state
        return hidden.view(-1, 4, hidden.shape[-1])

    def form_tokens(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        return model.model.visual.merger(patches)

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        half = shape.width // shape.heads // 2
        spatial = 3 * half // 8  # the published split, 16 : 24 : 24
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            **vision_ids(ids),
            "rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * spatial, spatial, spatial]},
            **tiny_text_config(shape, vocab_size, ids),
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": shape.vision_layers,
                "embed_dim": shape.vision_width,
                "hidden_size": shape.width,
                "num_heads": shape.vision_heads,
                "mlp_ratio": shape.vision_mlp // shape.vision_width,
                "patch_size": shape.patch_size,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": shape.initializer_range,
            },
        }


def _read(
    model: PreTrainedModel, attention: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    from sharp_demo.backbones.received import attention_received

    heads, n = attention.num_heads, hidden.shape[0]
    queries, keys, _ = attention.qkv(hidden).view(n, 3, heads, -1).unbind(1)
    turned = apply_rotary_pos_emb_vision(queries, keys, *kwargs["position_embeddings"])
    lengths = kwargs["cu_seqlens"].diff().tolist()
    frames = zip(*(torch.split(t.transpose(0, 1), lengths, 1) for t in turned), strict=True)
    received = torch.cat([attention_received(q, k, attention.scaling) for q, k in frames])
    group = model.config.vision_config.spatial_merge_size**2
    keys = keys.float().mean(1)
    return received.view(-1, group).mean(1), keys.view(n // group, group, -1).mean(1)


def _heads(attention: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, n, heads, head_dim] of normed rows [B, n, d]."""
    queries, keys, values = attention.qkv(rows).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    return queries, keys, values
