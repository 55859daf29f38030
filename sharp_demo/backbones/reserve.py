"""A key and value cache with room: a new token's rows are written into place, not appended to a copy of all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 256  # rows that are added at a time


class ReservedLayer(DynamicLayer):
    """A layer whose keys and values [1, heads, rows, head_dim] are the first rows of larger tensors.

    Whoever replaces them, as cropping and pruning do, pays for one copy at the next token.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._whole: tuple[Tensor, Tensor] = (layer.keys, layer.values)
        self._rows: tuple[Tensor, Tensor] | None = None  # what keys and values are while they are rows of those

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new rows behind the others and return all of them."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        ours = self._rows is not None and self._rows[0] is self.keys and self._rows[1] is self.values
        if not ours or end > self._whole[0].shape[-2]:
            self._whole = (roomy(self.keys, end + ROOM), roomy(self.values, end + ROOM))
        for whole, rows in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., start:end, :] = rows
        self.keys, self.values = self._rows = (self._whole[0][..., :end, :], self._whole[1][..., :end, :])
        return self.keys, self.values


def roomy(rows: Tensor, count: int) -> Tensor:
    """Return a tensor of `count` rows that begins with these; what follows is not initialised."""
    whole = rows.new_empty((*rows.shape[:-2], count, rows.shape[-1]))
    whole[..., : rows.shape[-2], :] = rows
    return whole


def reserve(cache: DynamicCache) -> None:
    """Let the plain layers of a filled cache grow in place from here on; layers of other kinds stay as they are."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and isinstance(layer.keys, torch.Tensor):
            cache.layers[index] = ReservedLayer(layer)
