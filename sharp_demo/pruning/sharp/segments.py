"""SegM's first half: cutting the video into content-consistent segments (ShaRP Sec. 4.1, Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
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


def similarities(means: Tensor, tau_seg: float) -> tuple[Tensor, Tensor]:
    """Eq. 3 on frame means [count, d]: the cosines [count - 1] of neighbours, and which frames [count] begin a segment.

    Frame 0 does, and every f with cos(mean f-1, mean f) < tau_seg (strict).
    """
    cosines = F.cosine_similarity(means[:-1], means[1:], dim=-1)
    return cosines, F.pad(cosines < tau_seg, (1, 0), value=True)


def spans(begins: Sequence[bool | int]) -> list[tuple[int, int]]:
    """The segments as [first, end) frames, contiguous, covering all frames; `begins` as in `similarities`."""
    return list(pairwise([*(frame for frame, begin in enumerate(begins) if begin), len(begins)]))


def segment_frames(means: Tensor, tau_seg: float) -> list[tuple[int, int]]:
    """The segments of frame means [count, d]."""
    return spans(similarities(means, tau_seg)[1].tolist())


@dataclass(frozen=True, eq=False)
class Cuts:
    """A video cut into segments: [first, end) frames, and their [a, b) ranges of tokens, without empty ones."""

    segments: list[tuple[int, int]]
    ranges: list[tuple[int, int]]
    cosines: Tensor  # [count - 1] of consecutive frame means


def cut(tokens: Tensor, frames: Tensor, count: int, tau_seg: float) -> Cuts:
    """`segment_frames` and `token_bounds` of tokens [v, d] with ascending `frames` [v]; waits for the device once."""
    means = frame_means(tokens, frames, count)
    cosines, begins = similarities(means, tau_seg)
    edges = torch.searchsorted(frames, torch.arange(count + 1, device=frames.device))
    answer = torch.cat((begins.long(), edges)).tolist()
    segments = spans(answer[:count])
    ranges = [(answer[count + first], answer[count + end]) for first, end in segments]
    return Cuts(segments, [(a, b) for a, b in ranges if a < b], cosines)


def token_bounds(frames: Tensor, segments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn [first, end) frames into [a, b) ranges of the v tokens with ascending `frames` [v]; empty ones vanish."""
    edges = torch.tensor([first for first, _ in segments] + [segments[-1][1]], device=frames.device)
    cuts = torch.searchsorted(frames, edges).tolist()
    return [(a, b) for a, b in pairwise(cuts) if a < b]
