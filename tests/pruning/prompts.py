"""Prompts and references that the pruning tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sharp_demo.backbones.features import VideoFeatures, encode_video, model_inputs
from sharp_demo.backbones.layout import VisualLayout, visual_layout
from sharp_demo.backbones.load import Backbone
from sharp_demo.engine import decode_step, prefill

QUESTION = "What color is the car?"


def scenes(frames: int = 8, size: tuple[int, int] = (60, 80), seed: int = 0) -> np.ndarray:
    """Uint8 frames [T, H, W, 3]: a new coloured background every third frame, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (frames // 3 + 1, 3))
    flat = np.stack([np.broadcast_to(colours[i // 3], (*size, 3)) for i in range(frames)])
    return np.clip(flat + rng.integers(-40, 40, flat.shape), 0, 255).astype(np.uint8)


class Prompt:
    """One video and question, ready for a backbone."""

    def __init__(self, backbone: Backbone, frames: np.ndarray | None = None, question: str = QUESTION) -> None:
        frames = scenes() if frames is None else frames
        self.backbone, self.model = backbone, backbone.model
        self.pixels = backbone.processor.video.pixels(frames)
        grid = backbone.processor.video.grid(*frames.shape[:3])
        self.tokens = backbone.processor.prompt(question, frames=len(frames), grid=grid)
        self.features = encode_video(self.model, self.pixels)

    def inputs(self, features: Tensor | None = None) -> dict[str, Any]:
        """Arguments for `forward` or `generate`; other features [N(+1), d] may take the video's place."""
        chosen = self.features if features is None else VideoFeatures(features, self.features.grid_thw, 0)
        return model_inputs(self.tokens, chosen)

    @property
    def layout(self) -> VisualLayout:
        return visual_layout(self.model.config, self.tokens["input_ids"], self.tokens.get("video_grid_thw"))

    @property
    def length(self) -> int:
        return self.tokens["input_ids"].shape[1]


@torch.no_grad()
def greedy(prompt: Prompt, steps: int = 8, second_turn: int = 5) -> tuple[list[int], Tensor, DynamicCache]:
    """Prefill, `steps` greedy tokens, then `second_turn` fixed tokens at once; all logits [steps + 2, vocab]."""
    logits, cache, positions = prefill(prompt.model, prompt.inputs())
    rows, ids = [logits], []
    for _ in range(steps):
        ids.append(int(rows[-1].argmax()))
        positions = positions + 1
        rows.append(decode_step(prompt.model, ids[-1], cache, positions))
    follow = torch.arange(second_turn)[None] + 7
    output = prompt.model(
        input_ids=follow,
        position_ids=positions + 1 + torch.arange(second_turn),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    rows.append(output.logits[0, -1])
    return ids, torch.stack(rows), cache


@contextmanager
def masked(
    prompt: Prompt,
    layer: int,
    kept: Tensor,
    rows: Tensor | None = None,
    first_layer_mask: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """The reference for dropping: the full sequence runs, and from `layer` on the dropped keys are masked.

    Parameters
    ----------
    kept : [k] slots that survive. rows : [k, d] rows to put in at `layer` (merged tokens).
    first_layer_mask : changes the boolean prefill mask [n, n] of layer 0 (True = visible).
    """
    index = prompt.layout.index
    dropped = torch.ones(len(index), dtype=torch.bool)
    dropped[kept] = False
    lm = prompt.model.model.language_model
    cache_lengths: dict[int, int] = {}

    def hook(i: int) -> Callable[..., Any]:
        def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            past, n = cache_lengths.get(i, 0), hidden.shape[1]
            cache_lengths[i] = past + n
            visible = torch.ones(n, past + n, dtype=torch.bool).tril(past)
            if i >= layer:
                visible[:, index[dropped]] = False
            if i == 0 and past == 0 and first_layer_mask is not None:
                visible = first_layer_mask(visible)
            if i == layer and past == 0 and rows is not None:
                hidden = hidden.clone()
                hidden[:, index[kept]] = rows.to(hidden.dtype)
            bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
            return (hidden, *args[1:]), {**kwargs, "attention_mask": bias[None, None]}

        return replace

    hooks = [block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(lm.layers)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
