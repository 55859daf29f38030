"""VidCom2 (Liu et al., EMNLP 2025, arXiv 2505.14454): what is unusual in its frame and in the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.cost import Prunes
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import WholeFrames
from sharp_demo.pruning.method import knob

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""The a of the kernels exp(-|u - v|^2 / 2a) that are added up."""


def calm_channels(rows: Tensor, share: float) -> Tensor:
    """Return the `share` of the channels of rows [N, d] that vary least, as they are; of equals the lower index."""
    count = max(1, int(rows.shape[1] * share))
    order = rows.var(0, correction=0).sort(stable=True).indices[:count]
    return rows[:, order.sort().values]


def kernel(squared: Tensor) -> Tensor:
    """Sum the Gaussian kernels of all widths at squared distances of any shape: 5 at 0, and less further away."""
    return sum(((-squared / (2 * width)).exp() for width in WIDTHS), torch.zeros_like(squared))


def closeness(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels [F, P] of each row of unit [F, P, d] with the mean of all rows, and with the mean of its frame's."""
    frame_mean = unit.mean(1, keepdim=True)
    video_mean = unit.mean((0, 1), keepdim=True).expand_as(frame_mean)
    own = unit.square().sum(-1)

    def to(mean: Tensor) -> Tensor:
        dot = (unit @ mean.transpose(1, 2))[..., 0]
        return kernel((own - 2 * dot + mean.square().sum(-1)).clamp(min=0))

    return to(video_mean), to(frame_mean)


def frame_counts(video: Tensor, retention: float, temperature: float) -> Tensor:
    """Return how many tokens [F] each frame keeps: more, up to twice the share, where it is unlike the video's mean.

    video : [F, P] kernels of the tokens with the mean of all.
    """
    frames, size = video.shape
    weight = (-video.mean(1) / temperature).softmax(0)
    share = (retention * (1 + weight - 1 / frames)).clamp(max=1)
    return (share * size).round().clamp(min=1).long()  # half to even


def lowest_of_each(scores: Tensor, counts: Tensor, total: int | None) -> Tensor:
    """Indices, ascending, of the counts[t] lowest of scores [F, P] in each frame, of equals the lower index.

    With a `total` exactly so many: the highest of the chosen go, or the lowest of the others come in, over the whole
    video; a frame's lowest goes only where there are fewer than frames.
    """
    frames, size = scores.shape
    order = scores.sort(dim=1, stable=True).indices
    ranks = torch.arange(size, device=scores.device).expand(frames, size)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    chosen = rank < counts[:, None]
    if total is None:
        return chosen.flatten().nonzero()[:, 0]
    tier = torch.where(rank == 0, 0, torch.where(chosen, 1, 2)).flatten()
    by_score = scores.flatten().sort(stable=True).indices
    first = by_score[tier[by_score].sort(stable=True).indices]
    return first[:total].sort().values


@dataclass(frozen=True)
class VidCom2(WholeFrames):
    """Keep in each frame the tokens unlike its mean and unlike the video's, more of them in unusual frames.

    Of the channels of the tokens as they enter the LLM the half that varies least is kept, and every token is scaled
    to length 1 over those. A token's score is the sum of five Gaussian kernels with the mean of all tokens plus the
    same with the mean of its frame; the lowest stay. A frame's share is `retention` times 1 + p - 1/F, where p is the
    softmax over frames, at `temperature`, of how unlike the video's mean their tokens are.

    Deviations: the published counts are rounded in every frame and drift from the budget. As in vLLM, the highest
    scores then go or the lowest dropped ones come back until the count is exact; never a frame's last token, unless
    there are fewer than frames. `exact=False` keeps the published counts. Squared distances are expanded into
    products.
    """

    name = "vidcom2"
    title = "VidCom2"
    paper = "https://arxiv.org/abs/2505.14454"
    year = 2025
    summary = "Unlike the mean of the frame and of the video, more tokens in unusual frames; drops before the LLM."
    engines = "vLLM"
    color = "#E5065F"

    channel_share: float = knob(0.5, "share of the channels, those that vary least", low=0.0, high=1.0, costs=True)
    temperature: float = knob(0.01, "of the softmax that gives unusual frames more", low=1e-6)
    exact: bool = knob(True, "keep exactly the budget, as vLLM does, or what each frame's rounding gives")

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return not self.exact

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        channels = max(1, int(prunes.shape.hidden * self.channel_share))
        return {"scores": 2 * prunes.before[0] * channels}

    def choose(self, frames: Tensor, k: int, prefill: Prefill) -> Tensor:
        with prefill.stage("scores"):
            rows = calm_channels(frames.flatten(0, 1), self.channel_share)
            video, frame = closeness(F.normalize(rows, dim=-1).view(*frames.shape[:2], -1))
            scores = video + frame
        prefill.record_scores("raw", -scores.flatten())
        with prefill.stage("select"):
            counts = frame_counts(video, self.retention, self.temperature)
            return lowest_of_each(scores, counts, k if self.exact else None)
