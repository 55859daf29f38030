"""SegM's first half: cutting the video into content-consistent segments (ShaRP Sec. 4.1, Eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_means(tokens: Tensor, frames: Tensor, count: int) -> Tensor:
    """Average the visual tokens of each frame; a frame without tokens repeats the one before it (or the first).

    Parameters
    ----------
    tokens : [v, d] LLM-input embeddings.
    frames : [v] frame of each token, 0..count-1.

    Returns
    -------
    [count, d], fp32. As a product with a one-hot matrix: deterministic on every device.
    """
    member = (frames[:, None] == torch.arange(count, device=frames.device)).T.float()  # [count, v]
    size = member.sum(1)
    means = (member @ tokens.float()) / size[:, None].clamp(min=1)
    source = torch.where(size > 0, torch.arange(count, device=frames.device), frames[0])
    return means[source.cummax(0).values]


def segment_starts(means: Tensor, tau_seg: float) -> list[int]:
    """Frames at which a segment begins: frame 0 and every f with cos(mean f-1, mean f) < tau_seg (strict)."""
    similarity = F.cosine_similarity(means[:-1], means[1:], dim=-1)
    return [0, *((similarity < tau_seg).nonzero().squeeze(1) + 1).tolist()]


def segment_frames(means: Tensor, tau_seg: float) -> list[tuple[int, int]]:
    """The segments as [first, end) frames, contiguous, covering all frames of means [frames, d]."""
    starts = segment_starts(means, tau_seg)
    return list(pairwise([*starts, means.shape[0]]))


@dataclass(frozen=True, eq=False)
class Cuts:
    """A video cut into segments: [first, end) frames, and their [a, b) ranges of tokens, without empty ones."""

    segments: list[tuple[int, int]]
    ranges: list[tuple[int, int]]
    cosines: Tensor  # [count - 1] of consecutive frame means


def cut(tokens: Tensor, frames: Tensor, count: int, tau_seg: float) -> Cuts:
    """`segment_frames` and `token_bounds` of tokens [v, d] with ascending `frames` [v]; waits for the device once."""
    means = frame_means(tokens, frames, count)
    cosines = F.cosine_similarity(means[:-1], means[1:], dim=-1)
    begins = F.pad((cosines < tau_seg).long(), (1, 0))  # [count]
    edges = torch.searchsorted(frames, torch.arange(count + 1, device=frames.device))
    answer = torch.cat((begins, edges)).tolist()
    starts = [0, *(frame for frame in range(1, count) if answer[frame])]
    segments = list(pairwise([*starts, count]))
    ranges = [(answer[count + first], answer[count + end]) for first, end in segments]
    return Cuts(segments, [(a, b) for a, b in ranges if a < b], cosines)


def token_bounds(frames: Tensor, segments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn [first, end) frames into [a, b) ranges of the v tokens with ascending `frames` [v]; empty ones vanish."""
    edges = torch.tensor([first for first, _ in segments] + [segments[-1][1]], device=frames.device)
    cuts = torch.searchsorted(frames, edges).tolist()
    return [(a, b) for a, b in pairwise(cuts) if a < b]
