"""HoliTom (Shao et al., NeurIPS 2025, arXiv 2505.21334): merge what stays the same over time, then inside the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import input_frames
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


def holitom_layer(layers: int) -> int:
    """Return the layer of HoliTom's inner stage: 18 of 28, the same share of another depth."""
    return max(1, round(layers * 18 / 28))


# -- outer stage: segmentation -----------------------------------------------------------------------------------


def static_runs(tokens: Tensor, tau: float) -> Tensor:
    """Count for how many frames back each token has stayed the same.

    Parameters
    ----------
    tokens : [F, P, d]. tau : cosine to the same patch of the next frame above which (strictly) it has not changed.

    Returns
    -------
    [F, P] LongTensor; a patch is static over frames s..e iff its run at e is at least e - s.
    """
    tokens = tokens.float()
    same = F.cosine_similarity(tokens[:-1], tokens[1:], dim=-1) > tau
    runs = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    for frame in range(1, len(tokens)):
        runs[frame] = (runs[frame - 1] + 1) * same[frame - 1]
    return runs


def removable(runs: Tensor) -> list[list[int]]:
    """Tokens that go, [F][F], when frames s..e become a segment and its static patches one token each; runs [F, P]."""
    frames = torch.arange(len(runs), device=runs.device)
    longer = frames - frames[:, None]  # [s, e], e - s
    static = (runs >= longer[..., None]).sum(-1)
    return (static * longer.clamp(min=0)).tolist()


def best_segments(gain: Sequence[Sequence[int]], window: int) -> tuple[list[tuple[int, int]], int]:
    """Cut the video into segments of at most `window` frames so that most tokens go, by dynamic programming.

    Of equal cuts the one whose last segment is a single frame wins, then the shortest last segment.

    Returns
    -------
    [first, end) frames of each segment, and the tokens that go in all.
    """
    best, start = [0], [0]  # best[i]: of the first i frames; start[i]: where their last segment begins
    for end in range(1, len(gain) + 1):
        most, first = best[-1], end - 1
        for frames in range(2, min(end, window) + 1):
            if best[end - frames] + gain[end - frames][end - 1] > most:
                most, first = best[end - frames] + gain[end - frames][end - 1], end - frames
        best.append(most)
        start.append(first)
    segments, end = [], len(gain)
    while end:
        segments.append((start[end], end))
        end = start[end]
    return segments[::-1], best[-1]


# -- outer stage: density peaks ----------------------------------------------------------------------------------


