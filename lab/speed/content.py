"""Visual embeddings that resemble a clip: segments, a picture per cell that persists, and repeated tokens.

Noise or a constant would make deduplication trivially cheap; what is drawn here gives every threshold of RegD
something to decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.tables.names import content_title
from sharp_demo.errors import InputError

# Shares of the variance: what a whole segment has in common, what one cell of it keeps, what is new in every frame.
# Two fresh tokens of one cell have cosine 0.65 (just not pre-filtered at 0.7), of two cells 0.25, across a cut 0.
SEGMENT, CELL, FRAME = 0.25, 0.40, 0.35
JITTER = 0.05  # standard deviation by which a repeated token differs from what it repeats (cosine above 0.99)


@dataclass(frozen=True)
class Content:
    """How repetitive the video is. Raises InputError for values out of range.

    segments : content-consistent stretches of about equal length. duplicates : share of tokens in [0, 1] that repeat
    the same cell of the frame before (in the first frame of a segment, the cell before).
    """

    segments: int = 8
    duplicates: float = 0.5

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise InputError(f"segments is {self.segments}; it must be at least 1")
        if not 0 <= self.duplicates <= 1:
            raise InputError(f"duplicates is {self.duplicates:g}; it must be between 0 and 1")

    @property
    def title(self) -> str:
        return content_title(vars(self))


def clip_like(content: Content, frames: int, cells: int, width: int, seed: int = 0) -> Tensor:
    """Draw the embeddings of a video, [frames * cells, width] fp32, frame by frame; entries have variance about 1.

    Raises InputError when there are more segments than frames.
    """
    if content.segments > frames:
        raise InputError(f"{content.segments} segments do not fit into {frames} frames; ask for fewer")
    generator = torch.Generator().manual_seed(seed)
    segment = torch.arange(frames) * content.segments // frames
    common = torch.randn(content.segments, 1, width, generator=generator)
    picture = torch.randn(content.segments, cells, width, generator=generator)
    base = SEGMENT**0.5 * common + CELL**0.5 * picture
    source = _sources(content, segment, cells, generator)
    tokens = torch.randn(frames, cells, width, generator=generator).mul_(FRAME**0.5).add_(base[segment])
    tokens = tokens.view(-1, width)[source]
    return tokens.add_(torch.randn(tokens.shape, generator=generator), alpha=JITTER)


def _sources(content: Content, segment: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """For every token [frames * cells] the fresh token it repeats (itself where it is fresh)."""
    frames = len(segment)
    repeats = torch.rand(frames, cells, generator=generator) < content.duplicates
    source = torch.arange(frames * cells).view(frames, cells)
    for frame in range(frames):
        if frame and segment[frame] == segment[frame - 1]:
            source[frame] = torch.where(repeats[frame], source[frame - 1], source[frame])
        else:
            first = frame * cells
            source[frame] = torch.where(repeats[frame], first, source[frame]).cummax(0).values
    return source.flatten()
