"""Selections that look at nothing: what any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import SingleStage, knob
from sharp_demo.pruning.outcome import Selection

if TYPE_CHECKING:
    import torch

    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Random(SingleStage):
    """Keep a random subset, the same for the same seed and number of tokens."""

    name = "random"
    title = "Random"
    summary = "Floor: keeps a random subset."
    floor = True
    color = "#A9745B"

    seed: int = knob(0, "seed of the subset", low=0, high=2**63 - 1)

    def select(self, prefill: Prefill, k: int) -> Selection:
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(len(prefill.rows), generator=generator)[:k].sort().values
        return Selection(kept.to(prefill.rows.device))


@dataclass(frozen=True)
class Uniform(SingleStage):
    """Keep evenly spaced tokens of the sequence."""

    name = "uniform"
    title = "Uniform"
    summary = "Floor: keeps evenly spaced tokens."
    floor = True
    color = "#8F6BC4"

    def select(self, prefill: Prefill, k: int) -> Selection:
        n = len(prefill.rows)
        return Selection((torch.arange(k, device=prefill.rows.device) * n + n // 2) // k)


@dataclass(frozen=True)
class Latest(SingleStage):
    """Keep the end of the sequence: where positional bias alone would put the budget."""

    name = "latest"
    title = "Latest"
    summary = "Floor: keeps the last tokens of the video."
    floor = True
    color = "#C2548A"

    def select(self, prefill: Prefill, k: int) -> Selection:
        n = len(prefill.rows)
        return Selection(torch.arange(n - k, n, device=prefill.rows.device))
