"""The video as the LLM is given it, frame by frame: what methods compare that drop before the first layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import REINDEX, Method, knob
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")


@dataclass(frozen=True)
class WholeFrames(Method, ABC):
    """A method that chooses among the tokens that enter the LLM and keeps exactly its budget of them."""

    where = "before"

    reindex_positions: bool = knob(True, REINDEX)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, budget(self.retention, n))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer:
            return None
        kept = self.choose(input_frames(self.name, prefill), budget(self.retention, len(prefill.layout)), prefill)
        return Selection(kept, compact=self.reindex_positions and prefill.family.renumbers)

    @abstractmethod
    def choose(self, frames: Tensor, k: int, prefill: Prefill) -> Tensor:
        """Return k ascending indices into the tokens of all frames; frames [F, P, d] in fp32."""


def input_frames(method: str, prefill: Prefill) -> Tensor:
    """Return the visual tokens that enter the LLM, [frames, tokens per frame, d], in fp32.

    Raises MethodError when another method has dropped some of them before.
    """
    layout = prefill.layout
    require_whole(method, prefill)
    return prefill.hidden[0, prefill.rows].float().view(layout.frames, layout.rows * layout.cols, -1)


def require_whole(method: str, prefill: Prefill) -> None:
    """Raise MethodError when another method has dropped tokens before."""
    if len(prefill.slots) < len(prefill.layout):
        raise MethodError(f"{method}: compares whole frames, so it must come first in a combination")


def dissimilarity(u: Tensor, v: Tensor) -> Tensor:
    """Distance of directions, |u/|u| - v/|v|| = sqrt(2 - 2 cos), in [0, 2], over the last dimension.

    As a difference of unit vectors, so that equal vectors are at exactly 0; a zero vector has no direction and is at
    distance 1 from every other.
    """
    return (F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).norm(dim=-1)


def cut_at_dips(frames: Tensor, threshold: float, least: int) -> list[tuple[int, int]]:
    """Cut a video where neighbouring frames differ: [first, end) frames of each segment.

    Cuts lie wherever the cosine of the frames' mean rows is below `threshold`, and at the lowest of the others until
    there are `least` segments; of equals the earlier is cut. frames : [F, P, d].
    """
    means = frames.mean(1)
    cosine = F.cosine_similarity(means[:-1], means[1:], dim=-1).tolist()
    cuts = max(min(least - 1, len(cosine)), sum(one < threshold for one in cosine))
    lowest = sorted(range(len(cosine)), key=lambda at: (cosine[at], at))[:cuts]
    edges = [0, *(at + 1 for at in sorted(lowest)), len(frames)]
    return list(pairwise(edges))


def even_split(total: int, parts: int) -> list[int]:
    """Split `total` into whole numbers that differ by at most one: floor((i + 1) t / parts) - floor(i t / parts)."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def first_of_each(ranked: Tensor, counts: Sequence[int], size: int) -> Tensor:
    """Indices, ascending, into the tokens of all frames of the counts[t] tokens that are ranked first in frame t.

    ranked : [F, m] tokens of each frame of `size` tokens, best first, m at least the largest count. Counts are known
    to the host, so nothing waits for the device.
    """
    from sharp_demo.pruning.attention import to_device

    places = [frame * ranked.shape[1] + rank for frame, count in enumerate(counts) for rank in range(count)]
    offsets = [frame * size for frame, count in enumerate(counts) for _ in range(count)]
    at, offset = (to_device(values, torch.long, ranked.device) for values in (places, offsets))
    return (ranked.flatten()[at] + offset).sort().values
