"""Prompts and references that the pruning tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sharp_demo.backbones.compat import with_cache
from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.features import encode_video, model_inputs
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.engine.generation import decode_step, prefill, suppress_placeholders
from sharp_demo.pruning.registry import method_class

QUESTION = "What color is the car?"


def scenes(frames: int = 8, size: tuple[int, int] = (60, 80), seed: int = 0) -> np.ndarray:
    """Uint8 frames [T, H, W, 3]: a new coloured background every third frame, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (frames // 3 + 1, 3))
    flat = np.stack([np.broadcast_to(colours[i // 3], (*size, 3)) for i in range(frames)])
    return np.clip(flat + rng.integers(-40, 40, flat.shape), 0, 255).astype(np.uint8)


def decoder(model: nn.Module) -> nn.Module:
    """The text model."""
    return family_of(model.config).text_model(model)


class Prompt:
    """One video and question, ready for a backbone."""

    def __init__(self, backbone: Backbone, frames: np.ndarray | None = None, question: str = QUESTION) -> None:
        frames = scenes() if frames is None else frames
        self.backbone, self.model = backbone, backbone.model
        self.pixels = backbone.processor.video.pixels(frames)
        grid = backbone.processor.video.grid(*frames.shape[:3])
        self.tokens = backbone.processor.prompt(question, frames=len(frames), grid=grid)
        self.features = encode_video(self.model, self.pixels, signals=True)

    def inputs(self, features: Tensor | None = None) -> dict[str, Any]:
        """Arguments for `forward` or `generate`; other features [N(+1), d] may take the video's place."""
        chosen = self.features if features is None else replace(self.features, features=features)
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
        use_cache=True,
        logits_to_keep=1,
        **with_cache(cache),
    )
    rows.append(output.logits[0, -1])
    return ids, torch.stack(rows), cache


def lowest(name: str, layout: VisualLayout, layers: int = 4) -> float:
    """The least retention a method can be asked for on a video and a model of so many layers."""
    return method_class(name)().least_retention(layers, layout.frames)


@contextmanager
def masked(
    prompt: Prompt,
    layer: int,
    kept: Tensor,
    rows: Tensor | None = None,
    first_layer_mask: Callable[[Tensor], Tensor] | None = None,
    later: Sequence[tuple[int, Tensor]] = (),
    hidden_later: Tensor | None = None,
) -> Iterator[None]:
    """The reference for dropping: the full sequence runs, and from `layer` on the dropped keys are masked.

    Parameters
    ----------
    kept : [k] slots that survive. rows : [k, d] rows to put in at `layer` (merged tokens).
    first_layer_mask : changes the boolean prefill mask [n, n] of layer 0 (True = visible).
    later : (layer, slots that survive) of the stages after the first. hidden_later : keys that no token after the
        prompt sees.
    """
    index = prompt.layout.index
    dropped = {first: torch.ones(len(index), dtype=torch.bool) for first, _ in ((layer, kept), *later)}
    for first, alive in ((layer, kept), *later):
        dropped[first][alive] = False
    lm = decoder(prompt.model)
    cache_lengths: dict[int, int] = {}

    def hook(i: int) -> Callable[..., Any]:
        def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            past, n = cache_lengths.get(i, 0), hidden.shape[1]
            cache_lengths[i] = past + n
            visible = torch.ones(n, past + n, dtype=torch.bool).tril(past)
            for first, gone in dropped.items():
                if i >= first:
                    visible[:, index[gone]] = False
            if past and hidden_later is not None:
                visible[:, hidden_later] = False
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


@torch.no_grad()
def naive_logits(prompt: Prompt, stages: dict[int, Tensor], answer: list[int], *, renumbered: bool) -> Tensor:
    """Logits [len(answer) + 1, vocab] after the prompt and after each answer token, all fed at once, without a cache.

    At each stage the visual tokens that are not in it go; with `renumbered` the rows that are left are renumbered.
    """
    model, lm = prompt.model, decoder(prompt.model)
    inputs = prompt.inputs()
    ids = torch.cat((inputs["input_ids"], torch.tensor([answer], dtype=torch.long)), 1)
    hidden = lm.embed_tokens(ids)
    hidden[0, (ids == family_of(model.config).visual_token_id(model.config))[0]] = prompt.features.features.to(hidden)
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(ids.shape[1])[None]
    else:
        ahead = positions[-3:, :, -1:] + torch.arange(1, len(answer) + 1)
        positions = torch.cat((positions[-3:], ahead), -1)
    alive = torch.arange(ids.shape[1])
    for i, layer in enumerate(lm.layers):
        if i in stages:
            gone = torch.ones(len(prompt.layout), dtype=torch.bool)
            gone[stages[i]] = False
            keep = ~torch.isin(alive, prompt.layout.index[gone])
            hidden, alive = hidden[:, keep], alive[keep]
            positions = torch.arange(int(keep.sum()))[None] if renumbered else positions[..., keep]
        bias = torch.full((len(alive), len(alive)), torch.finfo(torch.float32).min).triu(1)
        rotary = lm.rotary_emb(hidden, positions)
        hidden = layer(hidden, attention_mask=bias[None, None], position_embeddings=rotary)
    return model.lm_head(lm.norm(hidden))[0, -len(answer) - 1 :]


@contextmanager
def with_frames(prompt: Prompt, frames: Tensor) -> Iterator[None]:
    """Put other features [frames, tokens per frame, d] in the video's place; LLaVA-OneVision's newline stays."""
    before = prompt.features
    rows = frames.flatten(0, 1).to(before.features)
    prompt.features = replace(before, features=torch.cat((rows, before.features[len(rows) :])))
    try:
        yield
    finally:
        prompt.features = before


def embedded(prompt: Prompt) -> Tensor:
    """The language model's input for the whole prompt, [1, n, d]: text embeddings with the features in their place."""
    ids = prompt.tokens["input_ids"]
    hidden = prompt.model.get_input_embeddings()(ids)
    hidden[ids == family_of(prompt.model.config).visual_token_id(prompt.model.config)] = prompt.features.features
    return hidden


@torch.no_grad()
def shortened(
    prompt: Prompt, kept: Tensor, rows: Tensor | None = None, *, compact: bool, steps: int = 8, second_turn: int = 5
) -> tuple[list[int], Tensor]:
    """The reference for pruning before the LLM: the ordinary text model on the embeddings that are left.

    `kept` [k] slots; `rows` [k, d] what stands in their place. `compact`: positions 0, 1, 2, ...; else the original
    ones. Tokens and logits as `greedy` gives them.
    """
    model, lm, index = prompt.model, decoder(prompt.model), prompt.layout.index
    hidden = embedded(prompt)
    if rows is not None:
        hidden[0, index[kept]] = rows.to(hidden.dtype)
    stays = torch.ones(prompt.length, dtype=torch.bool)
    stays[index] = False
    stays[index[kept]] = True
    whole = prompt.tokens.get("position_ids", torch.arange(prompt.length)[None])
    at = torch.arange(int(stays.sum()))[None] if compact else whole[..., stays]
    cache = DynamicCache(config=lm.config)

    def run(embeddings: Tensor, positions: Tensor) -> Tensor:
        out = lm(inputs_embeds=embeddings, position_ids=positions, use_cache=True, **with_cache(cache))
        return model.lm_head(out.last_hidden_state[0, -1])

    logits, ids = [suppress_placeholders(model, run(hidden[:, stays], at))], []
    last = at[..., -1:]
    for _ in range(steps):
        ids.append(int(logits[-1].argmax()))
        last = last + 1
        logits.append(suppress_placeholders(model, run(lm.embed_tokens(torch.tensor([[ids[-1]]])), last)))
    follow = torch.arange(second_turn)[None] + 7
    logits.append(run(lm.embed_tokens(follow), last + 1 + torch.arange(second_turn)))
    return ids, torch.stack(logits)


def frames_of(prompt: Prompt) -> Tensor:
    """The visual tokens as they enter the language model, [frames, tokens per frame, d]."""
    layout = prompt.layout
    return prompt.features.features[: len(layout)].float().view(layout.frames, layout.rows * layout.cols, -1)


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    """Normal features [n, d], the same for the same seed."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
