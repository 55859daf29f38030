"""DyCoke (Tao et al., CVPR 2025, arXiv 2411.15024), its first stage: drop what a window of four frames repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import WholeFrames, dissimilarity, even_split, first_of_each

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")

WINDOW = 4
BEFORE = (0, 0, 0, 2)
"""Of the frames of a window, which one each is compared with; the first with itself."""


def compared_with(frames: int) -> list[int]:
    """Return for every frame the one that it is compared with; the first of a window stays whole: itself."""
    return [frame - frame % WINDOW + BEFORE[frame % WINDOW] for frame in range(frames)]


@dataclass(frozen=True)
class DyCoke(WholeFrames):
    """Keep the first of every four frames whole, and of the others the tokens that changed most; before the LLM.

    The second frame of a window and the third are compared with the first, the fourth with the third as it was before
    pruning, token by token at the same place. Each of them keeps the same number of its least similar tokens.

    Deviations: the official code drops a share of 0.7 of each compared frame, which keeps 47.5 %; here that share
    follows from the retention, which is met exactly and cannot be below the whole frames' quarter. The official code
    never prunes the third frame of the last window, loses a last odd frame, and hands tokens over in the order of
    similarity; here the rule is the same in every window, also in a short last one, and the order is the video's. The
    second stage, which hides cached tokens while the answer is written, changes no prefill and is left out.
    """

    name = "dycoke"
    title = "DyCoke"
    paper = "https://arxiv.org/abs/2411.15024"
    year = 2025
    summary = "Change inside windows of four frames, whose first stays whole; drops before the LLM."
    color = "#5DF91A"

    def least_retention(self, layers: int, frames: int) -> float:
        return -(-frames // WINDOW) / frames

    def choose(self, frames: Tensor, k: int, prefill: Prefill) -> Tensor:
        (count, size), n = frames.shape[:2], len(prefill.layout)
        other = compared_with(count)
        whole = [frame == before for frame, before in enumerate(other)]
        if k < sum(whole) * size:
            raise MethodError(
                f"{self.name}: keeps every fourth frame whole, {sum(whole) * size} of {n} tokens; ask for a retention "
                f"of at least {sum(whole) / count:.4g}"
            )
        with prefill.stage("scores"):
            scores = dissimilarity(frames, frames[other]).square() / 2  # 1 - cos
            scores[::WINDOW] = torch.inf
        prefill.record_scores("raw", scores.flatten())
        with prefill.stage("select"):
            shares = iter(even_split(k - sum(whole) * size, count - sum(whole)))
            counts = [size if stays else next(shares) for stays in whole]
            return first_of_each(scores.sort(dim=1, descending=True, stable=True).indices, counts, size)
