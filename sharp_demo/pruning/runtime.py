"""The prefill loop that lets a method drop tokens on the way through the decoder layers.

`attached` installs one forward on the text model of one model instance and takes it off again. It calls the
untouched forward whenever no method is active and all layers' caches are equally long; otherwise it runs the
decoder layers itself: original positions are kept, one mask serves each run of equally long layers, and every
hook point of a method is a plain call. Works for the Qwen2 (LLaVA-OneVision) and Qwen2-VL text models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from sharp_demo.backbones.layout import VisualLayout, visual_layout
from sharp_demo.backbones.positions import grid_from_positions
from sharp_demo.backbones.signals import VisionSignals, VisionTap, tapped
from sharp_demo.errors import ModelError, UnsupportedError
from sharp_demo.pruning.attention import Rotary, last_query_logits, project_keys
from sharp_demo.pruning.outcome import Run, Selection
from sharp_demo.stopwatch import Stopwatch

if TYPE_CHECKING:
    from sharp_demo.pruning.method import Method


AttentionOverride = Callable[[nn.Module, Tensor, Rotary, DynamicCache], Tensor]


class Pass:
    """Rows on their way through decoder layers: hidden [B, n, d] and cos, sin [B, n, head_dim]. No hooks."""

    def __init__(self, hidden: Tensor, rotary: Rotary) -> None:
        self.hidden = hidden
        self.rotary = rotary

    def before_layer(self, layer: int) -> None:
        """Called before decoder layer `layer` runs."""

    def attention(self, layer: int) -> AttentionOverride | None:
        """Return what replaces the attention module's forward in this layer, or None."""
        return None

    def after_attention(self, layer: int) -> None:
        """Called after the attention residual of `layer`, before its MLP."""


class Later(Pass):
    """Tokens after a prefill that renumbered: from each of its stages on, positions lag behind by what is gone."""

    def __init__(self, lm: nn.Module, hidden: Tensor, positions: Tensor, renumbered: Sequence[tuple[int, int]]) -> None:
        super().__init__(hidden, lm.rotary_emb(hidden, positions))
        self.rotary_emb, self.positions, self.gone = lm.rotary_emb, positions, dict(renumbered)

    def before_layer(self, layer: int) -> None:
        if layer in self.gone:
            self.rotary = self.rotary_emb(self.hidden, self.positions - self.gone[layer])


class Prefill(Pass):
    """One prompt's first pass, and everything a method may look at or drop.

    Attributes
    ----------
    layers, cache, config : the text model's decoder layers, key/value cache and config.
    embeddings : [B, n0, d], the LLM's input before any drop.
    start : row of the first visual token; the rows before it are text that the video cannot change.
    order : [n] original row of each current row. orders : the same of the rows that each layer so far has seen.
    text : current rows that are not visual.
    rows, slots : [v] current row and layout slot of each surviving visual token.
    signals : what the vision tower says about all N tokens; only for methods with `needs_vision`.
    mrope : positions have three axes (Qwen2-VL).
    renumbered : [(layer, rows gone)] of every stage that made the positions compact.
    notes : what a method has to remember from one hook of this prefill to the next, under the method itself.
    """

    def __init__(
        self, lm: nn.Module, hidden: Tensor, rotary: Rotary, cache: DynamicCache, run: Run, tools: Tools
    ) -> None:
        super().__init__(hidden, rotary)
        assert run.layout is not None
        self.layers, self.config, self.cache, self.run, self.tools = lm.layers, lm.config, cache, run, tools
        self.rotary_emb = lm.rotary_emb
        self.mrope = _is_mrope(lm)
        self.renumbered: list[tuple[int, int]] = []
        self.notes: dict[Method, Any] = {}
        self.layout = run.layout
        self.embeddings = hidden
        self.order = torch.arange(hidden.shape[1], device=hidden.device)
        self.orders: list[Tensor] = []
        self.start = int(self.layout.index[0])
        end = self.start + len(self.layout)
        self.rows = self.order[self.start : end]
        self.text = torch.cat((self.order[: self.start], self.order[end:]))
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
            raise UnsupportedError(f"Two of the combined methods replace the attention of layer {layer}.")
        return overrides[0] if overrides else None

    def after_attention(self, layer: int) -> None:
        for part in self.active_parts:
            self._apply(part.after_attention(layer, self), first_layer=layer + 1, first_mlp=layer)

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
        if self.tools.signals is None:
            raise UnsupportedError(
                "This method reads attention of the vision tower: pass the video's pixels, or features made by "
                "encode_video(..., signals=True)."
            )
        return self.tools.signals

    @property
    def stage(self) -> Stopwatch:
        return self.run.stopwatch

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
        if self.mrope:
            raise UnsupportedError("Positions with three axes (M-RoPE, Qwen2-VL) cannot be renumbered.")
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


