"""SigLIP, the vision tower of more than one family: its cost, its layers, and what they tell of each patch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sharp_demo.backbones.view import TowerShape
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sharp_demo.backbones.family import TinyShape
    from sharp_demo.backbones.merging import TowerLayer
else:
    torch = LazyModule("torch")


def tower_shape(tower: Mapping[str, Any], former: int) -> TowerShape:
    """Return what a tower costs; `former` are the multiply-adds of a patch in what makes visual tokens of them."""
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    return TowerShape(
        width=tower["hidden_size"],
        intermediate=tower["intermediate_size"],
        layers=tower["num_hidden_layers"],
        head_dim=tower["hidden_size"] // tower["num_attention_heads"],
        patches=patches,
        values=3 * tower["patch_size"] ** 2,
        former=patches * former,
    )


def tower_layers(blocks: Iterable[nn.Module]) -> list[TowerLayer]:
    """Return the tower's layers as the merging pass takes them."""
    from sharp_demo.backbones.merging import TowerLayer

    return [
        TowerLayer(
            block,
            block.layer_norm1,
            partial(heads, block.self_attn),
            block.self_attn.out_proj,
            block.layer_norm2,
            block.mlp,
        )
        for block in blocks
    ]


def heads(attention: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [B, n, heads, head_dim] of normed rows [B, n, d]."""
    shape = (*rows.shape[:2], attention.num_heads, attention.head_dim)
    queries, keys, values = (proj(rows).view(shape) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    return queries, keys, values


def patch_signals(attention: nn.Module, hidden: Tensor) -> Tensor:
    """Return the attention each patch receives, and its mean key over the heads: [frames, patches, 1 + head_dim].

    `hidden` [frames, patches, d] enters the attention.
    """
    from sharp_demo.backbones.received import attention_received

    shape = (*hidden.shape[:-1], attention.num_heads, attention.head_dim)
    queries, keys = (proj(hidden).view(shape).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj))
    received = torch.stack([attention_received(q, k, attention.scale) for q, k in zip(queries, keys, strict=True)])
    return torch.cat((received[..., None], keys.float().mean(1)), -1)


def tiny_tower(shape: TinyShape) -> dict[str, int]:
    """Return the sizes of a small tower, those of its frames apart."""
    return {
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_mlp,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "patch_size": shape.patch_size,
    }
