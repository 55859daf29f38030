"""Density peaks: centres that are dense, and far from anything denser (DPC-KNN)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import top_k

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

JITTER = 1e-6  # breaks ties of density, as in the official codes of HoliTom, FastVID and FlashVID


def density_peaks(rows: Tensor, count: int, neighbors: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose `count` centres of n rows by DPC-KNN: dense, and far from anything denser.

    Density is exp(-mean squared distance to the nearest `neighbors`, itself included); distances are Euclidean over
    sqrt(d). `generator` draws the jitter that breaks ties.

    Returns
    -------
    [count] ascending indices and the [n, n] distances.
    """
    rows = rows.float()
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") / rows.shape[1] ** 0.5
    nearest = distance.topk(min(neighbors, len(rows)), largest=False).values
    jitter = torch.rand(len(rows), generator=generator).to(rows.device)
    density = (-nearest.square().mean(-1)).exp() + JITTER * jitter
    denser = density > density[:, None]
    apart = torch.where(denser, distance, distance.max()).min(-1).values
    return top_k(apart * density, count), distance