@dataclass
class Tools:
    """What a method may need beside the running prefill: the model, its processor, and a place for cached biases."""

    model: nn.Module
    processor: Any  # ours or transformers'; None when the caller gave none
    bias_cache: Any  # sharp.bias.BiasCache; made on first use when the caller gave none
    prompt_ids: tuple[int, ...] = ()
    positions: Tensor | None = None  # of the prompt, on the CPU, when the caller passed position ids
    signals: VisionSignals | None = None  # of the prompt's video, when the method reads them


def run_layers(
    layers: Sequence[nn.Module],
    rows: Pass,
    cache: DynamicCache,
    config: Any,
    hidden_states: list[Tensor] | None = None,
    *,
    first: int = 0,
    **kwargs: Any,
) -> None:
    """Run `rows` through decoder layers in place, appending to `cache`; causal, bottom-right aligned.

    The layer is written out because two hook points lie inside it; both text models share this structure.
    `hidden_states`, when given, collects the input of every layer. `first` is the model's number of `layers[0]`.
    """
    shape, mask = None, None
    for i, layer in enumerate(layers, first):
        rows.before_layer(i)
        if hidden_states is not None:
            hidden_states.append(rows.hidden)
        override = rows.attention(i)
        if override is None:
            if shape != (shape := (cache.layers[i].get_seq_length(), rows.hidden.shape[1])):
                mask = create_causal_mask(
                    config=config,
                    inputs_embeds=rows.hidden,
                    attention_mask=None,
                    past_key_values=cache,
                    layer_idx=i,
                )
            # position_ids=None: gapped positions would be read as packed sequences by the flash path.
            attended, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(rows.hidden),
                attention_mask=mask,
                position_ids=None,
                past_key_values=cache,
                position_embeddings=rows.rotary,
                **kwargs,
            )
        else:
            attended = override(layer.self_attn, layer.input_layernorm(rows.hidden), rows.rotary, cache)
        rows.hidden = rows.hidden + attended
        rows.after_attention(i)
        rows.hidden = rows.hidden + layer.mlp(layer.post_attention_layernorm(rows.hidden))


@dataclass(frozen=True)
class Shrunk:
    """Noted on a cache whose first layer lost rows: its length, which all others count by, is short from then on.

    `held` rows of that layer reach up to the position id `last`.
    """

    held: int
    last: int

    def check(self, length: int, position_ids: Tensor | None) -> None:
        """Raise UnsupportedError unless the new tokens' positions follow the `length` rows that are cached now."""
        expected = self.last + 1 + length - self.held
        if position_ids is None or int(position_ids.flatten(0, -2)[-1, 0]) != expected:
            raise UnsupportedError(
                "The first layer's cache was pruned too, so its length no longer counts the conversation: continue it "
                f"with the new tokens only and their position_ids, from {expected} on."
            )


def _lengths(cache: Any) -> set[int]:
    return {int(layer.get_seq_length()) for layer in cache.layers}


