"""The video as the LLM is given it, frame by frame: what methods compare that drop before the first layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    F = LazyModule("torch.nn.functional")


def input_frames(method: str, prefill: Prefill) -> Tensor:
    """Return the visual tokens that enter the LLM, [frames, tokens per frame, d], in fp32.

    Raises MethodError when another method has dropped some of them before.
    """
    layout = prefill.layout
    if len(prefill.slots) < len(layout):
        raise MethodError(f"{method}: compares whole frames, so it must come first in a combination.")
    return prefill.hidden[0, prefill.rows].float().view(layout.frames, layout.rows * layout.cols, -1)


def dissimilarity(u: Tensor, v: Tensor) -> Tensor:
    """Distance of directions, |u/|u| - v/|v|| = sqrt(2 - 2 cos), in [0, 2], over the last dimension.

    As a difference of unit vectors, so that equal vectors are at exactly 0; a zero vector has no direction and is at
    distance 1 from every other.
    """
    return (F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).norm(dim=-1)
