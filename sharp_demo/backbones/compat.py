"""The key/value cache by the name that transformers gives it: `cache`, or `past_key_values` up to 5.23."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache as once
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

NAMES = ("cache", "past_key_values")


@once
def cache_name() -> str:
    """The cache's name as an argument of models, layers and mask functions, and as a field of outputs."""
    parameters = inspect.signature(create_causal_mask).parameters
    return next(name for name in NAMES if name in parameters)


def with_cache(cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments that pass a cache."""
    return {cache_name(): cache}


def cache_in(kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among keyword arguments or in an output, under either name; None where there is none."""
    return next((found for name in NAMES if (found := kwargs.get(name)) is not None), None)


def causal_mask(config: PreTrainedConfig, hidden: Tensor, cache: Cache, layer: int) -> Tensor | None:
    """The mask of hidden [B, n, d] behind what `layer` has cached, in the form the attention backend wants."""
    arguments: dict[str, Any] = {"inputs_embeds": hidden, "attention_mask": None, "layer_idx": layer}
    return create_causal_mask(config=config, **arguments, **with_cache(cache))


def text_output(last: Tensor, cache: Cache, hidden_states: tuple[Tensor, ...] | None) -> BaseModelOutputWithPast:
    """What a text model returns."""
    return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=hidden_states, **with_cache(cache))