def absorb(rows: Tensor, centers: Tensor, distance: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Blend each centre with the mean of the rows nearest to it: beta centre + (1 - beta) mean; alone it stays.

    Parameters
    ----------
    rows : [n, d]. centers : [c] indices of rows. distance : [n, n].

    Returns
    -------
    [c, d] in fp32, and [n] which centre (0..c-1) each row went to.
    """
    rows = rows.float()
    nearest = distance[:, centers].argmin(-1)
    nearest[centers] = torch.arange(len(centers), device=rows.device)
    member = F.one_hot(nearest, len(centers)).to(rows.dtype)
    member[centers] = 0
    size = member.sum(0)[:, None]
    means = member.T @ rows / size.clamp(min=1)
    own = rows[centers]
    return torch.where(size > 0, beta * own + (1 - beta) * means, own), nearest


# -- inner stage -------------------------------------------------------------------------------------------------


def halve_into_nearest(rows: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Merge every row that is not kept into the kept one of highest cosine, one after another: h <- (h + row) / 2.

    The last of m rows that share a target weighs 1/2, the one before 1/4, and so on; the target itself 2^-m.

    Parameters
    ----------
    rows : [v, d]. kept : [k] ascending indices.

    Returns
    -------
    [k, d] in fp32, and [v] the kept row's index that each row went into (-1 for kept rows).
    """
    rows = rows.float()
    is_kept = torch.zeros(len(rows), dtype=torch.bool, device=rows.device).index_fill_(0, kept, True)
    dropped = torch.sort(is_kept, stable=True).indices[: len(rows) - len(kept)]  # their number is known
    unit = F.normalize(rows, dim=-1)
    nearest = (unit[dropped] @ unit[kept].T).argmax(-1)
    member = F.one_hot(nearest, len(kept))
    later = (member.sum(0) - member.cumsum(0)).gather(1, nearest[:, None])  # rows that come after, same target
    weights = member * 0.5 ** (later + 1)
    merged = rows[kept] * 0.5 ** member.sum(0)[:, None] + weights.T @ rows[dropped]
    into = torch.full((len(rows),), -1, device=rows.device)
    into[dropped] = kept[nearest]
    return merged, into


@dataclass(frozen=True)
class HoliTom(Method):
    """Merge patches that stay the same over a segment, keep the others by the vision tower, halve inside the LLM.

    Outer stage, before the LLM. The video is cut into segments so that as many tokens as possible go when every
    patch that is static over its segment (each cosine to the next frame above `tau`) becomes one token, the mean over
    the segment's frames. Of what is left the share is kept that makes `retention` of all: of each frame's other
    tokens the ones that receive most attention in the vision tower, of the static ones DPC-KNN centres, each blended
    with the mean of what lies nearest to it (`beta`). Inner stage, before layer `inner_layer`: the `drop` share with
    the least attention from the last token in the layer before is merged into the nearest of the rest, one after
    another, each time halving.

    `retention` is the share left after the outer stage, the first of the paper's two figures ("15 % / 7.5 %"); the
    inner stage leaves `1 - drop` of that. Counts are rounded up in each frame and to the nearest in each static
    block, so a few tokens more or fewer are kept than asked for; what was achieved is reported. The authors use
    tau = 0.65 where they keep 10 %.

    Deviations: survivors stay in the layout's order (the official code puts a segment's static tokens first).
    Scoring leaves the model as it is; the official code lets the scoring layer attend non-causally during the
    prefill, which is a side effect of asking it for its attention and not reproduced here. A newline
    behind the video is text and is never dropped. Layer 18 is that of 28 layers; models of another depth use the same
    share. There is no official version for M-RoPE: a frame is a temporal patch, survivors keep their own
    three coordinates, a static token those of the first frame of its segment.
    """

    name = "holitom"
    title = "HoliTom"
    paper = "https://arxiv.org/abs/2505.21334"
    year = 2025
    summary = (
        "Static patches merged over time, others by the vision tower's attention, before the LLM (the share is what "
        "this leaves); halved before layer 18 of 28."
    )
    where = "both"
    question_aware = True
    needs_vision = True
    adaptive = True
    color = "#2FA4D7"

    tau: float = knob(0.8, "cosine to the next frame above which a patch is static", low=-1.0, high=1.0)
    beta: float = knob(0.6, "weight of a centre against the mean of what is merged into it", low=0.0, high=1.0)
    contextual: float = knob(
        0.0, "D: share of a frame's budget that goes to DPC-KNN centres instead of attention", low=0.0, high=1.0
    )
    neighbors: int = knob(7, "neighbours that make up the density of DPC-KNN", low=1)
    window: int = knob(1024, "longest segment, in frames", low=1)
    inner_layer: int = knob(
        0, "the inner stage drops before this decoder layer; 0: 18 of 28, scaled", low=0, costs=True
    )
    drop: float = knob(0.5, "share that the inner stage merges away; 0: no inner stage", low=0.0, high=0.99, costs=True)
    reindex_positions: bool = knob(True, REINDEX)
    seed: int = knob(0, "seed of the jitter that breaks ties of density", low=0, high=2**63 - 1)

    def fitted(self, layers: int) -> HoliTom:
        return replace(self, inner_layer=self.inner_layer or holitom_layer(layers))

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """The two stages on a video without static patches: a share of each frame, then half of all."""
        outer = frames * ceil_share(self.retention, n // frames)
        inner = (self.inner_layer or holitom_layer(layers), max(1, round(outer * (1 - self.drop))))
        return [(0, outer), inner] if self.drop > 0 else [(0, outer)]

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        return {"scores": prunes.rows(inside=True)}

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer == 0:
            return self._outer(prefill)
        return self._inner(layer, prefill) if layer == self.inner_layer and self.drop > 0 else None

    def _outer(self, prefill: Prefill) -> Selection:
        tokens = input_frames(self.name, prefill)
        layout, received = prefill.layout, prefill.signals.received
        patches = layout.rows * layout.cols
        prefill.record_scores("raw", received)
        with prefill.stage("segments"):
            runs = static_runs(tokens, self.tau)
            segments, gone = best_segments(removable(runs), self.window)
            prefill.run.segments = segments
        with prefill.stage("merge"):
            share = min(1.0, self.retention * len(layout) / (len(layout) - gone))
            draft = _Draft(self, tokens, received.view(layout.frames, patches), share)
            for first, end in segments:
                alone = end - first == 1
                draft.add(first, end, torch.zeros_like(runs[0] > 0) if alone else runs[end - 1] >= end - 1 - first)
            return draft.selection(compact=self.reindex_positions and prefill.family.renumbers)

    def _inner(self, layer: int, prefill: Prefill) -> Selection:
        with prefill.stage("scores"):
            scores = prefill.logits_of_last_layer(layer - 1).softmax(-1).mean(0)[prefill.rows]
        with prefill.stage("merge"):
            kept = top_k(scores, max(1, round(len(scores) * (1 - self.drop))))
            merged, into = halve_into_nearest(prefill.hidden[0, prefill.rows], kept)
        return Selection(kept, hidden=merged, merged_into=into)


class _Draft:
    """What the outer stage keeps, segment by segment; slots number the tokens of all frames."""

    def __init__(self, method: HoliTom, tokens: Tensor, received: Tensor, share: float) -> None:
        self.method, self.tokens, self.received, self.share = method, tokens, received, share
        self.patches = tokens.shape[1]
        self.generator = torch.Generator().manual_seed(method.seed)
        self.kept: list[Tensor] = []
        self.role: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.merged_into = torch.full((len(tokens) * self.patches,), -1, device=tokens.device)
        self.spare: Tensor | None = None  # static slots of a segment that kept none of them

    def add(self, first: int, end: int, static: Tensor) -> None:
        """Reduce frames first..end-1, whose patches `static` [P] do not change."""
        frames = torch.arange(first, end, device=static.device)
        columns, changing = static.nonzero().squeeze(1), (~static).nonzero().squeeze(1)
        if len(columns):
            self._static(frames[:, None] * self.patches + columns, round(len(columns) * self.share))
        if len(changing):
            self._changing(frames[:, None] * self.patches + changing, ceil_share(self.share, len(changing)))

    def selection(self, *, compact: bool) -> Selection:
        if not self.kept:  # everything is static, and a share of it rounds to nothing
            assert self.spare is not None
            self._static(self.spare, 1)
        kept, order = torch.cat(self.kept).sort()
        return Selection(kept, torch.cat(self.role)[order], torch.cat(self.rows)[order], self.merged_into, compact)

    def _put(self, slots: Tensor, role: Role, rows: Tensor) -> None:
        self.kept.append(slots)
        self.role.append(torch.full_like(slots, int(role)))
        self.rows.append(rows)

    def _static(self, slots: Tensor, count: int) -> None:
        """Keep `count` tokens, in the first frame, of static patches with `slots` [frames, patches]."""
        if count == 0:
            self.spare = slots if self.spare is None else self.spare
            return
        means = self.tokens.flatten(0, 1)[slots].mean(0)
        self._cluster(means, slots, count, Role.STATIC)

    def _changing(self, slots: Tensor, count: int) -> None:
        """Keep `count` tokens of every frame; slots [frames, patches]."""
        dominant = round(count * (1 - self.method.contextual))
        ranked = torch.sort(self.received.flatten()[slots], descending=True, stable=True).indices
        best = slots.gather(1, ranked[:, :dominant]).flatten()
        self._put(best, Role.DOMINANT, self.tokens.flatten(0, 1)[best])
        if dominant < count:
            for rest in slots.gather(1, ranked[:, dominant:].sort().values):
                self._cluster(self.tokens.flatten(0, 1)[rest], rest[None], count - dominant, Role.CONTEXTUAL)

    def _cluster(self, rows: Tensor, slots: Tensor, count: int, role: Role) -> None:
        """Merge rows [n, d] into `count` centres; column i of slots [frames, n] holds the tokens that row i means."""
        neighbors = min(self.method.neighbors, count)
        centers, distance = density_peaks(rows, count, neighbors, self.generator)
        merged, nearest = absorb(rows, centers, distance, self.method.beta)
        self._put(slots[0, centers], role, merged)
        self.merged_into[slots] = slots[0, centers[nearest]].expand_as(slots)
        self.merged_into[slots[0, centers]] = -1
