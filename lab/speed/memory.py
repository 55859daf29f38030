"""The highest memory of a block, by torch's own counters: CUDA's allocator, or every allocation on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """Bytes at their highest within a block: all that is on the device, and what the block added to it.

    Either is None where no counter tells it: a CPU's allocator does not know what was there before.
    """

    bytes: int | None = None
    added: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Count the memory of a block on CUDA, which costs no time; on other devices the answer stays None."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    peak.bytes = torch.cuda.max_memory_allocated(device)
    peak.added = peak.bytes - before


@contextmanager
def added_on_cpu() -> Iterator[Peak]:
    """Count what a block adds on a CPU, tensor by tensor: exact and the same every time, but slow, so never timed."""
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        yield peak
    peak.added = highest(_changes(watched))


def highest(changes: list[int]) -> int:
    """Return the highest sum of a run of changes, starting from 0."""
    now = top = 0
    for change in changes:
        now += change
        top = max(top, now)
    return top


def _changes(watched: Any) -> list[int]:
    """Bytes of every allocation, negative where they were freed, in order of time."""
    # The profiler's public tables add these up by operator; only its raw events keep their order.
    raw = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(raw, key=lambda event: event.start_ns())]
