"""Token schedules: how many visual tokens enter each decoder layer. Pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

Schedule = Sequence[tuple[int, int]]
"""Prune stages (layer, kept): from the input of `layer` on, `kept` visual tokens remain."""


def budget(retention: float, n: int) -> int:
    """Return how many of `n` visual tokens a retention keeps: rounded, at least 1, at most n."""
    return min(n, max(1, round(retention * n)))


def framewise_budget(retention: float, n: int, frames: int) -> int:
    """Return the tokens of a budget that every one of `frames` equal frames has for itself."""
    return frames * budget(retention, n // frames)


def visual_per_layer(layers: int, n: int, schedule: Schedule) -> list[int]:
    """Return the visual tokens that enter each of `layers` decoder layers, given the prune stages in layer order.

    A stage at layer 0 prunes before the LLM; one at or beyond `layers` never takes effect. Raises ValueError when
    the stages are not in ascending layer order or a later stage would keep more than an earlier one.
    """
    counts, current, last = [n] * layers, n, -1
    for layer, kept in schedule:
        if layer <= last or kept > current:
            raise ValueError(f"prune stages must ascend in layer and never add tokens: {list(schedule)} of {n}")
        counts[layer:] = [kept] * max(0, layers - layer)
        current, last = kept, layer
    return counts


def ceil_share(share: float, n: int) -> int:
    """Return `share` of n rounded up; a quotient k / n gives k despite floating point."""
    return min(n, math.ceil(share * n - 1e-9))


def floor_share(share: float, n: int) -> int:
    """Return `share` of n rounded down; a quotient k / n gives k despite floating point."""
    return math.floor(share * n + 1e-9)
