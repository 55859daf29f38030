"""Feather (Endo et al., ICCV 2025, arXiv 2412.13180): scores without RoPE, and a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import Method, knob, top_k
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")


def grid_tokens(frames: int, rows: int, cols: int, stride: int) -> int:
    """Return the size of a per-frame uniform grid that starts at row and column 0 and takes every `stride`-th."""
    return frames * -(-rows // stride) * -(-cols // stride)


def feather_paper_layers(layers: int) -> tuple[int, int]:
    """Return the layers of Feather's two stages: 8 and 16 of 32, so L/4 and L/2."""
    return max(1, layers // 4), max(2, layers // 2)


def feather_paper_schedule(retention: float, n: int, grid: int, layers: tuple[int, int]) -> list[tuple[int, int]]:
    """Return Feather's published two-stage schedule for a grid of `grid` tokens.

    Stage 1 keeps int(r n) top-scored tokens united with the grid; stage 2 keeps int(r^2) of the survivors. How far
    the top-scored tokens and the grid overlap depends on the video; the expected overlap of independent sets stands
    in for it. Source: Feather's official code.
    """
    top = int(retention * n)
    first = min(n, max(1, top + round(grid * (1 - top / n))))
    return [(layers[0], first), (layers[1], max(1, int(first * retention**2)))]


def uniform_grid(frames: int, rows: int, cols: int, stride: int) -> Tensor:
    """Slots of every `stride`-th row and column of every frame, from row and column 0; ascending LongTensor."""
    slots = torch.arange(frames * rows * cols).view(frames, rows, cols)
    return slots[:, ::stride, ::stride].reshape(-1)


def budgeted_grid(frames: int, rows: int, cols: int, limit: int) -> Tensor:
    """The densest uniform grid of at most `limit` slots; below one slot a frame, frames are thinned evenly."""
    for stride in range(1, max(rows, cols) + 1):
        if grid_tokens(frames, rows, cols, stride) <= limit:
            return uniform_grid(frames, rows, cols, stride)
    frame = (torch.arange(limit) * frames + frames // 2) // max(limit, 1)
    return frame * rows * cols


@dataclass(frozen=True)
class Feather(Method):
    """Score in layer K-1 without RoPE over the visual keys, keep a uniform grid and fill it up by score.

    The last query's softmax runs over the visual keys only, per head, then heads are averaged; RoPE is left out of
    the score, never out of the forward. Default: one stage before layer K=2 with an exact budget, the reading of
    the ShaRP paper: the smallest stride whose grid takes at most half of the budget, the rest by score. With
    `paper_mode` the published two stages: before layer L/4 the top int(r N) united with a grid of stride 3, before
    layer L/2 the top int(r^2 n) of the survivors, where r is `retention`.

    Deviations: the budgeted grid is ours (neither paper gives one); frames need not be square; positions are
    original, as in the official code. The layers 8 and 16 of 32 of `paper_mode` become L/4 and L/2.
    """

    name = "feather"
    title = "Feather"
    paper = "https://arxiv.org/abs/2412.13180"
    year = 2025
    summary = "Last token's attention in layer K-1 without RoPE, plus a uniform grid; drops before layer K=2."
    question_aware = True
    color = "#0B9B78"

    layer: int = knob(2, "K: tokens are dropped before decoder layer K, by the scores of layer K-1", low=1, costs=True)
    paper_mode: bool = knob(False, "two stages (L/4, L/2) with a grid of stride 3 on top of the budget", costs=True)

    def stages(self, layers: int) -> tuple[int, ...]:
        """Layers before which tokens are dropped."""
        return feather_paper_layers(layers) if self.paper_mode else (self.layer,)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        if not self.paper_mode:
            return [(self.layer, budget(self.retention, n))]
        first, second = self.stages(layers)
        return feather_paper_schedule(self.retention, n, grid=-(-n // 9), layers=(first, second))

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        return {"scores": prunes.rows(project_keys=True, with_text=False)}

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        stages = self.stages(len(prefill.layers))
        return self._select(stages.index(layer), prefill) if layer in stages else None

    def attention(self, layer: int, prefill: Prefill) -> None:
        """Score just before layer K-1 attends, as the official code does; its attention itself stays as it is."""
        if layer + 1 in self.stages(len(prefill.layers)):
            with prefill.stage("scores"):
                scores = prefill.unrotated_logits(layer).softmax(-1).mean(0)
            prefill.record_scores("raw", scores)

    def _select(self, stage: int, prefill: Prefill) -> Selection:
        layout = prefill.layout
        if stage == 0 and len(prefill.slots) < len(layout):
            raise MethodError("feather: its grid lies over whole frames, so it must come first in a combination")
        scores = prefill.run.scores["raw"][prefill.slots]
        with prefill.stage("select"):
            if stage == 1:
                return Selection(top_k(scores, max(1, int(len(scores) * self.retention**2))))
            if self.paper_mode:
                grid = uniform_grid(layout.frames, layout.rows, layout.cols, 3).to(scores.device)
                kept = torch.cat((grid, top_k(scores, int(self.retention * len(scores))))).unique()
            else:
                k = budget(self.retention, len(layout))
                grid = budgeted_grid(layout.frames, layout.rows, layout.cols, k // 2).to(scores.device)
                # An infinite score puts the grid first and leaves the rest of the budget to the best others.
                kept = top_k(scores.index_fill(0, grid, torch.inf), k)
            role = torch.where(torch.isin(kept, grid), int(Role.GRID), int(Role.REGISTER))
        return Selection(kept, role)
