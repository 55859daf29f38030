"""Runs decoder layers one by one through their own forward, with room for hooks before, inside and after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from sharp_demo.backbones.compat import causal_mask, with_cache
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.attention import Rotary

AttentionOverride = Callable[[nn.Module, Tensor, Rotary, DynamicCache], Tensor]
"""(attention module, its normed input [B, n, d], rotary, cache) -> the module's output [B, n, d]."""


class LayerPass:
    """Rows on their way through decoder layers: hidden [B, n, d] and cos, sin [B, n, head_dim]. No hooks."""

    def __init__(self, hidden: Tensor, rotary: Rotary) -> None:
        self.hidden = hidden
        self.rotary = rotary

    def before_layer(self, layer: int) -> None:
        """Called before decoder layer `layer` runs."""

    def attention(self, layer: int) -> AttentionOverride | None:
        """Return what replaces the attention module's forward in this layer, or None."""
        return None

    def looks_inside(self, layer: int) -> bool:
        """Whether `after_attention` may do anything in this layer, which then has to be run in two steps."""
        return False

    def after_attention(self, layer: int) -> None:
        """Called after the attention residual of `layer`, before its MLP."""

    def after_layer(self, layer: int) -> None:
        """Called after the MLP residual of `layer`."""

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values [v, d] to the rows [v] of every prompt."""
        self.hidden = self.hidden.index_add(1, rows, values.to(self.hidden).expand(len(self.hidden), -1, -1))


class RenumberedPass(LayerPass):
    """Tokens after a prefill that renumbered: from each of its stages on, positions lag behind by what is gone."""

    def __init__(self, lm: nn.Module, hidden: Tensor, positions: Tensor, renumbered: Sequence[tuple[int, int]]) -> None:
        super().__init__(hidden, lm.rotary_emb(hidden, positions))
        self.rotary_emb, self.positions, self.gone = lm.rotary_emb, positions, dict(renumbered)

    def before_layer(self, layer: int) -> None:
        if layer in self.gone:
            self.rotary = self.rotary_emb(self.hidden, self.positions - self.gone[layer])


def run_layers(
    layers: Sequence[nn.Module],
    rows: LayerPass,
    cache: DynamicCache,
    config: PreTrainedConfig,
    hidden_states: list[Tensor] | None = None,
    *,
    first: int = 0,
) -> None:
    """Run `rows` through decoder layers in place, appending to `cache`; causal, bottom-right aligned.

    `hidden_states`, when given, collects the input of every layer. `first` is the model's number of `layers[0]`.
    """
    lengths: tuple[int, int] | None = None  # cached and new rows that `mask` is for
    mask = None
    for i, layer in enumerate(layers, first):
        rows.before_layer(i)
        if hidden_states is not None:
            hidden_states.append(rows.hidden)
        override = rows.attention(i)
        if override is None:
            now = (int(cache.layers[i].get_seq_length()), rows.hidden.shape[1])
            if now != lengths:
                lengths, mask = now, causal_mask(config, rows.hidden, cache, i)
        _run_layer(layer, i, rows, cache, mask, override)
        rows.after_layer(i)


def _run_layer(
    layer: nn.Module, i: int, rows: LayerPass, cache: DynamicCache, mask: Any, override: AttentionOverride | None
) -> None:
    """One layer by its own forward; its residual structure is all that is relied on.

    Where something may drop rows between attention and MLP the layer runs twice: first with an MLP that adds
    nothing, then on what is left with an attention that adds nothing.
    """
    # position_ids=None: gapped positions would be read as packed sequences by the flash path.
    run, inside = partial(layer, position_ids=None), rows.looks_inside(i)
    attention = None if override is None else partial(_overridden, override, layer.self_attn, cache)
    arguments: dict[str, Any] = {"attention_mask": None if override else mask, "use_cache": True, **with_cache(cache)}
    with _forward(layer.self_attn, attention), _forward(layer.mlp, torch.zeros_like if inside else None):
        rows.hidden = run(rows.hidden, position_embeddings=rows.rotary, **arguments)
    if inside:
        rows.after_attention(i)
        with _forward(layer.self_attn, _adds_nothing):
            rows.hidden = run(rows.hidden, position_embeddings=rows.rotary, attention_mask=None)


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any] | None) -> Iterator[None]:
    """Give one module instance another forward, in this thread only; None leaves it its own."""
    if forward is None:
        yield
        return
    thread, own = get_ident(), module.forward

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if get_ident() == thread else own(*args, **kwargs)

    with replaced(module, "forward", chosen):
        yield


def _overridden(
    override: AttentionOverride,
    self_attn: nn.Module,
    cache: DynamicCache,
    /,  # the layer passes its cache by name too
    hidden_states: Tensor,
    position_embeddings: Rotary,
    **rest: Any,
) -> tuple[Tensor, None]:
    return override(self_attn, hidden_states, position_embeddings, cache), None


def _adds_nothing(hidden_states: Tensor, **rest: Any) -> tuple[Tensor, None]:
    return torch.zeros_like(hidden_states), None


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on one instance, and put back what was there, or nothing."""
    attributes = vars(owner)
    missing = name not in attributes
    before = attributes.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@dataclass(frozen=True)
class FirstLayerPruned:
    """Of a cache whose first layer lost rows: its length, which all others count by, is short from then on.

    `held` rows of that layer reach up to the position id `last`.
    """

    held: int
    last: int

    def check(self, length: int, position_ids: Tensor | None) -> None:
        """Raise UnsupportedError unless the new tokens' positions follow the `length` rows that are cached now."""
        expected = self.last + 1 + length - self.held
        if position_ids is None or int(position_ids.flatten(0, -2)[-1, 0]) != expected:
            raise UnsupportedError(
                "the first layer's cache was pruned too, so its length no longer counts the conversation: continue it "
                f"with the new tokens only and their position_ids, from {expected} on"
            )


@dataclass(frozen=True)
class CacheNote:
    """What later tokens have to know of the pruned prefill that filled a cache.

    renumbered : [(layer, rows gone)] of every stage that made the positions compact.
    """

    renumbered: tuple[tuple[int, int], ...] = ()
    first_layer: FirstLayerPruned | None = None

    @staticmethod
    def of(cache: Cache | None) -> CacheNote:
        """The note on a cache; an empty one where there is none."""
        note: CacheNote = getattr(cache, "pruned", CacheNote())
        return note

    def put(self, cache: Cache) -> None:
        """Note it on the cache itself, so that copies of the cache carry it too."""
        cache.pruned = self
