"""RegD: refine the register tokens segment by segment (ShaRP Sec. 4.3, Eq. 6). Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.pruning.method import top_k
from sharp_demo.pruning.runtime import Role, Selection

Timer = Callable[[str], AbstractContextManager[None]]
BLOCK = 128  # tokens compared with one leader at a time


@dataclass(frozen=True)
class RegDOptions:
    """RegD's thresholds and readings; see `ShaRP` for what each one means."""

    tau_filter: float = 0.7
    tau_merge: float = 0.8
    tau_cluster: float = 0.4
    beta: float = 0.008
    prefilter_absorb: str = "drop"
    dedup_absorb: str = "mean"
    dedup_reference: str = "pivot"
    cluster_reference: str = "seed"
    cluster_center: str = "mean"
    strict_budget: bool = True


def run_leaders(features: Tensor, tau: float, reference: str) -> Tensor:
    """Group a sequence into contiguous runs: each token joins the current run iff its cosine to it exceeds tau.

    Parameters
    ----------
    features : [m, d] fp32, in sequence order.
    reference : what a token is compared with: "pivot" or "seed" (the run's first token), "predecessor" (the token
        before it), "running_mean" or "mean" (the mean of the run so far).

    Returns
    -------
    [m] LongTensor, the index of each token's run leader (its first token).
    """
    m = features.shape[0]
    unit = F.normalize(features, dim=-1)
    leader = torch.arange(m, device=features.device)
    if reference == "predecessor":
        joins = (unit[1:] * unit[:-1]).sum(-1) > tau
        leader[1:][joins] = 0
        return leader.cummax(0).values
    start = 0
    while start < m:
        end = _run_end(unit, features, start, tau, by_mean="mean" in reference)
        leader[start:end] = start
        start = end
    return leader


def _run_end(unit: Tensor, features: Tensor, start: int, tau: float, by_mean: bool) -> int:
    """Index after the last token of the run that begins at `start`."""
    m = features.shape[0]
    if by_mean:
        total, i = features[start].clone(), start + 1
        while i < m and F.cosine_similarity(features[i], total, dim=0) > tau:
            total += features[i]
            i += 1
        return i
    for a in range(start + 1, m, BLOCK):
        fails = (unit[a : a + BLOCK] @ unit[start] <= tau).nonzero()
        if len(fails):
            return a + int(fails[0])
    return m


