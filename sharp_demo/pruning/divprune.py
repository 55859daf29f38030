"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): the subset whose closest pair is farthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import WholeFrames, even_split, first_of_each
from sharp_demo.pruning.method import knob

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

BLOCK = 1024  # rows of the similarity matrix that exist at once
NOISE = 1e-6  # a cosine distance below this is rounding: the rows count as equal


def most_apart(unit: Tensor) -> Tensor:
    """Index [B] of the row of unit [B, n, d] whose nearest other row is farthest; of equals the lower index."""
    n = unit.shape[1]
    apart = []
    for start in range(0, n, BLOCK):
        cosine = unit[:, start : start + BLOCK] @ unit.transpose(1, 2)
        cosine.diagonal(start, 1, 2).fill_(-torch.inf)  # not itself
        apart.append(_distance(cosine.max(-1).values))
    return torch.cat(apart, 1).argmax(-1)


def farthest_from_mean(unit: Tensor) -> Tensor:
    """Index [B] of the row of unit [B, n, d] whose cosine to the mean of all is lowest; of equals the lower index."""
    return _distance((unit @ F.normalize(unit.mean(1), dim=-1)[..., None])[..., 0]).argmax(-1)


def max_min_order(unit: Tensor, first: Tensor, count: int) -> Tensor:
    """Pick `count` rows one after another, each the farthest from the nearest of those picked before.

    Parameters
    ----------
    unit : [B, n, d], B separate sets. first : [B], where each begins. Of equals the lower index is picked.

    Returns
    -------
    [B, count] distinct indices in the order of picking.
    """
    batch = torch.arange(len(unit), device=unit.device)
    nearest = torch.full(unit.shape[:2], torch.inf, device=unit.device)
    picks, pick = [first], first
    for _ in range(count - 1):
        cosine = (unit @ unit[batch, pick][..., None])[..., 0]
        nearest = torch.minimum(nearest, _distance(cosine))
        nearest[batch, pick] = -torch.inf
        pick = nearest.argmax(-1)
        picks.append(pick)
    return torch.stack(picks, 1)


def _distance(cosine: Tensor) -> Tensor:
    distance = 1 - cosine
    return torch.where(distance > NOISE, distance, 0)


@dataclass(frozen=True)
class DivPrune(WholeFrames):
    """Keep the tokens that are most unlike each other: greedy max-min of the cosine distance, before the LLM.

    The first token is the one whose nearest other token is farthest away; then always the one whose nearest picked
    token is farthest. The question is not seen.

    Deviations: the official code is for one image, here the N tokens of a video are one set (`scope=video`), or every
    frame is one with an equal share of the budget (`scope=frame`, ours). It leaves picked tokens in the running, so
    that among equal tokens it may return one several times; here a token is picked once, and distances below 1e-6
    count as equal. A running minimum replaces the minimum over all picked rows, which is the same. Finding the first
    token compares all pairs; `first=mean` (ours) takes the one farthest from the mean instead. Survivors are
    renumbered, except with M-RoPE; the official code does that for its one image.
    """

    name = "divprune"
    title = "DivPrune"
    paper = "https://arxiv.org/abs/2503.02175"
    year = 2025
    summary = "The tokens most unlike each other, greedily, whatever the question; drops before the LLM."
    color = "#C0C07C"

    scope: str = knob(
        "video",
        "the tokens of the whole video are one set, or those of each frame",
        choices=("video", "frame"),
        costs=True,
    )
    first: str = knob(
        "nearest",
        "begin with the token whose nearest other is farthest, or with the one farthest from the mean",
        choices=("nearest", "mean"),
        costs=True,
    )

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        (_, kept), n, frames = prunes.stages[0], prunes.before[0], prunes.frames
        sets = 1 if self.scope == "video" else frames
        picks = max(even_split(kept, sets))
        first = n // sets if self.first == "nearest" else 1
        return {"scores": n * (first + picks - 1) * prunes.shape.hidden}

    def choose(self, frames: Tensor, k: int, prefill: Prefill) -> Tensor:
        sets = frames.flatten(0, 1)[None] if self.scope == "video" else frames
        counts = even_split(k, len(sets))
        with prefill.stage("select"):
            unit = F.normalize(sets, dim=-1)
            first = most_apart(unit) if self.first == "nearest" else farthest_from_mean(unit)
            return first_of_each(max_min_order(unit, first, max(counts)), counts, sets.shape[1])
