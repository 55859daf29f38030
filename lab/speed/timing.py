"""What repeated measurements are told as, and the threads they run with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sharp_demo.engine.timing import spread

MIN_ROUNDS = 3  # with fewer no ratio is given


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Samples in the order they were taken, their median, minimum and relative spread."""
    return {
        "median": float(np.median(samples)),
        "min": float(min(samples)),
        "spread": spread(samples),
        "samples": [float(value) for value in samples],
    }


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
