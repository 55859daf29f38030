"""RegD: refine the register tokens segment by segment (ShaRP Sec. 4.3, Eq. 6). Pure functions on tensors.

All segments are handled at once, in vectors over the tokens. Only the two comparisons that cost something differ by
device: on the CPU they walk, segment by segment; elsewhere they are matrix products in blocks of rows, and RegD waits
for the device once (how many tokens pre-filtering leaves; twice where `strict_budget` is off and how many are kept is
not known either, and wherever a reading compares with a running mean, which is always walked). No n x n
tensor exists at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.pruning.outcome import Role, Selection

Timer = Callable[[str], AbstractContextManager[None]]
SCAN_BLOCK = 128  # tokens compared with one leader at a time
ROW_BLOCK = 1024  # rows of a similarity matrix that exist at a time


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


# -- comparisons -------------------------------------------------------------------------------------------------


def run_leaders(features: Tensor, segment: Tensor, tau: float, reference: str, *, walk: bool) -> Tensor:
    """Group a sequence into contiguous runs: each token joins the current run iff its cosine to it exceeds tau.

    Runs never cross a segment.

    Parameters
    ----------
    features : [m, d] fp32, in sequence order. segment : [m] ascending segment of each token.
    reference : what a token is compared with: "pivot" or "seed" (the run's first token), "predecessor" (the token
        before it), "running_mean" or "mean" (the mean of the run so far; always walked).
    walk : compare token by token, as the CPU does it fastest; otherwise by next-pointers and pointer doubling.

    Returns
    -------
    [m] LongTensor, the index of each token's run leader (its first token).
    """
    unit = F.normalize(features, dim=-1)
    index = torch.arange(len(features), device=features.device)
    if reference == "predecessor":
        starts = torch.ones_like(index, dtype=torch.bool)
        starts[1:] = ((unit[1:] * unit[:-1]).sum(-1) <= tau) | (segment[1:] != segment[:-1])
    elif "mean" in reference:
        starts = _walk(features, unit, segment, tau, by_mean=True)
    elif walk:
        starts = _walk(features, unit, segment, tau, by_mean=False)
    else:
        starts = reachable(next_pointers(unit, segment, tau), segment)
    return torch.where(starts, index, 0).cummax(0).values if len(index) else index


def _walk(features: Tensor, unit: Tensor, segment: Tensor, tau: float, by_mean: bool) -> Tensor:
    """Mark [m] the first token of every run, run after run."""
    starts = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    edges = [*((segment[1:] != segment[:-1]).nonzero().squeeze(1) + 1).tolist(), len(unit)]
    position = 0
    for edge in edges:
        while position < edge:
            starts[position] = True
            position = _run_end(features, unit, position, edge, tau, by_mean)
    return starts


def _run_end(features: Tensor, unit: Tensor, start: int, edge: int, tau: float, by_mean: bool) -> int:
    """Index after the last token of the run that begins at `start` in a segment that ends at `edge`."""
    if by_mean:
        total, i = features[start].clone(), start + 1
        while i < edge and F.cosine_similarity(features[i], total, dim=0) > tau:
            total += features[i]
            i += 1
        return i
    for a in range(start + 1, edge, SCAN_BLOCK):
        fails = (unit[a : min(a + SCAN_BLOCK, edge)] @ unit[start] <= tau).nonzero()
        if len(fails):
            return a + int(fails[0])
    return edge


def next_pointers(unit: Tensor, segment: Tensor, tau: float) -> Tensor:
    """For each token i, the first j > i that a run led by i does not take (m where there is none): [m] LongTensor."""
    m = len(unit)
    index = torch.arange(m, device=unit.device)
    pointers = torch.full((m,), m, device=unit.device)
    for a in range(0, m, ROW_BLOCK):
        rows = slice(a, min(a + ROW_BLOCK, m))
        later = slice(a + 1, m)
        fails = (unit[rows] @ unit[later].T <= tau) | (segment[rows, None] != segment[None, later])
        fails &= index[None, later] > index[rows, None]
        first = fails.to(torch.int8).max(-1) if m - a > 1 else None
        if first is not None:
            pointers[rows] = torch.where(first.values > 0, first.indices + a + 1, m)
    return pointers


def reachable(pointers: Tensor, segment: Tensor) -> Tensor:
    """Mark [m] the tokens that are reached from the first token of their segment by following `pointers`.

    Pointer doubling: after t rounds every token closer than 2^t jumps is marked, so log2(m) rounds suffice.
    """
    m = len(pointers)
    mark = torch.ones(m + 1, dtype=torch.int8, device=pointers.device)
    mark[1:m] = (segment[1:] != segment[:-1]).to(torch.int8)
    jump = torch.cat((pointers, pointers.new_full((1,), m)))
    for _ in range(math.ceil(math.log2(m + 1))):
        mark = mark.scatter_reduce(0, jump, mark, "amax")
        jump = jump[jump]
    return mark[:m].bool()


def nearest_register(
    tokens: Tensor, registers: Tensor, of_token: Tensor, of_register: Tensor, *, walk: bool
) -> tuple[Tensor, Tensor]:
    """The most similar register of each token's own segment.

    Parameters
    ----------
    tokens, registers : [m, d] and [K, d] normalised features. of_token, of_register : [m] and [K] ascending segments.
    walk : one matrix product per segment; otherwise blocks of rows against all registers.

    Returns
    -------
    [m] similarity (-inf where the segment has no register) and [m] which register, 0..K-1.
    """
    nearest = torch.full((len(tokens),), -torch.inf, device=tokens.device)
    owner = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    if walk:
        sizes = of_token.bincount(minlength=int(of_register[-1]) + 1)
        counts = of_register.bincount(minlength=len(sizes))
        a = first = 0
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            own = slice(a, a + size)
            if size and count:
                nearest[own], best = (tokens[own] @ registers[first : first + count].T).max(-1)
                owner[own] = best + first
            a, first = a + size, first + count
        return nearest, owner
    for a in range(0, len(tokens), ROW_BLOCK):
        rows = slice(a, a + ROW_BLOCK)
        likeness = tokens[rows] @ registers.T
        nearest[rows], owner[rows] = likeness.masked_fill(of_token[rows, None] != of_register, -torch.inf).max(-1)
    return nearest, owner


# -- the three steps ---------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """The refinement in progress, over all v tokens."""

    hidden: Tensor  # [v, d] fp32 rows to go on with
    features: Tensor  # [v, df] fp32 what is compared; `hidden` itself for the default reading
    weight: Tensor  # [v] original tokens a row stands for
    merged_into: Tensor  # [v] token it was averaged into, -1 for none
    role: Tensor  # [v] Role of a chosen token, -1 for tokens not chosen

    def merge(self, members: Tensor, leader: Tensor, counts: Tensor) -> None:
        """Average members [m] (token indices) into their leaders; `counts` [m] bool says which ones take part.

        `leader` [m] is the place of each member's leader among the members; a leader leads itself. Only leaders with
        at least two members change.
        """
        before = self.weight[members]
        weight = before * counts
        total = torch.zeros_like(before).index_add_(0, leader, weight)
        leads = leader == torch.arange(len(leader), device=leader.device)
        changed = leads & (total > before)
        for rows in (self.hidden,) if self.features is self.hidden else (self.hidden, self.features):
            own = rows[members]
            means = torch.zeros_like(own).index_add_(0, leader, own * weight[:, None]) / total[:, None].clamp(min=1)
            rows[members] = torch.where(changed[:, None], means, own)
        self.weight[members] = torch.where(changed, total, before)
        self.merged_into[members] = torch.where(counts & ~leads, members[leader], self.merged_into[members])


def refine(
    hidden: Tensor,
    features: Tensor,
    segment: Tensor,
    segments: int,
    scores: Tensor,
    registers: Tensor,
    options: RegDOptions,
    stage: Timer = nullcontext,  # type: ignore[assignment]
    walk: bool | None = None,
) -> Selection:
    """Pre-filter, deduplicate and refill the register tokens, inside each segment.

    Parameters
    ----------
    hidden : [v, d] rows that go on through the model; averaged when tokens are absorbed.
    features : [v, df] what similarities are computed on; the very object `hidden` for the default reading.
    segment : [v] segment of each token, ascending, 0..segments-1.
    scores : [v], the debiased scores, for the last repair of the budget.
    registers : [K] ascending top-K tokens.
    walk : compare by walking; None: on the CPU.

    Returns
    -------
    Selection of exactly K tokens (fewer only with `strict_budget=False`).
    """
    walk = hidden.device.type == "cpu" if walk is None else walk
    with stage("pre-filter"):
        draft = begin(hidden, features)
        pool = prefilter(draft, registers, segment, options, walk)
    with stage("dedup"):
        deduplicate(draft, registers, segment, options, walk)
    with stage("fill"):
        fill(draft, registers, pool, segment, segments, options, walk)
        if options.strict_budget:
            repair(draft, scores, len(registers))
            kept = torch.sort(draft.role < 0, stable=True).indices[: len(registers)]  # their number is known
        else:
            kept = (draft.role >= 0).nonzero().squeeze(1)
        return Selection(kept, draft.role[kept], draft.hidden[kept], _ends(draft))


def begin(hidden: Tensor, features: Tensor) -> _Draft:
    """Return a draft in which nothing is chosen; `features` as in `refine`."""
    rows = hidden.to(torch.float32, copy=True)
    return _Draft(
        hidden=rows,
        features=rows if features is hidden else features.to(torch.float32, copy=True),
        weight=torch.ones(len(hidden), device=hidden.device),
        merged_into=torch.full((len(hidden),), -1, device=hidden.device),
        role=torch.full((len(hidden),), -1, dtype=torch.int8, device=hidden.device),
    )


def prefilter(draft: _Draft, registers: Tensor, segment: Tensor, options: RegDOptions, walk: bool) -> Tensor:
    """Step 1: absorb the non-register tokens that resemble a register of their segment.

    Returns the pool: the other tokens of segments that have a register, ascending.
    """
    tokens = torch.arange(len(segment), device=segment.device)
    is_register = torch.zeros_like(tokens, dtype=torch.bool).index_fill_(0, registers, True)
    others = torch.sort(is_register, stable=True).indices[: len(tokens) - len(registers)]  # their number is known
    unit, unit_registers = (F.normalize(draft.features[rows], dim=-1) for rows in (others, registers))
    nearest, owner = nearest_register(unit, unit_registers, segment[others], segment[registers], walk=walk)
    absorbed = nearest > options.tau_filter
    if options.prefilter_absorb == "mean":
        leader, counts = tokens.clone(), is_register.clone()
        leader[others], counts[others] = registers[owner], absorbed
        draft.merge(tokens, leader, counts)
    return others[~absorbed & (nearest > -torch.inf)]


def deduplicate(draft: _Draft, registers: Tensor, segment: Tensor, options: RegDOptions, walk: bool) -> None:
    """Step 2: walk the registers in order and absorb each one that resembles the current pivot; choose the pivots."""
    where = segment[registers]
    leader = run_leaders(draft.features[registers], where, options.tau_merge, options.dedup_reference, walk=walk)
    pivot = registers[leader]
    if options.dedup_absorb == "mean":
        draft.merge(registers, leader, torch.ones_like(pivot, dtype=torch.bool))
    role = torch.where(draft.weight[registers] > 1, int(Role.MERGED), int(Role.REGISTER))
    draft.role[registers] = torch.where(pivot == registers, role, -1).to(torch.int8)


def fill(
    draft: _Draft, registers: Tensor, pool: Tensor, segment: Tensor, segments: int, options: RegDOptions, walk: bool
) -> None:
    """Step 3: cluster the pool in order and choose the most diverse centres (Eq. 6) for the places set free.

    First inside each segment, then (`strict_budget`) the rest over all segments.
    """
    if not len(pool):
        return
    where, features = segment[pool], draft.features[pool]
    leader = run_leaders(features, where, options.tau_cluster, options.cluster_reference, walk=walk)
    is_leader = leader == torch.arange(len(pool), device=pool.device)
    size = torch.zeros(len(pool), device=pool.device).index_add_(0, leader, torch.ones_like(where, dtype=torch.float))
    place, center = _centers(features, leader, size, options.cluster_center)

    is_pivot = draft.role[registers] >= 0
    unit = F.normalize(draft.features[registers], dim=-1) * is_pivot[:, None]
    pivots = torch.zeros(segments, device=pool.device).index_add_(0, segment[registers], is_pivot.float())
    typical = unit.new_zeros(segments, unit.shape[1]).index_add_(0, segment[registers], unit)
    typical = typical / pivots[:, None].clamp(min=1)  # mean direction of a segment's pivots
    likeness = (F.normalize(center, dim=-1) * typical[where]).sum(-1)
    diversity = (1 - likeness + options.beta * size).masked_fill(~is_leader, -torch.inf)

    deficit = torch.zeros_like(pivots).index_add_(0, segment[registers], (~is_pivot).float())
    chosen = is_leader & (rank_within(diversity, where) < deficit[where])
    if options.strict_budget:
        missing = deficit.sum() - chosen.sum()
        rest = diversity.masked_fill(chosen, -torch.inf)
        chosen |= (rest > -torch.inf) & (rank_within(rest, torch.zeros_like(where)) < missing)
    if options.cluster_center == "mean":
        draft.merge(pool, leader, chosen[leader])
    filled = torch.where(chosen, int(Role.FILLED), -1).to(torch.int8)
    draft.role.scatter_reduce_(0, pool[place], filled, "amax")


def _centers(features: Tensor, leader: Tensor, size: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """For every leader the place [p] of its cluster's centre in the pool and the centre [p, df]."""
    index = torch.arange(len(leader), device=leader.device)
    if kind == "first":
        return index, features
    mean = torch.zeros_like(features).index_add_(0, leader, features) / size[:, None].clamp(min=1)
    if kind == "mean":
        return index, mean
    likeness = F.cosine_similarity(features, mean[leader], dim=-1)
    best = torch.full_like(likeness, -torch.inf).scatter_reduce_(0, leader, likeness, "amax")
    among = torch.where(likeness == best[leader], index, len(index))
    medoid = torch.full_like(index, len(index)).scatter_reduce_(0, leader, among, "amin")
    place = torch.where(leader == index, medoid, index)
    return place, features[place]


