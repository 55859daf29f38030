"""Attaches a method to one model instance for the length of a `with` block, and refuses what cannot be pruned right.

One forward is installed on the text model and taken off again. It calls the untouched forward whenever no method is
active and all layers' caches are equally long; otherwise it runs the decoder layers itself: original positions are
kept, one mask serves each run of equally long layers, and every hook point of a method is a plain call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, local
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast

from sharp_demo.backbones.compat import cache_in, cache_name, text_output, with_cache
from sharp_demo.backbones.families import FAMILIES, family_of, visual_layout
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.reserve import ReservedLayer
from sharp_demo.backbones.signals import VisionSignals, VisionTap, tapped
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.errors import ModelError, UnsupportedError
from sharp_demo.pruning.layers import CacheNote, FirstLayerPruned, LayerPass, RenumberedPass, replaced, run_layers
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.prefill import Prefill, PromptContext

if TYPE_CHECKING:
    from sharp_demo.pruning.method import Method

ATTACHED = "_pruned_by"
"""Attribute of a text model that holds the runtime attached to it."""

PLAIN = (DynamicLayer, ReservedLayer)
STATIC = "a static cache has a fixed length and cannot be pruned: use a DynamicCache, or none"
ALLOWED = ("output_hidden_states", "logits_to_keep", "return_dict")
"""Further arguments of a text model that a pruned pass honours, or that do not concern it."""

PARTIAL = (
    "pruning needs the prompt in one pass that ends with it: no assisted or prompt-lookup decoding, "
    "no prefill_chunk_size"
)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the whole model was handed, for the text model's call that follows in the same thread."""

    layout: VisualLayout
    ids: tuple[int, ...]
    positions: Tensor | None
    signals: VisionSignals | None
    merging: TowerMerging | None = None


