"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): attention of the last token after K layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.pruning.method import SingleStage, knob, top_k
from sharp_demo.pruning.outcome import Selection

if TYPE_CHECKING:
    from sharp_demo.pruning.prefill import Prefill


@dataclass(frozen=True)
class FastV(SingleStage):
    """Score by the last token's attention in layer K-1, keep the top share, drop the rest before layer K.

    The score is the post-softmax attention with RoPE over all keys, averaged over heads. Survivors keep their
    original positions; the caches of layers 0..K-1 stay whole.

    Deviations: the paper speaks of attention received from all tokens, the official code uses the last token's row,
    and so do we. The row is computed from that query and the cached keys instead of an eager attention map. The
    kept count is round(retention * N); the official files disagree (round, int).
    """

    name = "fastv"
    title = "FastV"
    paper = "https://arxiv.org/abs/2403.06764"
    year = 2024
    summary = "Last token's attention in layer K-1; drops before layer K=2."
    question_aware = True
    color = "#E08A00"

    layer: int = knob(
        2, "K: tokens are dropped before decoder layer K, by the attention of layer K-1", low=1, costs=True
    )

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        return {"scores": prunes.rows()}

    def select(self, prefill: Prefill, k: int) -> Selection:
        with prefill.stage("scores"):
            attention = prefill.logits_of_last_layer(self.layer - 1).softmax(-1)  # [heads, n]
            scores = attention.mean(0)[prefill.rows]
        prefill.record_scores("raw", scores)
        with prefill.stage("select"):
            return Selection(top_k(scores, k))
