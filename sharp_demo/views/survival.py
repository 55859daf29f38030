"""Before which decoder layer each visual token was dropped: the per-layer counts of a result, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharp_demo.records import Result

NEVER = 255  # the token stays to the end
LEFT = "left_before"  # a result's trace may name the layer before which each slot was dropped


def left_before(result: Result) -> np.ndarray | None:
    """Return for every slot the layer before which it was dropped, `NEVER` for the kept; None where nobody can tell.

    uint8 [N]. A result that does not say it outright still tells: with one drop every token that is gone left there;
    with two, those that have no score were gone before the second chose by scores. What is returned always agrees
    with `visual_per_layer`.
    """
    kept = kept_slots(result)
    drops = drop_layers(result.visual_per_layer, result.layout.tokens)
    left = np.full(result.layout.tokens, NEVER, np.uint8)
    if LEFT in result.trace:
        left = np.minimum(np.asarray(result.trace[LEFT]), NEVER).astype(np.uint8)
        left[kept] = NEVER
    elif drops:
        left[:] = drops[-1]
        if len(drops) == 2 and result.scores:
            scored = np.array([score is not None for score in next(reversed(result.scores.values()))])
            left[~scored] = drops[0]
        left[kept] = NEVER
    entering = [int((left > layer).sum()) for layer in range(len(result.visual_per_layer))]
    return left if entering == [int(count) for count in result.visual_per_layer] else None


def kept_slots(result: Result) -> list[int]:
    """Return the slots of the tokens that survived."""
    per_frame = result.layout.rows * result.layout.cols
    return [frame * per_frame + index for frame, indices in enumerate(result.kept) for index in indices]


def drop_layers(per_layer: Sequence[int], tokens: int) -> list[int]:
    """Return the layers that fewer tokens enter than the one before; layer 0 when something was dropped before it."""
    return [layer for layer, count in enumerate(per_layer) if count < (per_layer[layer - 1] if layer else tokens)]
