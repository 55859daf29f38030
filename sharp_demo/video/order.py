"""What the parent orders from a decoder, and how frames are collected for it (in the child process)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sharp_demo.video.orientation import displayed, looks_otherwise, upright

# Enough to use the second core; more threads cost memory, not patience.
THREADS = 2


@dataclass(frozen=True)
class Order:
    """Frames wanted from a file.

    `stream` is the index of the stream to read. `indices` and `times` (seconds, container clock) ascend without
    duplicates; `anchors[k]` is the time of the last key frame at or before `times[k]`; `origin` is the time of the
    first frame; `total` counts the file's frames. `coded` is (width, height) of the first picture in the file, `size`
    what is wanted after turning; `rotation` and `mirrored` are the orientation. `slack` is how far, in seconds, a
    damaged file's frame may be from the wanted one. `clock` is empty, or the time of every frame, for a file whose
    pictures carry no times of their own. `reference` is empty, or a small picture (hex) of the frame at
    `reference_place` in `times`, as it is stored.
    """

    path: str
    demuxer: str
    stream: int
    indices: list[int]
    times: list[float]
    anchors: list[float]
    origin: float
    total: int
    coded: tuple[int, int]
    size: tuple[int, int]
    rotation: int
    mirrored: bool
    slack: float
    max_pixels: float
    clock: list[float]
    reference: str
    reference_place: int

    @property
    def stored(self) -> tuple[int, int]:
        """The size that decoders deliver: (width, height) before turning."""
        return displayed(self.size, (self.rotation, self.mirrored))


class DecodeError(Exception):
    """This decoder cannot fill the order; another one may."""


def check_filled(order: Order, frames: np.ndarray, times: list[float]) -> None:
    """Raise `DecodeError` when shape, times or orientation are not what was ordered; the next decoder tries then."""
    width, height = order.size
    if frames.shape != (len(order.times), height, width, 3):
        raise DecodeError(f"frames of shape {frames.shape}")
    reference = order.reference_place if order.reference else None
    for place, (wanted, got) in enumerate(zip(order.times, times, strict=True)):
        if abs(got - wanted) > order.slack:
            raise DecodeError(f"for the frame of {wanted:.3f} s it found the one of {got:.3f} s")
        if place == reference:
            seen = looks_otherwise(frames[place], bytes.fromhex(order.reference), (order.rotation, order.mirrored))
            if seen is not None:
                raise DecodeError(f"pictures stand as if they were stored for {seen}")


class Taken:
    """Collects the wanted frames, upright, from stored pictures offered in presentation order."""

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
        """Take the frame for every wanted time it reaches; `picture`, as stored, is only called when it is taken."""
        first = self.count
        while not self.full and self.order.times[self.count] <= time + 1e-4:
            if self.count == first:
                self.frames[first] = upright(picture(), (self.order.rotation, self.order.mirrored))
            else:
                self.frames[self.count] = self.frames[first]
            self.times.append(time)

    def finish(self) -> None:
        """The video ended early: repeat the last frame; `check_filled` judges by its time."""
        if not self.times:
            raise DecodeError("no frame could be decoded")
        while not self.full:
            self.frames[self.count] = self.frames[self.count - 1]
            self.times.append(self.times[-1])
