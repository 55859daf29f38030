"""Stage times without a synchronisation per stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` has run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stopwatch:
    """Milliseconds per named stage; stages of one name add up.

    On CUDA a stage is a pair of device events, resolved when `ms` is read. Elsewhere it is wall-clock time
    after a synchronise.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._done: list[tuple[str, float]] = []
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((stage, start, end))
        else:
            synchronize(self.device)
            began = time.perf_counter()
            yield
            synchronize(self.device)
            self._done.append((stage, (time.perf_counter() - began) * 1e3))

    def ms(self) -> dict[str, float]:
        """Return milliseconds by stage, in the order the stages first ran."""
        if self._pending:
            synchronize(self.device)
            self._done += [(stage, start.elapsed_time(end)) for stage, start, end in self._pending]
            self._pending = []
        total: dict[str, float] = {}
        for stage, ms in self._done:
            total[stage] = total.get(stage, 0.0) + ms
        return total
