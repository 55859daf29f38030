"""FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187): salient tokens, and averages over segments of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import cut_at_dips, input_frames
from sharp_demo.pruning.method import REINDEX, Method, knob
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.peaks import density_peaks
from sharp_demo.pruning.schedule import Schedule, floor_share

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

NEIGHBORS = 4


def anchors(first: int, end: int, step: int) -> list[int]:
    """Return the anchor frames of a segment, its last and every `step`-th before it, ascending."""
    return list(range(end - 1, first - 1, -step))[::-1]


def blend(pool: Tensor, targets: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Blend each target with the mean of the rows that resemble it most.

    Parameters
    ----------
    pool : [n, d]. targets : [c] indices of the rows that are targets.
    least : beta; a target of m rows, itself among them, weighs max(1 / (m + 1), beta).

    Returns
    -------
    [c, d] in fp32, and [n] which target each row went to; a target goes to itself, of equals the lower place wins.
    """
    unit = F.normalize(pool, dim=-1)
    nearest = (unit @ unit[targets].T).argmax(-1)
    nearest[targets] = torch.arange(len(targets), device=pool.device)
    member = F.one_hot(nearest, len(targets)).to(pool)
    size = member.sum(0)[:, None]
    weight = (1 / (size + 1)).clamp(min=least)
    return weight * pool[targets] + (1 - weight) * (member.T @ pool) / size, nearest


@dataclass(frozen=True)
class FastVID(Method):
    """Keep each frame's salient tokens, and blend all others of a segment into targets in a few of its frames.

    A frame of P tokens has a budget of floor(retention P), of which the `context` share is for targets. The video is
    cut at the lowest cosines of neighbouring frames until there are `segments`, and below `tau`. The salient tokens of
    a frame receive most attention in the vision tower. A segment's budget of targets lies in its anchors, its last
    frame and every `anchor_step`-th before it, at the density peaks of what is not salient there. For every anchor
    all such tokens of the segment go to their most similar target, which becomes w target + (1 - w) mean, with
    w = max(1 / (n + 1), beta) for n tokens.

    Deviations: the official code takes attention and frame vectors from SigLIP's pooling head, which LLaVA-OneVision
    does not ship; here they are the attention received in the tower layer that feeds the projector and the mean of a
    frame's tokens, as in its version for Qwen2.5-VL. That one also has its own segments inside segments and other
    settings, which are left out. Frames stay in order and so do their tokens; no count exceeds the tokens there are. A
    token may be blended into a target of every anchor; the one recorded is in the first anchor from its frame on.
    Survivors keep their positions, as in the official code.
    """

    name = "fastvid"
    title = "FastVID"
    paper = "https://arxiv.org/abs/2503.11187"
    year = 2025
    summary = "Vision-tower attention, and the rest of each segment blended into density peaks; drops before the LLM."
    where = "before"
    needs_vision = True
    adaptive = True
    color = "#0505BD"

    segments: int = knob(8, "c: least number of segments", low=1)
    tau: float = knob(0.9, "cosine of neighbouring frames below which a segment ends", low=-1.0, high=1.0)
    context: float = knob(0.4, "d: share of a frame's budget that goes to targets", low=0.0, high=1.0, costs=True)
    anchor_step: int = knob(4, "p: every so many frames of a segment one holds targets", low=1)
    beta: float = knob(0.6, "least weight of a target against the mean of its tokens", low=0.0, high=1.0)
    reindex_positions: bool = knob(False, REINDEX.replace("as the original does", "which the original does not"))
    seed: int = knob(0, "seed of the jitter that breaks ties of density", low=0, high=2**63 - 1)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """The budget of all frames; targets are rounded down in every segment, so fewer may be kept."""
        return [(0, frames * max(1, floor_share(self.retention, n // frames)))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        return self._select(prefill) if layer == 0 else None

    def _select(self, prefill: Prefill) -> Selection:
        tokens = input_frames(self.name, prefill)
        (frames, size), received = tokens.shape[:2], prefill.signals.received
        prefill.record_scores("raw", received)
        budget = max(1, floor_share(self.retention, size))
        targets = floor_share(self.context, budget)
        with prefill.stage("segments"):
            segments = cut_at_dips(tokens, self.tau, self.segments)
            prefill.run.segments = segments
        with prefill.stage("select"):
            ranked = received.view(frames, size).sort(dim=1, descending=True, stable=True).indices
            slots = ranked + torch.arange(frames, device=ranked.device)[:, None] * size
            salient = slots[:, : budget - targets].flatten()
            rest = slots[:, budget - targets :].sort(dim=1).values  # [F, r]
        with prefill.stage("merge"):
            return self._merge(tokens.flatten(0, 1), salient, rest, segments, targets, prefill)

    def _merge(
        self,
        tokens: Tensor,
        salient: Tensor,
        rest: Tensor,
        segments: Sequence[tuple[int, int]],
        targets: int,
        prefill: Prefill,
    ) -> Selection:
        generator = torch.Generator().manual_seed(self.seed)
        kept, rows = [salient], [tokens[salient]]
        merged_into = torch.full((len(tokens),), -1, device=rest.device)
        for first, end in segments:
            chosen = anchors(first, end, self.anchor_step)
            count = min(targets * (end - first) // len(chosen), rest.shape[1])
            if not count:
                continue
            pool = rest[first:end].flatten()
            for start, anchor in zip((first, *(one + 1 for one in chosen)), chosen, strict=False):
                at = rest[anchor]
                centers, _ = density_peaks(tokens[at], count, NEIGHBORS, generator)
                blended, nearest = blend(tokens[pool], (anchor - first) * rest.shape[1] + centers, self.beta)
                kept.append(at[centers])
                rows.append(blended)
                near = slice((start - first) * rest.shape[1], (anchor + 1 - first) * rest.shape[1])
                merged_into[pool[near]] = at[centers][nearest[near]]
        slots, order = torch.cat(kept).sort()
        merged_into[slots] = -1
        role = torch.full_like(slots, int(Role.CONTEXTUAL))
        role[order < len(salient)] = int(Role.DOMINANT)
        compact = self.reindex_positions and prefill.family.renumbers
        return Selection(slots, role, torch.cat(rows)[order], merged_into, compact)
