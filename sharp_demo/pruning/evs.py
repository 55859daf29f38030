"""Efficient Video Sampling (Bagrov et al., arXiv 2510.14624), the pruning that vLLM offers for video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import dissimilarity, input_frames
from sharp_demo.pruning.method import REINDEX, Method, knob, top_k
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch

    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class EVS(Method):
    """Keep the first frame, and of all others the tokens that changed most since the frame before; before the LLM.

    The score is 1 - cos of a token and the one at the same place in the previous frame, as they enter the LLM. The
    budget is one for the whole video and exact, so a scene cut takes most of it.

    Deviations: the kept count is round(retention * N), in vLLM it is floored. vLLM never keeps less than one frame;
    a retention below that is refused here. Positions are renumbered where they have one axis and a shorter
    prompt is an ordinary one; with M-RoPE they stay as they are.
    """

    name = "evs"
    title = "EVS"
    paper = "https://arxiv.org/abs/2510.14624"
    year = 2025
    summary = "Change since the same place in the frame before; drops before the LLM, the first frame stays whole."
    where = "before"
    engines = "vLLM, SGLang, TensorRT-LLM"
    color = "#8E1F2F"

    reindex_positions: bool = knob(True, REINDEX)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, budget(self.retention, n))]

    def least_retention(self, layers: int, frames: int) -> float:
        return 1 / frames

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer:
            return None
        n, whole = len(prefill.layout), prefill.layout.rows * prefill.layout.cols
        k = budget(self.retention, n)
        if k < whole:
            raise MethodError(
                f"{self.name}: keeps the first frame whole, {whole} of {n} tokens; ask for a retention of at least "
                f"{whole / n:.4g}"
            )
        with prefill.stage("scores"):
            frames = input_frames(self.name, prefill)
            scores = torch.full(frames.shape[:2], torch.inf, device=frames.device)
            scores[1:] = dissimilarity(frames[1:], frames[:-1]).square() / 2  # |u - v|^2 = 2 - 2 cos of unit vectors
            scores = scores.flatten()
        prefill.record_scores("raw", scores)
        with prefill.stage("select"):
            return Selection(top_k(scores, k), compact=self.reindex_positions and prefill.family.renumbers)