def _refuse_unsupported(attention_mask: Any, cache: Any, use_cache: bool, kwargs: dict[str, Any]) -> None:
    plain = attention_mask is None or (
        isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and bool(attention_mask.all())
    )
    if not plain:
        raise UnsupportedError("Pruning needs an unpadded prompt: pass one prompt, or several without padding.")
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UnsupportedError(
            "Pruning needs a plain DynamicCache: static, sliding and quantised caches cannot shrink."
        )
    if not use_cache:
        raise UnsupportedError("Pruning needs use_cache=True: without a cache every step would prune anew.")
    if kwargs.get("output_attentions"):
        raise UnsupportedError("output_attentions is not available while tokens are pruned: read run.scores instead.")


class _Runtime:
    """The forward that stands in for the text model's own while `attached` is open."""

    def __init__(self, model: nn.Module, run: Run, tools: Tools) -> None:
        self.lm = model.model.language_model
        self.config = model.config
        self.run, self.tools = run, tools
        self.original = self.lm.forward
        self.tap: VisionTap | None = None
        self._layout: VisualLayout | None = None

    def refuse_partial_prompts(self, mode: GenerationMode, config: GenerationConfig) -> None:
        """Refuse what would end the first pass elsewhere than at the prompt's last token, which methods score with."""
        if self.run.method.active and (mode == GenerationMode.ASSISTED_GENERATION or config.prefill_chunk_size):
            raise UnsupportedError(
                "Pruning needs the prompt in one pass that ends with it: no assisted or prompt-lookup decoding, "
                "no prefill_chunk_size."
            )

    def see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where the video is: the text model itself is handed embeddings only."""
        self._layout = None
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            if (
                kwargs.get("inputs_embeds") is not None
                and kwargs["inputs_embeds"].shape[1] > 1
                and self.run.method.active
            ):
                raise UnsupportedError(
                    "Pruning needs input_ids to know where the video is; inputs_embeds is not enough."
                )
            return
        if ids.shape[1] == 1 or not bool((ids == self.config.video_token_id).any()):
            return
        cache = kwargs.get("past_key_values")
        first, positions = ids[0].cpu(), kwargs.get("position_ids")
        grid = kwargs.get("video_grid_thw")
        if grid is None and positions is not None and positions.ndim == 3:
            grid = grid_from_positions(self.config, first, positions)
        if not self.run.method.active:
            # Vanilla runs whatever the model runs; only a single video can be laid out.
            with suppress(ModelError):
                self._layout = visual_layout(self.config, first, grid)
            return
        if cache is not None and cache.get_seq_length() > 0:
            raise UnsupportedError("Pruning handles one video, in the first turn; this is a later one or a part of it.")
        if bool((ids != ids[:1]).any()):
            raise UnsupportedError("Pruning needs the same prompt in every row of the batch (beams, samples).")
        self._layout = visual_layout(self.config, first, grid)
        if int(self._layout.index[-1]) == len(first) - 1:
            raise UnsupportedError("Pruning scores with the prompt's last token: text must follow the video.")
        self.tools.signals = getattr((kwargs.get("mm_encoder_outputs") or {}).get("video"), "signals", None)
        if self.tap is not None:
            self.tap.clear()
        self.tools.prompt_ids = tuple(first.tolist())
        self.tools.positions = None if positions is None else positions.cpu()

    def forward(
        self,
        lm: nn.Module,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        cache, method = past_key_values, self.run.method
        layout, self._layout = self._layout, None
        if layout is not None:
            self.run.begin(layout, len(lm.layers))
        prune = layout is not None and method.active
        ragged = cache is not None and len(_lengths(cache)) > 1
        if getattr(cache, "shrunk", None) is not None and (held := int(cache.layers[0].get_seq_length())):
            cache.shrunk.check(held, position_ids)
        renumbered = getattr(cache, "renumbered", ())
        if not prune and not ragged and not renumbered:
            return self.original(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        use_cache = lm.config.use_cache if use_cache is None else use_cache
        cache = DynamicCache(config=lm.config) if cache is None else cache
        hidden = lm.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        _refuse_unsupported(attention_mask, cache, use_cache, kwargs)
        if prune:
            method.check(len(lm.layers))
            if hidden.shape[0] > 1 and bool((hidden != hidden[:1]).any()):
                raise UnsupportedError("Pruning needs the same video in every row of the batch.")
        positions = _positions(lm, position_ids, hidden, cache)
        collected: list[Tensor] | None = [] if kwargs.pop("output_hidden_states", False) else None
        if prune:
            if self.tap is not None and self.tools.signals is None:
                self.tools.signals = self.tap.signals()
            rows: Pass = Prefill(lm, hidden, lm.rotary_emb(hidden, positions), cache, self.run, self.tools)
        else:
            rows = Later(lm, hidden, positions, renumbered)
        run_layers(lm.layers, rows, cache, lm.config, collected, use_cache=use_cache, **kwargs)
        if isinstance(rows, Prefill):
            rows.finish()
            held = int(cache.layers[0].get_seq_length())
            whole = held == hidden.shape[1]
            cache.shrunk = None if whole else Shrunk(held, int(positions[..., -1].max()))
            cache.renumbered = tuple(rows.renumbered)
        last = lm.norm(rows.hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=cache,
            hidden_states=None if collected is None else (*collected, last),
        )


def _positions(lm: nn.Module, position_ids: Tensor | None, hidden: Tensor, cache: DynamicCache) -> Tensor:
    """Return position ids as `rotary_emb` wants them: [B, n], or [3, B, n] for M-RoPE."""
    if position_ids is None:
        past = cache.get_seq_length()
        position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
    if not _is_mrope(lm):
        return position_ids
    if position_ids.ndim == 2:
        return position_ids[None].expand(3, -1, -1)
    return position_ids[-3:]  # generate() puts a row of text positions in front


def _is_mrope(lm: nn.Module) -> bool:
    return "mrope_section" in (lm.config.rope_parameters or {})


@contextmanager
def attached(
    model: nn.Module, method: Method, processor: Any | None = None, bias_cache: Any | None = None
) -> Iterator[Run]:
    """Prune every prompt with a video that `model` sees inside this block, and leave no trace after it.

    Parameters
    ----------
    model : LlavaOnevisionForConditionalGeneration or Qwen2VLForConditionalGeneration, unmodified.
    processor : the checkpoint's processor (ours or transformers'); needed by methods that make a black video.
    bias_cache : where black-video biases live beyond this block; without one they are made anew in each.

    Raises
    ------
    UnsupportedError : another method is attached, or a call cannot be pruned correctly (padding, static cache, ...).
    """
    core = getattr(model, "model", None)
    lm = getattr(core, "language_model", None)
    if core is None or lm is None or not hasattr(model.config, "video_token_id"):
        raise UnsupportedError(f"{type(model).__name__} is not a LLaVA-OneVision or Qwen2-VL model from transformers.")
    if getattr(lm.forward, "_prunes", False):
        raise UnsupportedError("A pruning method is already attached to this model: leave its `with` block first.")
    if "sliding_attention" in lm.config.layer_types:
        raise UnsupportedError(
            "This checkpoint uses sliding-window attention, which the pruning runtime does not support."
        )
    run = Run(method.fitted(len(lm.layers)), next(lm.parameters()).device)
    runtime = _Runtime(model, run, Tools(model, processor, bias_cache))

    def forward(lm: nn.Module, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return runtime.forward(lm, *args, **kwargs)

    def validate(mode: GenerationMode, config: GenerationConfig, *args: Any) -> None:
        runtime.refuse_partial_prompts(mode, config)
        type(model)._validate_generation_mode(model, mode, config, *args)

    forward._prunes = True  # type: ignore[attr-defined]
    before = lm.__dict__.get("forward")
    lm.forward = MethodType(forward, lm)
    model._validate_generation_mode = validate  # the one place where `generate` has decided how it will call the model
    hook = core.register_forward_pre_hook(runtime.see_inputs, with_kwargs=True)
    try:
        with tapped(model) if method.needs_vision else nullcontext() as runtime.tap:
            yield run
    finally:
        hook.remove()
        del model._validate_generation_mode
        if before is None:
            del lm.forward
        else:
            lm.forward = before
