"""FlashVID (Fan et al., ICLR 2026, arXiv 2602.08024): attended and diverse tokens, trees over time, clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import cut_at_dips, input_frames
from sharp_demo.pruning.method import REINDEX, Method, knob, top_k
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.peaks import density_peaks
from sharp_demo.pruning.schedule import Schedule, ceil_share

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

NEIGHBORS = 7


def flashvid_layer(layers: int) -> int:
    """Return the layer of FlashVID's inner stage: 20 of 28, the same share of another depth."""
    return max(1, round(layers * 20 / 28))


def attended_and_diverse(frames: Tensor, weight: Tensor, count: int) -> Tensor:
    """Pick `count` tokens of each frame, each the one whose weighted distance to its nearest picked one is largest.

    Parameters
    ----------
    frames : [F, P, d]. weight : [F, P]; a token's cosine distances to all others are multiplied by its own weight. The
        first pick has the largest such distance to its nearest other. Of equals the lower index is picked.

    Returns
    -------
    [F, count] distinct indices in the order of picking.
    """
    unit = F.normalize(frames, dim=-1)
    apart = (1 - unit @ unit.transpose(1, 2)).clamp(min=0) * weight[:, None]  # [F, from, to]
    apart.diagonal(0, 1, 2).fill_(torch.inf)  # not to itself
    batch = torch.arange(len(frames), device=frames.device)
    pick = apart.amin(1).argmax(-1)
    nearest = torch.full_like(weight, torch.inf)
    picks = [pick]
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, apart[batch, pick])
        nearest[batch, pick] = -torch.inf
        pick = nearest.argmax(-1)
        picks.append(pick)
    return torch.stack(picks, 1)


def parents(frames: Tensor, free: Tensor, threshold: float, floor: int) -> Tensor:
    """For each token of a segment the token of the frame before that it merges into, anywhere in that frame, or -1.

    Parameters
    ----------
    frames : [L, P, d]. free : [L, P], which tokens may merge and be merged into.
    threshold : least cosine, exclusive; it rises where fewer than `floor` tokens would stay their own.

    Returns
    -------
    [L, P] LongTensor of places in the frame before.
    """
    unit = F.normalize(frames, dim=-1)
    cosine = unit[1:] @ unit[:-1].transpose(1, 2)  # [L - 1, P, P]
    cosine = cosine.masked_fill(~(free[1:, :, None] & free[:-1, None]), -1.0)
    best, place = F.pad(cosine.max(-1).values, (0, 0, 1, 0), value=-1.0), F.pad(cosine.argmax(-1), (0, 0, 1, 0))
    merges = best > threshold
    most = best.numel() - floor
    if int(merges.sum()) > most:
        soft = best.flatten().sort(descending=True).values[most - 1] if most > 0 else best.new_tensor(2.0)
        merges = best > soft.clamp(min=-1 + 1e-6)
    return torch.where(merges, place, -1)


