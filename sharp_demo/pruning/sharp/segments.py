"""SegM's first half: cutting the video into content-consistent segments (ShaRP Sec. 4.1, Eq. 3)."""

from __future__ import annotations

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
    member = F.one_hot(frames, count).T.float()  # [count, v]
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


def token_bounds(frames: Tensor, segments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn [first, end) frames into [a, b) ranges of the v tokens with ascending `frames` [v]; empty ones vanish."""
    edges = torch.tensor([first for first, _ in segments] + [segments[-1][1]], device=frames.device)
    cuts = torch.searchsorted(frames, edges).tolist()
    return [(a, b) for a, b in pairwise(cuts) if a < b]
