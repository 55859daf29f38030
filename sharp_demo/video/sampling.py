"""Which frames to take, and how large: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

# Container clocks tick in milliseconds at worst and their ticks are rounded; a frame that starts this little
# after a sampling time is the one on screen.
CLOCK_S = 0.0005


def bin_centres(duration: float, count: int) -> list[float]:
    """Return the centres, in seconds, of `count` equal bins over [0, duration]."""
    return [(k + 0.5) * duration / count for k in range(count)]


def on_screen(times: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """Return for each wanted time the index of the frame shown then: the last one that has started.

    `times` are the frames' presentation times in seconds, ascending. A time before the first frame gets frame 0.
    """
    return [max(bisect_right(times, t + CLOCK_S) - 1, 0) for t in wanted]


def fit(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return an even (width, height) of the same aspect whose longest side is at most `max_side`; never enlarged.

    A side of a single pixel stays one pixel.
    """
    scale = min(1.0, max_side / max(width, height))

    def even(side: int) -> int:
        return max(min(2 * round(side * scale / 2), 2 * (min(side, max_side) // 2)), min(side, 2))

    return even(width), even(height)


def square_pixels(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Return the size with square pixels of a picture whose pixels are `aspect` times as wide as high.

    The squeezed side is shortened, so nothing is enlarged. Aspects outside 1/4..4 are taken for damage and ignored.
    """
    if not 0.25 <= aspect <= 4:
        return width, height
    return (width, max(round(height / aspect), 1)) if aspect >= 1 else (max(round(width * aspect), 1), height)
