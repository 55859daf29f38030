"""Token schedules: how many visual tokens enter each decoder layer. Pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharp_demo.errors import MethodError

PRUNE_LAYER = {"fastv": 2, "feather": 2, "sharp": 1, "random": 2, "uniform": 2, "latest": 2}
"""Default K of the methods with one prune inside the LLM: layers 0..K-1 run on every visual token."""

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


INSIDE = frozenset({"framefusion"})
"""Methods that drop after a layer's attention and before its MLP, all but their first stage at layer 0."""


def mlp_per_layer(visual: Sequence[int], method: str) -> list[int]:
    """Return the visual tokens that enter each layer's MLP, given those that enter its attention (`visual`)."""
    return [*visual[1:], *visual[-1:]] if method in INSIDE else list(visual)


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


PDROP_CUTS = {"comparison": (4 / 28, 12 / 28, 20 / 28), "official": (1 / 4, 1 / 2, 3 / 4)}
"""Where PDrop drops, in shares of the decoder's depth: for the comparison with FastV's cost, and its paper's own."""


def pdrop_layers(layers: int, cuts: str = "comparison") -> list[int]:
    """Return the layers before which PDrop drops: the shares of `PDROP_CUTS`, rounded, each at least one apart."""
    found, last = [], 0
    for share in PDROP_CUTS[cuts]:
        last = max(last + 1, round(layers * share))
        found.append(last)
    return found


def pdrop_schedule(
    retention: float, n: int, layers: int, decay: float = 0.5, cuts: str = "comparison"
) -> list[tuple[int, int]]:
    """Return PDrop's stages: before cut j the best floor(retention decay^j n) tokens stay, at least one.

    Sizes refer to the n tokens of the prompt. Source: PyramidDrop's official code.
    """
    # The small term keeps the floor of a quotient k / n times n at k.
    sizes = (max(1, min(n, int(retention * decay**stage * n + 1e-9))) for stage in range(len(PDROP_CUTS[cuts])))
    return list(zip(pdrop_layers(layers, cuts), sizes, strict=True))


def ceil_share(share: float, n: int) -> int:
    """Return `share` of n rounded up; a quotient k / n gives k despite floating point."""
    return min(n, math.ceil(share * n - 1e-9))


def holitom_layer(layers: int) -> int:
    """Return the layer of HoliTom's inner stage: 18 of 28, the same share of another depth."""
    return max(1, round(layers * 18 / 28))