def rank_within(values: Tensor, group: Tensor) -> Tensor:
    """Rank [p] of each value, highest first, within its group (ascending [p]); of equal values the lower index wins."""
    order = torch.sort(values, descending=True, stable=True).indices
    order = order[torch.sort(group[order], stable=True).indices]
    position = torch.arange(len(values), device=values.device)
    return torch.empty_like(order).index_copy_(0, order, position) - torch.searchsorted(group, group)


def repair(draft: _Draft, scores: Tensor, budget: int) -> None:
    """Fill what clusters could not: the best-scored tokens not chosen yet, up to `budget` tokens in all."""
    free = draft.role < 0
    missing = budget - (~free).sum()
    rank = rank_within(scores.masked_fill(~free, -torch.inf), torch.zeros_like(draft.merged_into))
    draft.role = torch.where(free & (rank < missing), int(Role.FILLED), draft.role).to(torch.int8)


def _ends(draft: _Draft) -> Tensor:
    """Where each token's average ended up [v]: its owner may itself have been absorbed, or be gone."""
    target = draft.merged_into
    onward = target[target.clamp(min=0)]
    ends = torch.where((target >= 0) & (onward >= 0), onward, target)
    gone = (draft.role >= 0) | (draft.role[ends.clamp(min=0)] < 0)
    return ends.masked_fill(gone, -1)
