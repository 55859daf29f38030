"""What repeated measurements say, and when they say too little: medians, spread, paired ratios, peak memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharp_demo.memory import trim_heaps

MAX_SPREAD = 0.25  # relative interquartile range above which a ratio of two medians means nothing
MIN_ROUNDS = 3


def spread(samples: Sequence[float]) -> float:
    """Interquartile range over median."""
    low, middle, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return float((high - low) / middle) if middle else 0.0


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Samples in the order they were taken, their median, minimum and relative spread."""
    return {
        "median": float(np.median(samples)),
        "min": float(min(samples)),
        "spread": spread(samples),
        "samples": [float(value) for value in samples],
    }


@dataclass(frozen=True)
class Ratio:
    """How many times faster one thing is than another, or why that cannot be said (`value` is None then).

    `low` and `high` are the least and the largest of the ratios of single rounds.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    refused: str = ""

    @property
    def text(self) -> str:
        return (
            f"n/a ({self.refused})" if self.value is None else f"{self.value:.2f}x ({self.low:.2f} to {self.high:.2f})"
        )


def paired_ratio(reference: Sequence[float], samples: Sequence[float]) -> Ratio:
    """Median of the ratios reference / sample of the same round.

    Refused with fewer than MIN_ROUNDS rounds, or when either side spreads by more than MAX_SPREAD.
    """
    if len(reference) != len(samples):
        raise ValueError(f"{len(reference)} reference samples and {len(samples)} others are not pairs")
    if len(samples) < MIN_ROUNDS:
        return Ratio(None, refused=f"{len(samples)} round{'s' * (len(samples) != 1)}, at least {MIN_ROUNDS} are needed")
    widest = max(spread(reference), spread(samples))
    if widest > MAX_SPREAD:
        return Ratio(None, refused=f"spread {widest:.0%}")
    ratios = np.asarray(reference) / np.asarray(samples)
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


@dataclass
class Peak:
    """Highest memory within `peak_memory`, in bytes, and what was in use before; None where it cannot be told."""

    before: int | None = None
    bytes: int | None = field(default=None)

    @property
    def added(self) -> int | None:
        return None if self.bytes is None or self.before is None else self.bytes - self.before


@contextmanager
def peak_memory(device: torch.device, status: Path = Path("/proc/self")) -> Iterator[Peak]:
    """Watch the memory of a block: CUDA's allocator, or the process's resident set where Linux lets it be reset."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak.before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    gc.collect()
    trim_heaps()  # else what earlier cases freed is still resident and hides what this one adds
    try:
        (status / "clear_refs").write_text("5")  # sets the high-water mark to what is resident now
        peak.before = _resident(status)
    except OSError:
        yield peak
        return
    yield peak
    peak.bytes = _resident(status)


def _resident(status: Path) -> int:
    """The high-water mark of the resident set, in bytes."""
    for line in (status / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} does not tell its peak memory")


@contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Run with `count` torch threads (0: as many as there are); yields their number."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
