"""FrameFusion (Fu et al., ICCV 2025, arXiv 2501.01986): merge what stays the same from frame to frame, then prune."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import Method, knob, top_k
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

FIRST = -2.0  # stands for the similarity of a token that has no predecessor: no threshold lets it merge


def similarity_to_predecessor(hidden: Tensor, frame: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each token with the one before it in time at the same place of the frame.

    Parameters
    ----------
    hidden : [v, d] residual stream. frame, patch : [v] layout frame, and place inside it.

    Returns
    -------
    similarity : [v] fp32 cosine, FIRST where there is none before. order : [v] the tokens place by place, in time.
    """
    order = torch.argsort(patch * (int(frame.max()) + 1) + frame)
    unit = F.normalize(hidden[order].float(), dim=-1)
    cosine = (unit[1:] * unit[:-1]).sum(-1)
    same_place = patch[order][1:] == patch[order][:-1]
    in_order = torch.cat((cosine.new_full((1,), FIRST), torch.where(same_place, cosine, FIRST)))
    return torch.empty_like(in_order).index_copy_(0, order, in_order), order


def merge_runs(hidden: Tensor, absorbed: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Average every run of absorbed tokens into the token just before it: the plain mean of the run and its head.

    Parameters
    ----------
    hidden : [v, d]. absorbed : [v] bool. order : as `similarity_to_predecessor` gives it; its first is not absorbed.

    Returns
    -------
    rows : [v, d] fp32, means in the rows of the heads. head : [v] index of each token's head, its own if it is one.
    """
    heads = order[~absorbed[order]]
    run = (~absorbed[order]).cumsum(0) - 1  # integer, whatever the model's dtype: bf16 cannot count to 257
    head = torch.empty_like(order).index_copy_(0, order, heads[run])
    rows = hidden.float()
    # Differences to the head make the mean of equal vectors that vector, to the bit.
    total = torch.zeros_like(rows).index_add_(0, head[absorbed], rows[absorbed] - rows[head[absorbed]])
    size = torch.bincount(head, minlength=len(head)).clamp(min=1)
    return rows + total / size[:, None], head


@dataclass
class _Progress:
    """How far one prefill has come. `counts`: visual tokens at the attention of the layers that are decided."""

    counts: list[int] = field(default_factory=list)
    merging: bool = True
    pruning: bool = True
    queries: Tensor | None = None  # inputs of the last rows to the layer that runs


@dataclass(frozen=True)
class FrameFusion(Method):
    """Merge along time while that removes enough, then prune once by attention; `retention` is the mean over layers.

    A merge call compares each visual token with the one before it in time at the same place of the frame (cosine of
    the residual stream). Tokens at or above `similarity` go into the token before them: a run of them and its head
    become their plain mean at the head's place. The first call comes before layer 0, the next ones after the
    attention of layer 0, 1, ...; a call that merges less than `ratio_lower_bound` of the tokens is the last one, and
    the next layer prunes: by the attention that its last queries pay (mean over heads and queries; their
    number is the family's `merge_queries`) it keeps as many tokens as bring the mean over all layers to `retention`.
    If merging alone can reach that, only the most similar tokens merge and nothing is pruned. Survivors keep their
    positions.

    Deviations: the depth is the model's, not 28; means are taken in fp32 and run lengths are integers; several
    queries are causal; a newline behind the video is text (there is no official adapter for models with one). Where
    another merge would leave less than a token for each later layer, the call prunes instead of failing.
    """

    name = "framefusion"
    title = "FrameFusion"
    paper = "https://arxiv.org/abs/2501.01986"
    year = 2025
    summary = "Merges what stays the same from frame to frame, then the last token's attention; retention is a mean."
    where = "both"
    question_aware = True
    adaptive = True
    inside_layers = True
    color = "#4F9E3F"

    similarity: float = knob(
        0.0, "S_th: cosine from which a token merges; 0: the official value for the model's family", low=0.0, high=1.0
    )
    ratio_lower_bound: float = knob(0.1, "a call that merges a smaller share is the last one", low=0.0, high=1.0)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """The stage on a video where nothing merges: layer 0 sees all, the others make up for it.

        Where the mean is out of reach (see `check`) one token is left.
        """
        rest = (self.retention * layers - 1) / (layers - 1) if layers > 1 else 1.0
        return [(1, budget(rest, n))]

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        return {"scores": prunes.rows()}

    def least_retention(self, layers: int, frames: int) -> float:
        return math.nextafter(1 / layers, 1.0)

    def check(self, layers: int) -> None:
        if self.active and self.retention * layers <= 1:
            raise MethodError(
                f"{self.name}: retention {self.retention:g} is a mean over {layers} layers, and the first may see "
                f"every token: it must be above 1/{layers} = {1 / layers:.3g}"
            )

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer > 0:
            return None
        prefill.notes[self] = _Progress()
        return self._merge(prefill, None)

    def attention(self, layer: int, prefill: Prefill) -> None:
        progress: _Progress = prefill.notes[self]
        progress.queries = None
        if progress.pruning:
            last = int(prefill.rows[-1]) + 1  # queries are text, so they stand behind the video
            first = max(last, prefill.hidden.shape[1] - prefill.family.merge_queries)
            progress.queries = prefill.hidden[:, first:].clone()  # a view would keep all of the rows alive

    def looks_inside(self, layer: int, prefill: Prefill) -> bool:
        progress: _Progress = prefill.notes[self]
        # Behind the last layer no attention would see what is left.
        return layer + 1 < len(prefill.layers) and (progress.merging or progress.pruning)

    def after_attention(self, layer: int, prefill: Prefill) -> Selection | None:
        if not self.looks_inside(layer, prefill):
            return None  # another method looks inside this layer
        return self._merge(prefill, layer) if prefill.notes[self].merging else self._prune(prefill, layer)

    def _room(self, prefill: Prefill) -> tuple[float, int]:
        """Visual tokens that all layers to come may see together, for a mean of `retention`, and their number."""
        counts, layers = prefill.notes[self].counts, len(prefill.layers)
        return layers * self.retention * len(prefill.layout) - sum(counts), layers - len(counts)

    def _merge(self, prefill: Prefill, layer: int | None) -> Selection | None:
        """One merge call; `layer` is the one whose attention has run, None before the first."""
        progress: _Progress = prefill.notes[self]
        (room, to_come), n = self._room(prefill), len(prefill.rows)
        threshold = self.similarity or prefill.family.merge_similarity
        hidden = prefill.hidden[0, prefill.rows]
        with prefill.stage("similarity"):
            patch = prefill.slots % (prefill.layout.rows * prefill.layout.cols)
            similarity, order = similarity_to_predecessor(hidden, prefill.frames, patch)
            absorbed = similarity >= threshold
            count = int(absorbed.sum())
        excess = max(0.0, n - room / to_come)  # tokens that would have to go for a constant number from here on
        if count >= excess:
            progress.merging = progress.pruning = False
            count = int(excess + 1e-9)  # a difference of products of the budget; its floor is meant
            absorbed = torch.zeros_like(absorbed).index_fill(0, top_k(similarity, count), True)
        elif layer is not None and room - (n - count) < to_come - 1:
            progress.merging = False
            return self._prune(prefill, layer)
        else:
            progress.merging = count >= self.ratio_lower_bound * n
        progress.counts.append(n - count)
        if count == 0:
            return None
        with prefill.stage("merge"):
            rows, head = merge_runs(hidden, absorbed, order)
            kept = (~absorbed).nonzero()[:, 0]
            grew = torch.bincount(head, minlength=n)[kept] > 1
            role = torch.where(grew, int(Role.MERGED), prefill.run.role[kept].long())
        return Selection(kept, role, rows[kept], torch.where(absorbed, head, -1))

    def _prune(self, prefill: Prefill, layer: int) -> Selection | None:
        progress: _Progress = prefill.notes[self]
        progress.pruning = False
        (room, to_come), n = self._room(prefill), len(prefill.rows)
        k = max(1, round(room / to_come))
        if k >= n:
            return None
        with prefill.stage("scores"):
            scores = self._scores(prefill, layer)
        prefill.record_scores("raw", scores)
        with prefill.stage("select"):
            return Selection(top_k(scores, k))

    def _scores(self, prefill: Prefill, layer: int) -> Tensor:
        """Attention [v] that the visual tokens get from the last queries in the layer that has just run."""
        from sharp_demo.pruning.attention import last_query_logits

        queries = prefill.notes[self].queries  # [B, q, d]
        block, keys = prefill.layers[layer], prefill.cache.layers[layer].keys
        cos, sin = prefill.rotary
        total = torch.zeros(len(prefill.rows), device=keys.device)
        for back in range(queries.shape[1], 0, -1):
            row = keys.shape[2] - back
            x = block.input_layernorm(queries[:, -back][:, None])
            rotary = (cos[:, row : row + 1], sin[:, row : row + 1])
            logits = last_query_logits(block.self_attn, x, rotary, keys[:, :, : row + 1])[0]  # causal
            total += logits.softmax(-1).mean(0)[prefill.rows]
        return total / queries.shape[1]