def mean_by(values: Tensor, weight: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Weighted mean of values [m, d] per group [m] (0..groups-1), and each group's weight; fp32."""
    total = torch.zeros(groups, device=values.device).index_add_(0, group, weight)
    sums = torch.zeros(groups, values.shape[1], device=values.device).index_add_(0, group, values * weight[:, None])
    return sums / total[:, None], total


@dataclass
class _Draft:
    """The refinement in progress, over all v tokens: rows to forward, their features, and who owns whom."""

    hidden: Tensor  # [v, d] fp32 where averaging happens
    features: Tensor  # [v, df] fp32
    weight: Tensor  # [v]
    merged_into: Tensor  # [v]
    role: Tensor  # [v] Role of a chosen token, -1 for tokens not chosen

    def merge(self, members: Tensor, owners: Tensor) -> None:
        """Average members [m] into their owners [m] (token indices), by weight; each owner is a member of itself."""
        target, group = owners.unique(return_inverse=True)
        weight = self.weight[members]
        self.hidden[target], total = mean_by(self.hidden[members], weight, group, len(target))
        if self.features is not self.hidden:
            self.features[target], _ = mean_by(self.features[members], weight, group, len(target))
        self.weight[target] = total
        absorbed = members != owners
        self.merged_into[members[absorbed]] = owners[absorbed]


@dataclass(frozen=True)
class _Clusters:
    """Candidate fillers of one segment: the token each is placed at, its diversity, and its members' ownership."""

    token: Tensor  # [c]
    diversity: Tensor  # [c]
    members: Tensor  # [p] pool tokens
    owner: Tensor  # [p] index into `token`


def refine(
    hidden: Tensor,
    features: Tensor,
    segments: list[tuple[int, int]],
    scores: Tensor,
    registers: Tensor,
    options: RegDOptions,
    stage: Timer = nullcontext,  # type: ignore[assignment]
) -> Selection:
    """Pre-filter, deduplicate and refill the register tokens, inside each segment.

    Parameters
    ----------
    hidden : [v, d] rows that go on through the model; averaged when tokens are absorbed.
    features : [v, df] what similarities are computed on; the very object `hidden` for the default reading.
    segments : [a, b) token ranges, contiguous.
    scores : [v], the debiased scores, for the last repair of the budget.
    registers : [K] ascending top-K tokens.

    Returns
    -------
    Selection of exactly K tokens (fewer only with `strict_budget=False`).
    """
    draft_hidden = hidden.float().clone()
    draft = _Draft(
        hidden=draft_hidden,
        features=draft_hidden if features is hidden else features.float().clone(),
        weight=torch.ones(len(hidden), device=hidden.device),
        merged_into=torch.full((len(hidden),), -1, device=hidden.device),
        role=torch.full((len(hidden),), -1, dtype=torch.int8, device=hidden.device),
    )
    edges = torch.tensor([a for a, _ in segments] + [segments[-1][1]], device=registers.device)
    cuts = torch.searchsorted(registers, edges).tolist()
    leftover: list[_Clusters] = []
    for (a, b), first, last in zip(segments, cuts[:-1], cuts[1:], strict=True):
        if first == last:
            continue
        inside = registers[first:last]
        with stage("pre-filter"):
            pool = prefilter(draft, inside, (a, b), options)
        with stage("dedup"):
            distinct = deduplicate(draft, inside, options)
        with stage("fill"):
            clusters = make_clusters(draft, distinct, pool, options)
            leftover.append(take(draft, clusters, len(inside) - len(distinct), options))
    with stage("fill"):
        if options.strict_budget:
            repair(draft, leftover, scores, len(registers), options)
        kept = (draft.role >= 0).nonzero().squeeze(1)
        # A token may sit in a register that was itself absorbed: name where it ended up.
        target = draft.merged_into
        onward = target[target.clamp(min=0)]
        merged_into = torch.where((target >= 0) & (onward >= 0), onward, target)
        merged_into[kept] = -1
        merged_into[draft.role[merged_into.clamp(min=0)] < 0] = -1  # what it was averaged into is gone itself
        return Selection(kept, draft.role[kept], draft.hidden[kept], merged_into)


def prefilter(draft: _Draft, registers: Tensor, segment: tuple[int, int], options: RegDOptions) -> Tensor:
    """Step 1: absorb the non-register tokens that resemble a register; return the others (the pool), ascending."""
    a, b = segment
    is_register = torch.zeros(b - a, dtype=torch.bool, device=registers.device)
    is_register[registers - a] = True
    others = (~is_register).nonzero().squeeze(1) + a
    unit = F.normalize(draft.features[a:b], dim=-1)
    nearest, owner = (unit[others - a] @ unit[registers - a].T).max(-1)
    absorbed = nearest > options.tau_filter
    if options.prefilter_absorb == "mean":
        members = torch.cat((registers, others[absorbed]))
        draft.merge(members, torch.cat((registers, registers[owner[absorbed]])))
    return others[~absorbed]


def deduplicate(draft: _Draft, registers: Tensor, options: RegDOptions) -> Tensor:
    """Step 2: walk the registers in order and absorb each one that resembles the current pivot; return the pivots."""
    leader = run_leaders(draft.features[registers], options.tau_merge, options.dedup_reference)
    pivots = registers[leader.unique()]
    if options.dedup_absorb == "mean":
        draft.merge(registers, registers[leader])
    draft.role[pivots] = torch.where(draft.weight[pivots] > 1, int(Role.MERGED), int(Role.REGISTER)).to(torch.int8)
    return pivots


def make_clusters(draft: _Draft, registers: Tensor, pool: Tensor, options: RegDOptions) -> _Clusters:
    """Step 3a: run-cluster the pool in order and score the centres by Eq. 6."""
    leader = run_leaders(draft.features[pool], options.tau_cluster, options.cluster_reference)
    first, owner = leader.unique(return_inverse=True)
    ones = torch.ones(len(pool), device=pool.device)
    mean, size = mean_by(draft.features[pool], ones, owner, len(first))
    token, center = pool[first], mean
    if options.cluster_center == "first":
        center = draft.features[token]
    elif options.cluster_center == "medoid" and len(pool):
        likeness = F.cosine_similarity(draft.features[pool], mean[owner], dim=-1)
        token = torch.stack([pool[owner == c][likeness[owner == c].argmax()] for c in range(len(first))])
        center = draft.features[token]
    typical = F.normalize(draft.features[registers], dim=-1).mean(0)
    diversity = 1 - F.normalize(center, dim=-1) @ typical + options.beta * size
    return _Clusters(token, diversity, pool, owner)


def take(draft: _Draft, clusters: _Clusters, count: int, options: RegDOptions) -> _Clusters:
    """Step 3b: choose the `count` most diverse clusters as fillers; return those not chosen."""
    chosen = torch.zeros(len(clusters.token), dtype=torch.bool, device=clusters.token.device)
    chosen[top_k(clusters.diversity, count)] = True
    draft.role[clusters.token[chosen]] = int(Role.FILLED)
    if options.cluster_center == "mean" and bool(chosen.any()):
        inside = chosen[clusters.owner]
        draft.merge(clusters.members[inside], clusters.token[clusters.owner[inside]])
    renumbered = chosen.logical_not().cumsum(0) - 1
    outside = ~chosen[clusters.owner]
    return _Clusters(
        clusters.token[~chosen],
        clusters.diversity[~chosen],
        clusters.members[outside],
        renumbered[clusters.owner[outside]],
    )


def repair(draft: _Draft, leftover: list[_Clusters], scores: Tensor, budget: int, options: RegDOptions) -> None:
    """Refill what segments could not: remaining clusters of all segments by diversity, then tokens by score."""
    missing = budget - int((draft.role >= 0).sum())
    if missing and leftover:
        offsets = torch.tensor([0, *(len(c.token) for c in leftover)]).cumsum(0).tolist()
        everywhere = _Clusters(
            torch.cat([c.token for c in leftover]),
            torch.cat([c.diversity for c in leftover]),
            torch.cat([c.members for c in leftover]),
            torch.cat([c.owner + offset for c, offset in zip(leftover, offsets[:-1], strict=True)]),
        )
        missing -= min(missing, len(everywhere.token))
        take(draft, everywhere, budget - int((draft.role >= 0).sum()), options)
    if missing:
        free = scores.masked_fill(draft.role >= 0, -torch.inf)
        draft.role[top_k(free, missing)] = int(Role.FILLED)
