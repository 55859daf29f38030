"""DART (Wen et al., EMNLP 2025, arXiv 2502.11494): keep the tokens that duplicate a few pivots least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import SingleStage, knob, top_k
from sharp_demo.pruning.outcome import Selection

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")


def shares(count: int, pivots: int) -> list[int]:
    """Split `count` tokens among the pivots; the first take one more where they do not come out even."""
    each, more = divmod(count, pivots)
    return [each + (pivot < more) for pivot in range(pivots)]


def least_alike(cosine: Tensor, taken: Tensor, counts: Sequence[int]) -> Tensor:
    """Let one pivot after another take the tokens that resemble it least, of equals the lower index.

    Parameters
    ----------
    cosine : [p, v] of each pivot to each token. taken : [a] tokens that are taken before. counts : how many each
        pivot takes of what is left.

    Returns
    -------
    [a + sum of counts] ascending indices.
    """
    left = torch.ones(cosine.shape[1], dtype=torch.bool, device=cosine.device).index_fill_(0, taken, False)
    kept = [taken]
    for row, count in zip(cosine, counts, strict=True):
        chosen = torch.where(left, row, torch.inf).sort(stable=True).indices[:count]
        left = left.index_fill(0, chosen, False)
        kept.append(chosen)
    return torch.cat(kept).sort().values


@dataclass(frozen=True)
class DART(SingleStage):
    """Choose a few pivots by the length of their keys; each takes the tokens least similar to it.

    Pivots are the visual tokens, and the words behind the video, whose key in layer K-1 has the largest L1 norm (with
    RoPE, all heads together). The visual pivots stay. Then each pivot, the visual ones by index and then the words,
    takes its share of the tokens whose state has the lowest cosine to its own. States enter layer K and pass the
    model's last norm first, as in the official code. `layer=0` does the same on the tokens as they enter the LLM, both
    norm and cosine, as TensorRT Edge-LLM describes its variant.

    Deviations: the official count is 4 + 8 int(retention N / 8), here it is exact and includes the visual pivots. The
    official order of pivots is that of a Python set. The official scripts cut the pivots' share by an absolute
    default (128 in all) unless told otherwise; their ratio is the share removed. A newline behind the video
    is no pivot. No official file prunes video.
    """

    name = "dart"
    title = "DART"
    paper = "https://arxiv.org/abs/2502.11494"
    year = 2025
    summary = "Least similar to eight pivots, the longest keys of video and question; drops before layer K=2."
    question_aware = True
    engines = "TensorRT Edge-LLM"
    color = "#06C5C5"

    visual_pivots: int = knob(4, "visual tokens that are pivots", low=1, costs=True)
    text_pivots: int = knob(4, "words behind the video that are pivots; those there are", low=0, costs=True)

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        (_, kept), n = prunes.stages[0], prunes.before[0]
        pivots = self.visual_pivots + min(self.text_pivots, prunes.text - prunes.prefix)
        return {"scores": pivots * n * prunes.shape.hidden if kept > self.visual_pivots else 0}

    def select(self, prefill: Prefill, k: int) -> Selection:
        with prefill.stage("scores"):
            lengths = self._lengths(prefill)
            scores = lengths[prefill.rows]
        prefill.record_scores("raw", scores)
        with prefill.stage("select"):
            pivots = top_k(scores, min(k, self.visual_pivots))
            if k <= self.visual_pivots:
                return Selection(pivots)
            words = prefill.text_around(before=False)
            words = words[top_k(lengths[words], self.text_pivots)]
            states = prefill.hidden[0]
            visual, asked = states[prefill.rows], states[torch.cat((prefill.rows[pivots], words))]
            if self.layer:
                visual, asked = prefill.norm(visual), prefill.norm(asked)
            cosine = F.normalize(asked.float(), dim=-1) @ F.normalize(visual.float(), dim=-1).T
            return Selection(least_alike(cosine, pivots, shares(k - len(pivots), len(asked))))

    def _lengths(self, prefill: Prefill) -> Tensor:
        """L1 norm [n] of every current row's key in the layer that has just run; of its embedding for layer 0."""
        if self.layer == 0:
            return prefill.hidden[0].float().abs().sum(-1)
        keys = prefill.cache.layers[self.layer - 1].keys[0]  # [heads, rows seen, head_dim]
        here = torch.searchsorted(prefill.orders[self.layer - 1], prefill.order)  # another method may have dropped some
        return keys[:, here].float().abs().sum((0, 2))
