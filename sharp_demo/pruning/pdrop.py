"""PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): drop in stages, fewer tokens the deeper the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.errors import MethodError
from sharp_demo.pruning.method import Method, knob, top_k
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.schedule import Schedule

if TYPE_CHECKING:
    from sharp_demo.pruning.prefill import Prefill

PDROP_CUTS = {"comparison": (4 / 28, 12 / 28, 20 / 28), "official": (1 / 4, 1 / 2, 3 / 4)}
"""Where PDrop drops, in shares of the decoder's depth: for the comparison with FastV's cost, and its paper's own."""


def pdrop_layers(layers: int, cuts: str = "comparison") -> list[int]:
    """Return the layers before which PDrop drops: the shares of `PDROP_CUTS`, rounded, each at least one apart."""
    found, last = [], 0
    for share in PDROP_CUTS[cuts]:
        last = max(last + 1, round(layers * share))
        found.append(last)
    return found


def pdrop_schedule(
    retention: float, n: int, layers: int, decay: float = 0.5, cuts: str = "comparison"
) -> list[tuple[int, int]]:
    """Return PDrop's stages: before cut j the best floor(retention decay^j n) tokens stay, at least one.

    Sizes refer to the n tokens of the prompt. Source: PyramidDrop's official code.
    """
    # The small term keeps the floor of a quotient k / n times n at k.
    sizes = (max(1, min(n, int(retention * decay**stage * n + 1e-9))) for stage in range(len(PDROP_CUTS[cuts])))
    return list(zip(pdrop_layers(layers, cuts), sizes, strict=True))


@dataclass(frozen=True)
class PDrop(Method):
    """Score before each of three cuts by the last token's attention in the layer about to run, and keep the best.

    The score is the post-softmax attention with RoPE over all tokens that are left, averaged over heads, from the
    queries and keys of the next layer on the states that enter it. Before cut j (j = 0, 1, 2) the best
    floor(retention * decay^j * N) of the survivors stay: sizes refer to the N visual tokens of the prompt, not to
    the stage before. `retention` is the share after the first cut. The default cuts are layers 4, 12 and 20 of 28
    and scale with the depth of the model; `cuts="official"` takes L/4, L/2 and 3L/4.

    Deviations: the official configuration is retention 0.5, decay 0.5 and the official cuts (layers 8, 16, 24 of
    32). It can never cost as little as the ShaRP paper's rows, whose schedule is not published; the default cuts are
    the ones that explain its TFLOPs best (docs/methods.md). The official code renumbers the positions of what is
    left after every cut (`reindex_positions`); here they stay by default, since renumbering is not defined for
    positions with several axes. The official code projects and masks all tokens to score them; one row of attention
    is the same score.
    `retention=1` switches the method off whatever `decay` says.
    """

    name = "pdrop"
    title = "PDrop"
    paper = "https://arxiv.org/abs/2410.17247"
    year = 2025
    summary = "Last token's attention in the next layer; drops before layers 4, 12 and 20 of 28, halving each time."
    question_aware = True
    color = "#D2614A"

    decay: float = knob(
        0.5, "lambda: each cut keeps this share of what the cut before it kept", low=0, high=1, costs=True
    )
    cuts: str = knob(
        "comparison",
        "drop before layers 4/28, 12/28 and 20/28 of the depth, or before its quarters (official)",
        choices=tuple(PDROP_CUTS),
        costs=True,
    )
    reindex_positions: bool = knob(
        False, "renumber the positions of what is left after every cut, as the official code does; not with M-RoPE"
    )

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return pdrop_schedule(self.retention, n, layers, self.decay, self.cuts)

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        return {"scores": prunes.rows(project_keys=True)}

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer == 0 and self.reindex_positions and not prefill.family.renumbers:
            raise MethodError(
                f"{self.name}: reindex_positions is not defined for {prefill.family.title}, whose "
                "positions have three axes; leave it off to keep the original ones"
            )
        kept = dict(self.schedule(len(prefill.layers), len(prefill.layout))).get(layer)
        if kept is None:
            return None
        with prefill.stage("scores"):
            scores = prefill.logits_of_next_layer(layer).softmax(-1).mean(0)[prefill.rows]
        if "raw" not in prefill.run.scores:  # those of the first cut are of all tokens
            prefill.record_scores("raw", scores)
        with prefill.stage("select"):
            return Selection(top_k(scores, kept), compact=self.reindex_positions)
