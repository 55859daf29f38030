"""Qwen2-VL: frames of any aspect, merged 2 x 2 x 2, positions with three axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sharp_demo.backbones.family import Family, Grid, TinyShape, tiny_text_config
from sharp_demo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from sharp_demo.backbones.family import SignalReader

VIDEO_TYPE = 2  # mm_token_type_ids: 0 text, 1 image, 2 video


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Qwen2VL(Family):
    """Qwen2-VL."""

    name = "qwen2-vl"
    title = "Qwen2-VL"
    model_type = "qwen2_vl"
    model_class = "Qwen2VLForConditionalGeneration"
    video_processor = "Qwen2VLVideoProcessor"
    renumbers = False
    merge_similarity = 0.5
    merge_queries = 4
    chat_template = CHAT_TEMPLATE
    special_tokens = (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    )

    def frames_per_token(self, config: Any) -> int:
        return int(config.vision_config.temporal_patch_size)

    def shape(self, config: Any, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        if grid is None:
            raise ModelError(f"video_grid_thw is missing: without it the layout of a {self.title} video is unknown")
        if len(grid) != 1:
            raise ModelError(f"the request has {len(grid)} videos in video_grid_thw; exactly one is supported")
        merge = config.vision_config.spatial_merge_size
        t, h, w = (int(side) for side in grid[0])
        return t, h // merge, w // merge

    def placeholders(self, config: Any, frames: int, grid: Grid | None = None) -> int:
        frames, rows, cols = self.shape(config, 0, grid)
        return frames * rows * cols

    def prompt_inputs(self, config: Any, input_ids: Tensor, grid: Tensor | None) -> dict[str, Tensor]:
        if grid is None:
            raise ModelError(f"video_grid_thw is missing: without it the layout of a {self.title} video is unknown")
        return {
            "video_grid_thw": grid,
            "mm_token_type_ids": (input_ids == config.video_token_id).int() * VIDEO_TYPE,
            "position_ids": self.positions(config, input_ids, grid),
        }

    def positions(
        self, config: Any, input_ids: Tensor, grid: Tensor | None, seconds_per_grid: float | None = None
    ) -> Tensor:
        """Positions of a prompt with one video, for prefill and for every later turn of the same conversation.

        Parameters
        ----------
        config : `model.config` of a checkpoint.
        input_ids : LongTensor [n] or [1, n]; the whole sequence, earlier turns and answers included.
        grid : `video_grid_thw`, LongTensor [1, 3].
        seconds_per_grid : unused; the time axis counts temporal patches.

        Returns
        -------
        LongTensor [4, 1, n]: rows are the plain sequence index (the causal mask is built from it), then time, height
        and width. `generate` adds one to every row for each new token, which is right in all four because the text
        after the video has equal time, height and width.

        The text after the video starts at max(all positions) + 1, as in the code released with the weights
        (transformers up to 4.5x); transformers 5.23 leaves the time axis out of that maximum.
        """
        import torch

        layout = self.layout(config, input_ids, grid)
        start, visual, length = int(layout.index[0]), len(layout), layout.length
        device = layout.index.device
        video = torch.stack((layout.frame, layout.row, layout.col)) + start
        after = start + max(layout.frames, layout.rows, layout.cols)
        suffix = torch.arange(after, after + length - start - visual, device=device).expand(3, -1)
        prefix = torch.arange(start, device=device).expand(3, -1)
        rotary = torch.cat((prefix, video, suffix), dim=1)
        return torch.cat((torch.arange(length, device=device)[None], rotary))[:, None]

    def grid_of_positions(self, config: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor | None:
        """Read `video_grid_thw` [1, 3] back from the positions [3 or 4, 1, n] of a prompt with one video.

        `generate` runs the vision tower itself and keeps the grid from the language model; the positions still hold
        it. Positions that are not multimodal give a grid that does not match the placeholders, which
        `layout` refuses.
        """
        import torch

        if position_ids.ndim != 3:
            return None
        visual = position_ids[-3:, 0, (input_ids.reshape(-1) == config.video_token_id).to(position_ids.device)]
        merge = config.vision_config.spatial_merge_size
        extent = visual.amax(1) - visual.amin(1) + 1
        return (extent.cpu() * torch.tensor([1, merge, merge]))[None]

    def rotary_positions(self, position_ids: Tensor) -> Tensor:
        if position_ids.ndim == 2:
            return position_ids[None].expand(3, -1, -1)
        return position_ids[-3:]  # generate() puts a row of text positions in front

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> tuple[Tensor, int]:
        import torch

        values = pixels["pixel_values_videos"].to(model.device, model.dtype)
        frames, high, wide = pixels["video_grid_thw"][0].tolist()
        step = max(1, chunk_frames // self.frames_per_token(model.config))
        parts = []
        for start in range(0, frames, step):
            count = min(step, frames - start)
            patches = values[start * high * wide : (start + count) * high * wide]
            grid = torch.tensor([[count, high, wide]], device=model.device)
            seen = model.get_video_features(pixel_values_videos=patches, video_grid_thw=grid, return_dict=True)
            parts.append(seen.pooler_output[0])
        return torch.cat(parts), frames

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.visual

    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, SignalReader]:
        return model.model.visual.blocks[-1].attn, _read

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
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
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


def _read(model: Any, attention: Any, hidden: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    import torch
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
