"""CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967) as OpenVINO deploys it: a DPP that leans to the question."""

from __future__ import annotations

import math
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

LEAST = 1e-6  # a gain below this is rounding: the rank of the kernel is used up


def min_max(values: Tensor) -> Tensor:
    """Stretch each row of values [B, n] to [0, 1]; equal values become 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return (values - low) / (high - low + 1e-6)


def kernel_weights(relevance: Tensor, kernel: str, weight: float) -> tuple[float, Tensor]:
    """Return a and b [B, n] of the kernel L_ij = S_ij (a + b_i b_j), S the cosines; relevance [B, n] in [0, 1].

    `blend`: (1 - w) + w r_i r_j. `product`: r_i r_j. `exp`: q_i q_j with q = exp(w r / (2 - 2 w)), scaled to at most
    1, which changes no choice; w = 1 is `product`.
    """
    if kernel == "blend":
        return 1 - weight, math.sqrt(weight) * relevance
    if kernel == "exp" and weight < 1:
        return 0.0, (weight / (2 - 2 * weight) * (relevance - 1)).exp()
    return 0.0, relevance


def greedy_map(unit: Tensor, base: float, factor: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Pick `count` rows, each the one that multiplies the determinant of the picked rows' kernel most.

    Rows of the kernel S_ij (base + factor_i factor_j) are made when they are needed, never all of it. Once no gain is
    left the most relevant of the rest follow. Of equals the lower index is picked.

    Parameters
    ----------
    unit : [B, n, d], B separate sets; S is their cosines. factor, relevance : [B, n].

    Returns
    -------
    [B, count] distinct indices in the order of picking.

    Source: fast greedy MAP of Chen et al., arXiv 1709.05135.
    """
    batch = torch.arange(len(unit), device=unit.device)
    gain = (unit != 0).any(-1) * (base + factor.square())  # a row is at a cosine of 1 to itself
    spare = relevance.clone()
    rows = unit.new_empty(len(unit), count, unit.shape[1])  # of the Cholesky factor
    picks: list[Tensor] = []
    while True:
        best = gain.max(-1)
        used_up = best.values <= LEAST
        pick = torch.where(used_up, spare.argmax(-1), best.indices)
        step = len(picks)
        picks.append(pick)
        if step == count - 1:
            return torch.stack(picks, 1)
        row = (unit @ unit[batch, pick][..., None])[..., 0] * (base + factor[batch, pick][:, None] * factor)
        if step:
            row -= (rows[batch, :step, pick][:, None] @ rows[:, :step])[:, 0]
        row *= torch.where(used_up, 0, best.values.clamp(min=LEAST).rsqrt())[:, None]
        rows[:, step] = row
        gain -= row.square()
        gain[batch, pick] = spare[batch, pick] = -torch.inf


@dataclass(frozen=True)
class CDPruner(WholeFrames):
    """Keep tokens that are unlike each other and like the text: the greedy mode of a DPP, frame by frame.

    The kernel is the cosine of the tokens as they enter the LLM, weighted by their relevance r, which is stretched to
    [0, 1] in each set. `relevance=text` is OpenVINO's: the cosine to the mean of the input embeddings of all words of
    the prompt, system prompt and template included. `question` (ours) takes the words behind the video, `none` makes
    it blind. Each frame has an equal share of the budget (`scope=video`, ours: one set).

    Deviations: the paper's relevance is the negative cosine of CLIP's patches and CLIP's text embedding; neither
    checkpoint holds a text tower, so it cannot be had. Its kernel is `product`; OpenVINO's compiled graph has `blend`,
    which is the default here, and its helper in C++ `exp`. OpenVINO cuts every region into two halves and prunes each
    by itself; here a frame is one. It refuses video where positions have three axes. Its text behind the video
    continues at the last kept position; here it keeps its own, or is renumbered with all others (never with M-RoPE).
    When the kernel's rank is used up the most relevant tokens follow; the official code divides by the root of
    rounding noise there and may return a token twice.
    """

    name = "cdpruner"
    title = "CDPruner"
    paper = "https://arxiv.org/abs/2506.10967"
    year = 2025
    summary = "Tokens unlike each other and like the text, by the greedy mode of a DPP per frame; drops before the LLM."
    question_aware = True
    engines = "OpenVINO"
    color = "#42FA8C"

    relevance: str = knob(
        "text",
        "relevance is the cosine to the mean embedding of all words, of those behind the video, or of nothing",
        choices=("text", "question", "none"),
        costs=True,
    )
    kernel: str = knob(
        "blend",
        "similarity times (1 - w) + w r r', times exp(w r / (2 - 2 w)) of both, or times r r'",
        choices=("blend", "exp", "product"),
    )
    weight: float = knob(0.5, "w: weight of the relevance; product ignores it", low=0.0, high=1.0)
    scope: str = knob(
        "frame",
        "the tokens of each frame are one set, or those of the whole video",
        choices=("frame", "video"),
        costs=True,
    )

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        (_, kept), n = prunes.stages[0], prunes.before[0]
        steps = max(even_split(kept, prunes.frames if self.scope == "frame" else 1)) - 1
        rows = steps + (self.relevance != "none")
        return {"scores": n * (rows * prunes.shape.hidden + steps * (steps - 1) // 2)}

    def choose(self, frames: Tensor, k: int, prefill: Prefill) -> Tensor:
        sets = frames if self.scope == "frame" else frames.flatten(0, 1)[None]
        counts = even_split(k, len(sets))
        with prefill.stage("scores"):
            unit = F.normalize(sets, dim=-1)
            relevance = min_max(self._relevance(unit, prefill))
        prefill.record_scores("raw", relevance.flatten())
        with prefill.stage("select"):
            base, factor = kernel_weights(relevance, self.kernel, self.weight)
            return first_of_each(greedy_map(unit, base, factor, relevance, max(counts)), counts, sets.shape[1])

    def _relevance(self, unit: Tensor, prefill: Prefill) -> Tensor:
        if self.relevance == "none":
            return torch.zeros(unit.shape[:2], device=unit.device)
        words = prefill.text_around(before=self.relevance == "text", marks=False)
        mean = prefill.embeddings[0, words].float().mean(0)
        return (unit @ F.normalize(mean, dim=0)[:, None])[..., 0]
