"""One prompt's first pass through the decoder layers: what a method may look at, and how tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.family import Family
from sharp_demo.backbones.signals import VisionSignals
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.attention import Rotary, Span, last_query_logits, project_keys, to_device
from sharp_demo.pruning.layers import AttentionOverride, LayerPass
from sharp_demo.pruning.outcome import Run, Selection
from sharp_demo.stopwatch import Stopwatch

if TYPE_CHECKING:
    from sharp_demo.pruning.method import Method


@dataclass
class PromptContext:
    """What a method may need besides the running prefill: the model, its processor, and a place for cached biases."""

    model: nn.Module
    processor: Any  # ours or transformers'; None when the caller gave none
    bias_cache: Any  # sharp.bias.BiasCache; made on first use when the caller gave none
    prompt_ids: tuple[int, ...] = ()
    positions: Tensor | None = None  # of the prompt, on the CPU, when the caller passed position ids
    signals: VisionSignals | None = None  # of the prompt's video, when the method reads them
    merging: TowerMerging | None = None  # in the vision tower, when the video was encoded with it
    injections: Sequence[Tensor] = ()  # [N, d] that the family adds to the visual rows behind each of the first layers

    @property
    def family(self) -> Family:
        """The model's family."""
        return family_of(self.model.config)


class Prefill(LayerPass):
    """One prompt's first pass, and everything a method may look at or drop.

    Attributes
    ----------
    layers, norm, cache, config : the text model's decoder layers, last norm, key/value cache and config.
    embeddings : [B, n0, d], the LLM's input before any drop.
    start : row of the first visual token; the rows before it are text that the video cannot change.
    end : current row behind the video. Text between its frames, which lies before it, is never dropped.
    order : [n] original row of each current row. orders : the same of the rows that each layer so far has seen.
    text : current rows that are not visual.
    rows, slots : [v] current row and layout slot of each surviving visual token.
    signals : what the vision tower says about all N tokens; only for methods with `needs_vision`.
    family : the model's family, which answers what differs between families.
    renumbered : [(layer, rows gone)] of every stage that made the positions compact.
    notes : what a method has to remember from one hook of this prefill to the next, under the method itself.
    """

    def __init__(
        self, lm: nn.Module, hidden: Tensor, rotary: Rotary, cache: DynamicCache, run: Run, context: PromptContext
    ) -> None:
        super().__init__(hidden, rotary)
        assert run.layout is not None
        self.layers, self.config, self.cache, self.run, self.context = lm.layers, lm.config, cache, run, context
        self.rotary_emb, self.norm = lm.rotary_emb, lm.norm
        self.family = context.family
        self.renumbered: list[tuple[int, int]] = []
        self.notes: dict[Method, Any] = {}
        self.layout = run.layout
        self.embeddings = hidden
        self.order = torch.arange(hidden.shape[1], device=hidden.device)
        self.orders: list[Tensor] = []
        index = self.layout.index.cpu()
        self.start, self._text_before_end = int(index[0]), int(index[-1]) + 1 - len(index)
        is_text = torch.ones(hidden.shape[1], dtype=torch.bool).index_fill(0, index, False)
        self.rows = to_device(index.tolist(), torch.long, hidden.device)
        self._last_visual = int(index[-1])
        self._text_rows: list[int] = is_text.nonzero().squeeze(1).tolist()
        self.text = to_device(self._text_rows, torch.long, hidden.device)
        self.slots = torch.arange(len(self.layout), device=hidden.device)
        self._last_input = hidden[:, -1:]

    # -- hook points, called by the loop -------------------------------------------------------------------------

    def before_layer(self, layer: int) -> None:
        for part in self.active_parts:
            self._apply(part.before_layer(layer, self), first_layer=layer)
        self.orders.append(self.order)
        self._last_input = self.hidden[:, -1:].clone()  # a view would keep all of the old rows alive

    def attention(self, layer: int) -> AttentionOverride | None:
        overrides = [found for part in self.active_parts if (found := part.attention(layer, self)) is not None]
        if len(overrides) > 1:
            raise UnsupportedError(f"two of the combined methods replace the attention of layer {layer}")
        return overrides[0] if overrides else None

    def looks_inside(self, layer: int) -> bool:
        return any(part.looks_inside(layer, self) for part in self.active_parts)

    def after_attention(self, layer: int) -> None:
        for part in self.active_parts:
            self._apply(part.after_attention(layer, self), first_layer=layer + 1, first_mlp=layer)

    def after_layer(self, layer: int) -> None:
        if layer < len(self.context.injections):
            self.add(self.rows, self.context.injections[layer][self.slots])

    def finish(self) -> None:
        """Called when all layers ran."""
        for part in self.active_parts:
            part.after_prefill(self)

    # -- what methods ask ----------------------------------------------------------------------------------------

    @property
    def active_parts(self) -> list[Method]:
        return [part for part in self.run.method.parts if part.active]

    @property
    def signals(self) -> VisionSignals:
        if self.context.signals is None:
            raise UnsupportedError(
                "this method reads attention of the vision tower: pass the video's pixels, or features made by "
                "encode_video(..., signals=True)"
            )
        return self.context.signals

    @property
    def stage(self) -> Stopwatch:
        return self.run.stopwatch

    @property
    def end(self) -> int:
        return self._text_before_end + len(self.rows)

    def span(self, ranges: Sequence[tuple[int, int]], text_visible: bool = True) -> Span:
        """The span of segments that are given as [a, b) ranges of the surviving visual tokens."""
        if self._text_before_end == self.start:
            rows = [(self.start + a, self.start + b) for a, b in ranges]
            return Span(self.start, tuple(rows), text_visible)
        at = self.rows.tolist()
        between = tuple(sorted(set(range(self.start, at[-1] + 1)).difference(at)))
        return Span(self.start, tuple((at[a], at[b - 1] + 1) for a, b in ranges), text_visible, between)

    def text_around(self, *, before: bool = True, marks: bool = True) -> Tensor:
        """Return the current rows of the text behind the video and, unless told not to, of that before it.

        A newline behind the video and text between frames are not among them; without `marks` neither are the tokens
        that only say where a video starts and ends.
        """
        config, ids = self.context.model.config, self.context.prompt_ids
        left_out = {self.family.visual_token_id(config), *([] if marks else self.family.mark_ids(config))}
        chosen = [
            place
            for place, row in enumerate(self._text_rows)
            if (row > self._last_visual or (before and row < self.start)) and ids[row] not in left_out
        ]
        return self.text[to_device(chosen, torch.long, self.text.device)]

    @property
    def frames(self) -> Tensor:
        """[v] layout frame of each surviving visual token."""
        return self.slots // (self.layout.rows * self.layout.cols)

    def logits_of_last_layer(self, layer: int) -> Tensor:
        """Last token's logits [heads, n] in the layer that has just run, from its cached keys."""
        block = self.layers[layer]
        x_last = block.input_layernorm(self._last_input)
        keys = self.cache.layers[layer].keys
        logits = last_query_logits(block.self_attn, x_last, self._last_rotary, keys)[0]
        seen = self.orders[layer]
        # Another method may have dropped rows since: those that are left have a score each.
        return logits if len(seen) == len(self.order) else logits[:, torch.searchsorted(seen, self.order)]

    def logits_of_next_layer(self, layer: int) -> Tensor:
        """Last token's logits [heads, n] in the layer that is about to run (look-ahead)."""
        block = self.layers[layer]
        keys = project_keys(block.self_attn, block.input_layernorm(self.hidden), self.rotary)
        x_last = block.input_layernorm(self.hidden[:, -1:])
        return last_query_logits(block.self_attn, x_last, self._last_rotary, keys)[0]

    def unrotated_logits(self, layer: int) -> Tensor:
        """Last token's logits [heads, v] over the visual keys of the layer about to run, without RoPE (Feather)."""
        block = self.layers[layer]
        keys = project_keys(block.self_attn, block.input_layernorm(self.hidden[:, self.rows]), None)
        x_last = block.input_layernorm(self.hidden[:, -1:])
        return last_query_logits(block.self_attn, x_last, None, keys)[0]

    def record_scores(self, name: str, scores: Tensor) -> None:
        """Keep one score per surviving token under `name`; slots that were dropped before stay NaN."""
        full = torch.full((len(self.layout),), torch.nan, device=scores.device)
        full[self.slots] = scores.float()
        self.run.scores[name] = full

    def record_layer_score(self, name: str, layer: int, score: Tensor) -> None:
        """Keep one figure of a decoder layer under `name`."""
        full = torch.full((len(self.layers),), torch.nan, device=score.device)
        self.run.layer_scores.setdefault(name, full)[layer] = score.float()

    def drop_kv(self, layer: int, keep: Tensor) -> None:
        """Keep only the given rows (LongTensor, as cached by `layer`) of one layer's keys and values."""
        cached = self.cache.layers[layer]
        cached.keys, cached.values = (t.index_select(-2, keep) for t in (cached.keys, cached.values))

    # -- dropping ------------------------------------------------------------------------------------------------

    @property
    def _last_rotary(self) -> Rotary:
        cos, sin = self.rotary
        return cos[:, -1:], sin[:, -1:]

    def _apply(self, selection: Selection | None, first_layer: int, first_mlp: int | None = None) -> None:
        """Take in a selection; it holds from the attention of `first_layer` and the MLP of `first_mlp` on."""
        if selection is None:
            return
        kept = selection.kept
        with self.stage("gather"):
            # All sizes are known on the host, so nothing here waits for the device.
            index = torch.cat((self.text, self.rows[kept])).sort().values
            new_rows = torch.searchsorted(index, self.rows[kept])
            if selection.merged_into is not None:
                merged = selection.merged_into
                target = torch.where(merged >= 0, self.slots[merged.clamp(min=0)], merged)
                self.run.merged_into[self.slots] = torch.where(merged >= 0, target, self.run.merged_into[self.slots])
            self.hidden = self.hidden.index_select(1, index)
            if selection.hidden is not None:
                self.hidden[:, new_rows] = selection.hidden.to(self.hidden.dtype)
            self.rotary = self._rotary_of(index, first_layer, compact=selection.compact)
            self.text = torch.searchsorted(index, self.text)
            self.order, self.rows, self.slots = self.order[index], new_rows, self.slots[kept]
            self.run.merged_into = _final_targets(self.run.merged_into, self.slots)
            self.run.left_before = self.run.left_before.clamp(max=first_layer).index_fill(
                0, self.slots, len(self.layers)
            )
            role = self.run.role[kept] if selection.role is None else selection.role.to(torch.int8)
        self.run.kept, self.run.role = self.slots, role
        layers, first_mlp = len(self.layers), first_layer if first_mlp is None else first_mlp
        self.run.visual_per_layer[first_layer:] = [len(kept)] * (layers - first_layer)
        self.run.mlp_per_layer[first_mlp:] = [len(kept)] * (layers - first_mlp)

    def _rotary_of(self, index: Tensor, first_layer: int, *, compact: bool) -> Rotary:
        if not compact:
            cos, sin = self.rotary
            return cos.index_select(1, index), sin.index_select(1, index)
        if not self.family.renumbers:
            raise UnsupportedError(f"positions with three axes (M-RoPE, {self.family.title}) cannot be renumbered")
        gone = self.embeddings.shape[1] - len(index)
        self.renumbered.append((first_layer, gone))
        positions = torch.arange(len(index), device=index.device)[None].expand(self.hidden.shape[0], -1)
        return self.rotary_emb(self.hidden, positions)


def _final_targets(merged_into: Tensor, alive: Tensor) -> Tensor:
    """Follow merges [N] into tokens that a later stage merged on; -1 where the last one was dropped."""
    onward = merged_into[merged_into.clamp(min=0)]
    target = torch.where((merged_into >= 0) & (onward >= 0), onward, merged_into)
    lives = torch.zeros_like(merged_into, dtype=torch.bool).index_fill(0, alive, True)
    return torch.where(lives[target.clamp(min=0)], target, -1)