class _Runtime:
    """The forward that stands in for the text model's own while `attached` is open."""

    def __init__(self, model: nn.Module, run: Run, context: PromptContext) -> None:
        self.family = family_of(model.config)
        self.lm = self.family.text_model(model)
        self.config = model.config
        self.run, self.context = run, context
        self.original = self.lm.forward
        self.tap: VisionTap | None = None
        self._thread = local()  # `seen` and `labels` of the call that is under way in a thread
        self._prefilling = Lock()

    def refuse_partial_prompts(self, mode: GenerationMode, config: GenerationConfig) -> None:
        """Refuse what would end the first pass elsewhere than at the prompt's last token, which methods score with."""
        if not self.run.method.active:
            return
        if mode == GenerationMode.ASSISTED_GENERATION or config.prefill_chunk_size:
            raise UnsupportedError(PARTIAL)
        if "static" in (config.cache_implementation or ""):
            raise UnsupportedError(STATIC)

    @torch.compiler.disable
    def see_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what only the outermost model is handed."""
        self._thread.labels = kwargs.get("labels") is not None

    @torch.compiler.disable
    def see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where the video is: the text model itself is handed embeddings only."""
        self._thread.seen = None
        ids = kwargs.get("input_ids", args[0] if args else None)
        active = self.run.method.active
        if ids is None:
            embeddings = kwargs.get("inputs_embeds")
            if active and embeddings is not None and embeddings.shape[1] > 1:
                raise UnsupportedError(
                    "pruning needs input_ids to know where the video is; inputs_embeds is not enough"
                )
            return
        cache = cache_in(kwargs)
        first_turn = cache is None or int(cache.get_seq_length()) == 0
        if ids.shape[1] == 1 or not bool((ids == self.family.visual_token_id(self.config)).any()):
            if active and first_turn and ids.shape[1] > 1:
                images = any(bool((ids == other).any()) for other in self.family.placeholder_ids(self.config))
                self.run.skip("The prompt holds images and no video" if images else "The prompt holds no video")
            return
        self._thread.seen = self._see_video(ids, kwargs, first_turn)

    def _see_video(self, ids: Tensor, kwargs: Mapping[str, Any], first_turn: bool) -> _Seen | None:
        first, positions = ids[0].cpu(), kwargs.get("position_ids")
        grid = kwargs.get("video_grid_thw")
        if grid is None and positions is not None:
            grid = self.family.grid_of_positions(self.config, first, positions)
        if not self.run.method.active:
            # Vanilla runs whatever the model runs; only a single video can be laid out.
            with suppress(ModelError):
                return _Seen(visual_layout(self.config, first, grid), (), None, None)
            return None
        if not first_turn:
            raise UnsupportedError("pruning handles one video, in the first turn; this is a later one or a part of it")
        if bool((ids != ids[:1]).any()):
            raise UnsupportedError("pruning needs the same prompt in every row of the batch (beams, samples)")
        if getattr(self._thread, "labels", False):
            raise UnsupportedError("labels= needs logits of the whole prompt, which is shorter once it is pruned")
        layout = visual_layout(self.config, first, grid)
        if int(layout.index[-1]) == len(first) - 1:
            raise UnsupportedError("pruning scores with the prompt's last token: text must follow the video")
        if self.tap is not None:
            self.tap.clear()
        output = (kwargs.get("mm_encoder_outputs") or {}).get(self.family.features_key)
        signals, merging = getattr(output, "signals", None), getattr(output, "merging", None)
        return _Seen(layout, tuple(first.tolist()), None if positions is None else positions.cpu(), signals, merging)

    @torch.compiler.disable
    def forward(
        self,
        lm: nn.Module,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        cache = kwargs.pop(cache_name(), past_key_values)
        seen: _Seen | None = getattr(self._thread, "seen", None)
        self._thread.seen = None
        if seen is not None:
            self.run.begin(seen.layout, len(lm.layers))
        prune = seen is not None and self.run.method.active
        ragged = cache is not None and len(_lengths(cache)) > 1
        note = CacheNote.of(cache)
        if note.first_layer is not None and (held := int(cache.layers[0].get_seq_length())):
            note.first_layer.check(held, position_ids)
        if not prune and not ragged and not note.renumbered:
            return self.original(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **with_cache(cache),
                **kwargs,
            )
        cache = DynamicCache(config=lm.config) if cache is None else cache
        hidden = lm.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        caches = lm.config.use_cache if use_cache is None else use_cache
        honoured = (*ALLOWED, *self.family.injection_arguments) if prune else ALLOWED
        _refuse_unsupported(attention_mask, cache, caches, kwargs, honoured)
        positions = self._positions(position_ids, hidden, cache)
        collected: list[Tensor] | None = [] if kwargs.get("output_hidden_states") else None
        rows: LayerPass
        if prune and seen is not None:
            with self._prefilling:
                self.context.injections = self.family.injections(kwargs)
                rows = self._prefill(lm, seen, hidden, positions, cache, collected)
        else:
            rows = RenumberedPass(lm, hidden, positions, note.renumbered)
            run_layers(lm.layers, rows, cache, lm.config, collected)
        last = lm.norm(rows.hidden)
        return text_output(last, cache, None if collected is None else (*collected, last))

    def _prefill(
        self,
        lm: nn.Module,
        seen: _Seen,
        hidden: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        collected: list[Tensor] | None,
    ) -> Prefill:
        self.run.method.check(len(lm.layers))
        if hidden.shape[0] > 1 and bool((hidden != hidden[:1]).any()):
            raise UnsupportedError("pruning needs the same video in every row of the batch")
        context = self.context
        context.prompt_ids, context.positions, context.signals = seen.ids, seen.positions, seen.signals
        context.merging = seen.merging
        if self.tap is not None and context.signals is None:
            context.signals = self.tap.signals()
        rows = Prefill(lm, hidden, lm.rotary_emb(hidden, positions), cache, self.run, context)
        run_layers(lm.layers, rows, cache, lm.config, collected)
        rows.finish()
        held = int(cache.layers[0].get_seq_length())
        short = None if held == hidden.shape[1] else FirstLayerPruned(held, int(positions[..., -1].max()))
        CacheNote(tuple(rows.renumbered), short).put(cache)
        return rows

    def _positions(self, position_ids: Tensor | None, hidden: Tensor, cache: Cache) -> Tensor:
        """Return position ids as `rotary_emb` wants them."""
        if position_ids is None:
            past = cache.get_seq_length()
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        return self.family.rotary_positions(position_ids)


def _lengths(cache: Cache) -> set[int]:
    return {int(layer.get_seq_length()) for layer in cache.layers}


def _refuse_unsupported(
    attention_mask: Any, cache: Cache, use_cache: bool, kwargs: Mapping[str, Any], honoured: Sequence[str]
) -> None:
    plain = attention_mask is None or (
        isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and bool(attention_mask.all())
    )
    if isinstance(cache, StaticCache):
        raise UnsupportedError(STATIC)
    if not plain:
        raise UnsupportedError("pruning needs an unpadded prompt: pass one prompt, or several without padding")
    if not isinstance(cache, DynamicCache) or any(type(layer) not in PLAIN for layer in cache.layers):
        raise UnsupportedError("pruning needs a plain DynamicCache: sliding and quantised caches cannot shrink")
    if not use_cache:
        raise UnsupportedError("pruning needs use_cache=True: without a cache every step would prune again")
    if kwargs.get("output_attentions"):
        raise UnsupportedError("output_attentions is not available while tokens are pruned: read run.scores instead")
    for name, value in kwargs.items():
        if name not in honoured and value is not None and value is not False:
            raise UnsupportedError(f"{name}= means nothing to the pruned pass, so it is refused: leave it out")


@contextmanager
def attached(
    model: nn.Module, method: Method, processor: Any | None = None, bias_cache: Any | None = None
) -> Iterator[Run]:
    """Prune every prompt with a video that `model` sees inside this block, and leave no trace after it.

    Parameters
    ----------
    model : transformers' model of a supported family, unmodified. One that torch.compile made runs uncompiled inside
        the block: tokens are dropped where the graph has fixed lengths.
    processor : the checkpoint's processor (ours or transformers'); needed by methods that make a black video.
    bias_cache : where black-video biases live beyond this block; without one each block makes its own.

    Raises
    ------
    UnsupportedError : another method is attached, by this or another thread, or a call cannot be pruned correctly
        (padding, static cache, ...).
    """
    outer, model = model, getattr(model, "_orig_mod", model)
    try:
        core, lm = model.model, family_of(model.config).text_model(model)
    except (AttributeError, ModelError):
        known = " or ".join(family.title for family in FAMILIES)
        raise UnsupportedError(f"{type(model).__name__} is not a {known} model from transformers") from None
    if "sliding_attention" in (getattr(lm.config, "layer_types", None) or ()):
        raise UnsupportedError(
            "this checkpoint uses sliding-window attention, which the pruning runtime does not support"
        )
    if any(map(_is_compiled, (core, lm, *lm.layers))):
        raise UnsupportedError(
            "parts of this model are compiled, and their graphs would not see what is dropped: compile the whole model"
        )
    run = Run(method.fitted(len(lm.layers)), next(lm.parameters()).device)
    runtime = _Runtime(model, run, PromptContext(model, processor, bias_cache))
    if vars(lm).setdefault(ATTACHED, runtime) is not runtime:  # one step, so that of two threads one comes first
        raise UnsupportedError("a pruning method is already attached to this model: leave its `with` block first")

    def forward(lm: nn.Module, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return runtime.forward(lm, *args, **kwargs)

    def validate(mode: GenerationMode, config: GenerationConfig, *args: Any) -> None:
        runtime.refuse_partial_prompts(mode, config)
        type(model)._validate_generation_mode(model, mode, config, *args)

    with ExitStack() as stack:
        stack.callback(delattr, lm, ATTACHED)
        runtime.original = lm.forward
        stack.enter_context(replaced(lm, "forward", MethodType(forward, lm)))
        # The one place where `generate` has decided how it will call the model.
        stack.enter_context(replaced(model, "_validate_generation_mode", validate))
        if outer is not model:
            stack.enter_context(replaced(outer, "forward", model.__call__))
        if _is_compiled(model):
            stack.enter_context(replaced(model, "_compiled_call_impl", None))
        for module, see in ((model, runtime.see_call), (core, runtime.see_inputs)):
            stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
        if method.needs_vision:
            runtime.tap = stack.enter_context(tapped(model))
        yield run


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module was made by torch.compile, or compiled in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
