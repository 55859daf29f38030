"""How much attention the tokens of one frame receive."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_received(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Attention each of n tokens receives, [n] fp32: mean over heads and queries of softmax(q k^T scaling).

    queries, keys : [heads, n, head_dim] of one frame. A head at a time, so that one n x n matrix exists at once.
    """
    total = torch.zeros(keys.shape[1], device=keys.device)
    for q, k in zip(queries.float(), keys.float(), strict=True):
        total += (q @ k.T * scaling).softmax(-1).mean(0)
    return total / len(queries)