def tree_means(frames: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
    """Average every tree at its root.

    Parameters
    ----------
    frames : [L, P, d]. parent : [L, P] as `parents` gives it.

    Returns
    -------
    [L, P, d] mean of the tree that hangs on each token, itself included, and [L, P] the root of each token as an
    index into all L P.
    """
    sums, size = frames.clone(), torch.ones(frames.shape[:2], device=frames.device)
    for frame in range(len(frames) - 1, 0, -1):
        leaves = (parent[frame] >= 0).nonzero()[:, 0]
        to = parent[frame, leaves]
        sums[frame - 1].index_add_(0, to, sums[frame, leaves])
        size[frame - 1].index_add_(0, to, size[frame, leaves])
    places = torch.arange(frames.shape[1], device=frames.device)
    root = places.expand(frames.shape[:2]).clone()
    for frame in range(1, len(frames)):
        here = root[frame] + frame * frames.shape[1]
        root[frame] = torch.where(parent[frame] >= 0, root[frame - 1, parent[frame].clamp(min=0)], here)
    return sums / size[..., None], root


def clustered(rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Average rows [n, d] into `count` clusters around density peaks.

    Returns
    -------
    [count] ascending indices of the centres, [count, d] plain means, and [n] the cluster of each row.
    """
    centers, distance = density_peaks(rows, count, min(NEIGHBORS, count), generator)
    nearest = distance[:, centers].argmin(-1)
    nearest[centers] = torch.arange(count, device=rows.device)
    member = F.one_hot(nearest, count).to(rows)
    return centers, (member.T @ rows) / member.sum(0)[:, None], nearest


@dataclass(frozen=True)
class FlashVID(Method):
    """Keep tokens that are attended to and diverse, merge the rest over time and space, prune once inside the LLM.

    Outer stage, before the LLM. A frame of P tokens has a budget of b = ceil(retention P expansion). The `alpha` share
    of it goes to tokens picked one after another: the one whose cosine distance to its nearest picked one is largest,
    multiplied by the attention it receives in the vision tower and by its dot product with the mean of its segment.
    The video is cut where the cosine of frame means is below `segment_tau`, and further until there are `segments`.
    In each segment, from its last frame to its first, a token that was not picked merges into its most similar one
    in the frame before where their cosine is above `merge_tau`: trees, each averaged at its root. What is left of each
    frame is averaged into clusters around density peaks, so many that the segment meets its budget. Inner stage, before
    layer `inner_layer`: the `inner` share with the most attention from the last token in the layer before stays.

    `retention` is the mean over the layers: expansion 1.25 and inner share 0.3 from layer 20 of 28 on come to 1.
    Counts are rounded up per frame, so a few tokens more are kept.

    Deviations: a parent counts the sizes of its children (the official code counts children, so that chains weigh too
    much); a token is picked once (the official code may pick one twice); tokens that were picked stay out of the
    clusters of a one-frame segment too, where the official code averages them in. Attention is what a token receives
    in the tower layer that feeds the projector. The official version for Qwen2.5-VL leaves out the dot product and has
    other settings; here both models run one. Models of another depth prune inside at the same share of it.
    """

    name = "flashvid"
    title = "FlashVID"
    paper = "https://arxiv.org/abs/2602.08024"
    year = 2026
    summary = (
        "Vision-tower attention with diversity, the rest merged over trees and clusters, before the LLM; then the last "
        "token's attention before layer 20 of 28. Retention is a mean."
    )
    where = "both"
    question_aware = True
    needs_vision = True
    adaptive = True
    color = "#950495"

    alpha: float = knob(
        0.7, "share of a frame's budget that is picked by attention and diversity", low=0.0, high=1.0, costs=True
    )
    merge_tau: float = knob(
        0.8, "cosine to a token of the frame before above which a token merges into it", low=-1.0, high=1.0
    )
    segments: int = knob(8, "least number of segments", low=1)
    segment_tau: float = knob(0.9, "cosine of frame means below which a segment ends", low=-1.0, high=1.0)
    expansion: float = knob(1.25, "what enters the LLM, over the retention", low=1.0, costs=True)
    inner_layer: int = knob(
        0, "the inner stage drops before this decoder layer; 0: 20 of 28, scaled", low=0, costs=True
    )
    inner: float = knob(0.3, "share that the inner stage keeps; 1: no inner stage", low=0.01, high=1.0, costs=True)
    reindex_positions: bool = knob(True, REINDEX)
    seed: int = knob(0, "seed of the jitter that breaks ties of density", low=0, high=2**63 - 1)

    def fitted(self, layers: int) -> FlashVID:
        return replace(self, inner_layer=self.inner_layer or flashvid_layer(layers))

    def budgets(self, size: int) -> tuple[int, int]:
        """Tokens that a frame of `size` keeps before the LLM, and how many of them are picked."""
        kept = ceil_share(min(1.0, self.retention * self.expansion), size)
        return kept, ceil_share(self.alpha, kept)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """The two stages on a video whose segments meet their budgets exactly."""
        outer = frames * self.budgets(n // frames)[0]
        inner = (self.inner_layer or flashvid_layer(layers), ceil_share(self.inner, outer))
        return [(0, outer), inner] if self.inner < 1 else [(0, outer)]

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        """Distances and weights of the picks, and the inner stage's row; merging is not counted."""
        n, size = prunes.before[0], prunes.before[0] // prunes.frames
        picks = n * (size + 1) * prunes.shape.hidden if self.budgets(size)[1] else 0
        return {"scores": picks + prunes.rows(inside=True)}

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer == 0:
            return self._outer(prefill)
        return self._inner(layer, prefill) if layer == self.inner_layer and self.inner < 1 else None

    def _inner(self, layer: int, prefill: Prefill) -> Selection:
        with prefill.stage("scores"):
            scores = prefill.logits_of_last_layer(layer - 1).softmax(-1).mean(0)[prefill.rows]
        with prefill.stage("select"):
            return Selection(top_k(scores, ceil_share(self.inner, len(scores))))

    def _outer(self, prefill: Prefill) -> Selection:
        tokens = input_frames(self.name, prefill)
        count, size = tokens.shape[:2]
        received = prefill.signals.received.view(count, size)
        prefill.record_scores("raw", received.flatten())
        kept, picked = self.budgets(size)
        with prefill.stage("segments"):
            segments = cut_at_dips(tokens, self.segment_tau, self.segments)
            prefill.run.segments = segments
        with prefill.stage("select"):
            free = torch.ones_like(received, dtype=torch.bool)
            if picked:
                means = tokens.mean(1)
                segment_mean = torch.cat([means[a:b].mean(0).expand(b - a, -1) for a, b in segments])
                weight = received * (tokens @ segment_mean[..., None])[..., 0]
                free.scatter_(1, attended_and_diverse(tokens, weight, picked), False)
        with prefill.stage("merge"):
            return self._merge(tokens, free, segments, kept - picked, kept, prefill)

    def _merge(
        self,
        tokens: Tensor,
        free: Tensor,
        segments: Sequence[tuple[int, int]],
        rest: int,
        kept: int,
        prefill: Prefill,
    ) -> Selection:
        size, device = tokens.shape[1], tokens.device
        generator = torch.Generator().manual_seed(self.seed)
        picked = (~free).flatten().nonzero()[:, 0]
        slots, rows = [picked], [tokens.flatten(0, 1)[picked]]
        merged_into = torch.full((free.numel(),), -1, device=device)
        for first, end in segments if rest else ():
            part = free[first:end]
            parent = parents(tokens[first:end], part, self.merge_tau, kept * (end - first))
            means, root = tree_means(tokens[first:end], parent)
            own = part & (parent < 0)
            target = torch.arange(own.numel(), device=device)  # of every token, where its row is kept
            share = rest * (end - first) / int(own.sum())
            for frame in range(end - first):
                at = own[frame].nonzero()[:, 0]
                chosen, averaged = at, means[frame, at]
                if share < 1 and len(at):
                    centers, averaged, nearest = clustered(averaged, ceil_share(share, len(at)), generator)
                    chosen = at[centers]
                    target[frame * size + at] = frame * size + chosen[nearest]
                slots.append((first + frame) * size + chosen)
                rows.append(averaged)
            gone = part.flatten().nonzero()[:, 0]
            merged_into[first * size + gone] = first * size + target[root.flatten()[gone]]
        kept_slots, order = torch.cat(slots).sort()
        merged_into[kept_slots] = -1
        role = torch.full_like(kept_slots, int(Role.CONTEXTUAL))
        role[order < len(picked)] = int(Role.DOMINANT)
        compact = self.reindex_positions and prefill.family.renumbers
        return Selection(kept_slots, role, torch.cat(rows)[order], merged_into, compact)
