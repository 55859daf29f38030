"""Token schedules: how many visual tokens enter each decoder layer. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sharp_demo.errors import MethodError

PRUNE_LAYER = {"fastv": 2, "feather": 2, "sharp": 1, "random": 2, "uniform": 2, "latest": 2}
"""Default K of the methods with one prune inside the LLM: layers 0..K-1 run on every visual token."""

Schedule = Sequence[tuple[int, int]]
"""Prune stages (layer, kept): from the input of `layer` on, `kept` visual tokens remain."""


def budget(retention: float, n: int) -> int:
    """Return how many of `n` visual tokens a retention keeps: rounded, at least 1, at most n."""
    return min(n, max(1, round(retention * n)))


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


def grid_tokens(frames: int, rows: int, cols: int, stride: int) -> int:
    """Return the size of a per-frame uniform grid that starts at row and column 0 and takes every `stride`-th."""
    return frames * -(-rows // stride) * -(-cols // stride)


def feather_paper_layers(layers: int) -> tuple[int, int]:
    """Return the layers of Feather's two stages: 8 and 16 of 32, so L/4 and L/2."""
    return max(1, layers // 4), max(2, layers // 2)


def feather_paper_schedule(retention: float, n: int, grid: int, layers: tuple[int, int]) -> list[tuple[int, int]]:
    """Return Feather's published two-stage schedule for a grid of `grid` tokens.

    Stage 1 keeps int(r n) top-scored tokens united with the grid; stage 2 keeps int(r^2) of the survivors. How far
    the top-scored tokens and the grid overlap depends on the video; the expected overlap of independent sets stands
    in for it. Source: Feather's official code.
    """
    top = int(retention * n)
    first = min(n, max(1, top + round(grid * (1 - top / n))))
    return [(layers[0], first), (layers[1], max(1, int(first * retention**2)))]


def method_schedule(
    method: str, retention: float, n: int, layers: int = 28, options: Mapping[str, Any] | None = None
) -> Schedule:
    """Return the prune stages of a method by its name, without loading the method (or torch).

    `options` may hold `layer` (K) and Feather's `paper_mode`; no other option changes the token counts. Raises
    MethodError on an unknown method.
    """
    options = options or {}
    if method == "vanilla":
        return []
    if method not in PRUNE_LAYER:
        raise MethodError(f"no method named {method!r}; there are: vanilla, {', '.join(PRUNE_LAYER)}")
    if method == "feather" and options.get("paper_mode"):
        return feather_paper_schedule(retention, n, -(-n // 9), feather_paper_layers(layers))
    return [(options.get("layer", PRUNE_LAYER[method]), budget(retention, n))]
