"""What the parent orders from a decoder, and how frames are collected for it (in the child process)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Enough to use the second core; more threads cost memory, not patience.
THREADS = 2


@dataclass(frozen=True)
class Order:
    """Frames wanted from a file.

    `indices` and `times` (seconds, container clock) ascend without duplicates; `anchors[k]` is the time of the last
    key frame at or before `times[k]`; `origin` is the time of the first frame; `total` counts the file's frames;
    `size` is (width, height) after rotation; `rotation` is counter-clockwise; `slack` is how far, in seconds, a
    damaged file's frame may be from the wanted one.
    """

    path: str
    demuxer: str
    indices: list[int]
    times: list[float]
    anchors: list[float]
    origin: float
    total: int
    size: tuple[int, int]
    rotation: int
    slack: float
    max_pixels: float


class DecodeError(Exception):
    """This decoder cannot fill the order; another one may."""


def check_filled(order: Order, frames: np.ndarray, times: list[float]) -> None:
    """Raise `DecodeError` when shape or times are not what was ordered, so that the next decoder tries."""
    width, height = order.size
    if frames.shape != (len(order.times), height, width, 3):
        raise DecodeError(f"frames of shape {frames.shape}")
    for wanted, got in zip(order.times, times, strict=True):
        if abs(got - wanted) > order.slack:
            raise DecodeError(f"for the frame of {wanted:.3f} s it found the one of {got:.3f} s")


class Taken:
    """Collects the wanted frames from frames offered in presentation order."""

    def __init__(self, order: Order) -> None:
        width, height = order.size
        self.order = order
        self.frames = np.empty((len(order.times), height, width, 3), np.uint8)
        self.times: list[float] = []

    @property
    def count(self) -> int:
        return len(self.times)

    @property
    def full(self) -> bool:
        return self.count == len(self.order.times)

    def offer(self, time: float, picture: Callable[[], np.ndarray]) -> None:
        """Take the frame for every wanted time it reaches; `picture` is only called when it is taken."""
        first = self.count
        while not self.full and self.order.times[self.count] <= time + 1e-4:
            self.frames[self.count] = picture() if self.count == first else self.frames[first]
            self.times.append(time)

    def finish(self) -> None:
        """The video ended early: repeat the last frame; `check_filled` judges by its time."""
        if not self.times:
            raise DecodeError("no frame could be decoded")
        while not self.full:
            self.frames[self.count] = self.frames[self.count - 1]
            self.times.append(self.times[-1])
