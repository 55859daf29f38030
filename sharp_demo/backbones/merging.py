"""A hook between the layers of the vision tower: patches merge on the way, and the grid is whole again behind it.

Source: ToMe (arXiv 2210.09461), the matching of its Section 3; from the paper and its description, no code taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_demo.backbones.view import TowerMerging


@dataclass(frozen=True, eq=False)
class TowerLayer:
    """One layer of a vision tower: attention and MLP, each behind a norm and added to what enters it.

    `project` makes queries, keys and values [B, n, heads, head_dim] of normed rows [B, n, d], without positions.
    """

    module: nn.Module
    attention_norm: nn.Module
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    out: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module


@dataclass(frozen=True, eq=False)
class Patches:
    """The rows of B frames on their way through the tower.

    Attributes
    ----------
    rows : [B, n, d]. sizes : [B, n] fp32, patches that a row stands for.
    group : [B, n0] the row that stands for each patch. rotary : cos and sin [B, n, head_dim], where there are any.
    """

    rows: Tensor
    sizes: Tensor
    group: Tensor
    rotary: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, rows: Tensor, rotary: Sequence[Tensor] = ()) -> Patches:
        """Return the patches [B, n, d] before anything has merged."""
        frames, n = rows.shape[:2]
        group = torch.arange(n, device=rows.device).expand(frames, n)
        return cls(rows, torch.ones(frames, n, device=rows.device), group, tuple(rotary))

    def unmerged(self) -> Tensor:
        """Return [B, n0, d]: for each patch the row that stands for it."""
        return self.rows.gather(1, self.group[..., None].expand(-1, -1, self.rows.shape[-1]))


def merged(patches: Patches, metric: Tensor, count: int) -> Patches:
    """Merge in every frame `count` of the rows at even places into the most similar ones at odd places.

    metric : [B, n, m], compared by cosine. Of each even row's best partner the `count` most similar pairs merge, of
    equals the earlier; a merged row is the mean weighted by sizes, in fp32, and stands at its partner's place. The
    others keep their order and their bits. At most every even row that has a partner merges.
    """
    frames, n, width = patches.rows.shape
    unit = F.normalize(metric.float(), dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    count = min(count, n // 2)
    source = best.sort(dim=1, descending=True, stable=True).indices[:, :count]
    target = 2 * partner.gather(1, source) + 1
    source = 2 * source
    weight = patches.sizes[..., None]
    rows = patches.rows.float() * weight
    wide = target[..., None].expand(-1, -1, width)
    rows = rows.scatter_add(1, wide, rows.gather(1, source[..., None].expand(-1, -1, width)))
    sizes = patches.sizes.scatter_add(1, target, patches.sizes.gather(1, source))
    changed = torch.zeros(frames, n, 1, dtype=torch.bool, device=rows.device).scatter(1, target[..., None], True)
    rows = torch.where(changed, (rows / sizes[..., None]).to(patches.rows.dtype), patches.rows)
    stays = torch.ones(frames, n, dtype=torch.bool, device=rows.device).scatter(1, source, False)
    place = stays.cumsum(1) - 1  # of the rows that stay; a merged one takes its partner's
    place = place.scatter(1, source, place.gather(1, target))
    kept = stays.int().sort(dim=1, descending=True, stable=True).indices[:, : n - count]

    def left(values: Tensor) -> Tensor:
        return values.gather(1, kept[..., None].expand(-1, -1, values.shape[-1]))

    return Patches(left(rows), sizes.gather(1, kept), place.gather(1, patches.group), tuple(map(left, patches.rotary)))


def run_layer(layer: TowerLayer, patches: Patches, count: int, *, proportional: bool) -> Patches:
    """Run one layer; `count` rows merge between its attention and its MLP, by their keys' means over heads.

    `proportional`: a row's size is added to the logits of its key, as a logarithm.
    """
    queries, keys, values = layer.project(layer.attention_norm(patches.rows))
    metric = keys.float().mean(2)
    if patches.rotary:
        queries, keys = (_rotated(heads, *patches.rotary) for heads in (queries, keys))
    n, whole = patches.rows.shape[1], patches.group.shape[1]
    bias = patches.sizes.log().to(queries.dtype)[:, None, None] if proportional and n < whole else None
    queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
    seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias).transpose(1, 2).flatten(2)
    patches = Patches(patches.rows + layer.out(seen), patches.sizes, patches.group, patches.rotary)
    if count:
        patches = merged(patches, metric, count)
    rows = patches.rows + layer.mlp(layer.mlp_norm(patches.rows))
    return Patches(rows, patches.sizes, patches.group, patches.rotary)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [B, n, heads, head_dim] by cos and sin [B, n, head_dim], in fp32."""
    values = heads.float()
    first, second = values.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (values * cos[:, :, None].float() + turned * sin[:, :, None].float()).to(heads.dtype)


class _Passes:
    """What stands in for the layers' own forwards: one pass through the tower after another."""

    def __init__(self, layers: Sequence[TowerLayer], merging: TowerMerging) -> None:
        self.layers, self.merging = layers, merging
        self.patches: Patches | None = None
        self.counts: list[int] = []

    def forward(self, number: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if number == 0:
            self.patches = _split(hidden_states, kwargs)
            self.counts = self.merging.counts(self.patches.rows.shape[1], len(self.layers))
        assert self.patches is not None
        count = self.counts[number] - self.counts[number + 1]
        proportional = self.merging.proportional
        self.patches = run_layer(self.layers[number], self.patches, count, proportional=proportional)
        rows = self.patches.rows
        if number == len(self.layers) - 1:
            rows, self.patches = self.patches.unmerged(), None
        return rows if hidden_states.ndim == 3 else rows.flatten(0, 1)


def _split(hidden: Tensor, kwargs: Mapping[str, Any]) -> Patches:
    """Return the patches of every frame: rows are [B, n, d], or packed with `cu_seqlens` [B + 1] and equal lengths."""
    if hidden.ndim == 3:
        return Patches.of(hidden)
    frames = len(kwargs["cu_seqlens"]) - 1
    rotary = kwargs.get("position_embeddings") or ()
    return Patches.of(hidden.unflatten(0, (frames, -1)), [one.unflatten(0, (frames, -1)) for one in rotary])


@contextmanager
def merging_tower(layers: Sequence[TowerLayer], merging: TowerMerging) -> Iterator[None]:
    """Merge patches in every pass of this thread through these layers of a vision tower inside the block."""
    passes, thread = _Passes(layers, merging), get_ident()

    def chosen(number: int, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return passes.forward(number, *args, **kwargs) if get_ident() == thread else own(*args, **kwargs)

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            own = layer.module.forward
            layer.module.forward = partial(chosen, number, own)
            stack.callback(delattr, layer.module, "forward")
        yield