def holitom_schedule(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return HoliTom's two stages on a video without static patches: a share of each frame, then half of all.

    `options` may hold `frames` (else the whole video counts as one), `inner_layer` and `drop`.
    """
    frames, drop = options.get("frames", 1), options.get("drop", 0.5)
    outer = frames * ceil_share(retention, n // frames)
    inner = (options.get("inner_layer") or holitom_layer(layers), max(1, round(outer * (1 - drop))))
    return [(0, outer), inner] if drop > 0 else [(0, outer)]


LAYER_MEANS = frozenset({"framefusion"})
"""Methods whose retention is a mean over layers."""

NOMINAL = frozenset({"framefusion", "holitom", "holitom+sharp"})
"""Methods whose counts depend on the video, so that their schedule is nominal (`Method.adaptive`)."""

LEAST_LAYER = dict.fromkeys(("fastv", "feather", "sharp", "visionzip+sharp"), 1)
"""The least K of methods that need a full layer before they drop; the others may drop before layer 0."""


def check_layer_mean(method: str, retention: float, layers: int) -> None:
    """Raise MethodError when a mean over layers is so low that the first layer alone may exceed it."""
    if method in LAYER_MEANS and retention * layers <= 1:
        raise MethodError(
            f"{method}: retention {retention:g} is a mean over {layers} layers, and the first may see every token: "
            f"it must be above 1/{layers} = {1 / layers:.3g}."
        )


def framefusion_schedule(retention: float, n: int, layers: int) -> list[tuple[int, int]]:
    """Return FrameFusion's stage on a video where nothing merges: layer 0 sees all, the others make up for it.

    The drop lies between the attention and the MLP of layer 0 (see `mlp_per_layer`).
    `retention` is the mean over layers; where that is out of reach (see `check_layer_mean`) one token is left.
    """
    rest = (retention * layers - 1) / (layers - 1) if layers > 1 else 1.0
    return [(1, budget(rest, n))]


def holitom_sharp_schedule(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return HoliTom's stages with ShaRP as the inner one, before `layer`; it counts as all budgets do."""
    drop = options.get("drop", 0.5)
    ((_, outer),) = holitom_schedule(retention, n, layers, {**options, "drop": 0.0})
    inner = (options.get("layer") or holitom_layer(layers), budget(1 - drop, outer))
    return [(0, outer), inner] if drop > 0 else [(0, outer)]


VISIONZIP_RATIO = 20 / 12.4
"""What VisionZip leaves over what ShaRP leaves of it: Table 3 of the ShaRP paper."""


def visionzip_sharp_schedule(
    retention: float, n: int, layers: int, options: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Return the stages of VisionZip and of ShaRP behind it; `retention` is what ShaRP leaves of all n tokens.

    `options` may hold `frames`, `layer` and `outer_ratio`.
    """
    share = min(1.0, retention * options.get("outer_ratio", VISIONZIP_RATIO))
    outer = framewise_budget(share, n, options.get("frames", 1)) if share < 1 else n
    inner = (options.get("layer", PRUNE_LAYER["sharp"]), min(outer, budget(retention, n)))
    return [(0, outer), inner] if share < 1 else [inner]


def _single(method: str) -> NominalSchedule:
    def stages(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> Schedule:
        return [(options.get("layer", PRUNE_LAYER[method]), budget(retention, n))]

    return stages


def _feather(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> Schedule:
    if options.get("paper_mode"):
        return feather_paper_schedule(retention, n, -(-n // 9), feather_paper_layers(layers))
    return _single("feather")(retention, n, layers, options)


def _pdrop(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> Schedule:
    chosen = {name: options[name] for name in ("decay", "cuts") if name in options}
    return pdrop_schedule(retention, n, layers, **chosen)


def _before_the_llm(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> Schedule:
    return [(0, budget(retention, n))]


def _visionzip(retention: float, n: int, layers: int, options: Mapping[str, Any]) -> Schedule:
    return [(0, framewise_budget(retention, n, options.get("frames", 1)))]


NominalSchedule = Callable[[float, int, int, Mapping[str, Any]], Schedule]

SCHEDULES: Mapping[str, NominalSchedule] = {
    "vanilla": lambda retention, n, layers, options: [],
    "fastv": _single("fastv"),
    "feather": _feather,
    "sharp": _single("sharp"),
    "pdrop": _pdrop,
    "framefusion": lambda retention, n, layers, options: framefusion_schedule(retention, n, layers),
    "visionzip": _visionzip,
    "holitom": holitom_schedule,
    **dict.fromkeys(("sharpv", "evs"), _before_the_llm),
    "visionzip+sharp": visionzip_sharp_schedule,
    "holitom+sharp": holitom_sharp_schedule,
    **{method: _single(method) for method in ("random", "uniform", "latest")},
}
"""(retention, n, layers, options) -> prune stages, of every method that ships, in its order, without loading torch."""


def method_schedule(
    method: str, retention: float, n: int, layers: int = 28, options: Mapping[str, Any] | None = None
) -> Schedule:
    """Return the prune stages of a method by its name; torch is loaded only for a method that `SCHEDULES` lacks.

    `options` may hold whatever changes the token counts, such as `layer` (K), and `frames` for methods whose budget
    is one of each frame. Raises MethodError on an unknown method.
    """
    if method in SCHEDULES:
        return SCHEDULES[method](retention, n, layers, options or {})
    from sharp_demo.pruning.registry import make_method  # loads torch

    options = dict(options or {})
    frames = options.pop("frames", 1)
    return make_method(method, retention, options).schedule(layers, n, frames)
