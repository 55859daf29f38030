"""Equal cost: the retention at which a method costs what FastV costs, and the paper's own tables matched so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sharp_demo.backbones.view import TowerShape, VideoShape
from sharp_demo.cost import ModelShape, exact_tflops, paper_tflops, shape_named, tower_tflops
from sharp_demo.errors import MethodError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import make_method
from sharp_demo.pruning.schedule import budget, visual_per_layer

FASTV_LAYER = 2  # the cost every FLOPs-matched comparison refers to: FastV with two full layers


@dataclass(frozen=True)
class Prompted:
    """What a time to the first token is counted from: a model, and a prompt with a video.

    Attributes
    ----------
    shape : the decoder. tower : its vision tower for layout frames of so many tokens.
    video : the whole video. encoded : its layout frames that are unlike each other.
    text, prefix : text tokens, and those before the video.
    """

    shape: ModelShape
    tower: Callable[[int], TowerShape]
    video: VideoShape
    encoded: int
    text: int = 40
    prefix: int = 0


def first_token_tflops(method: Method, prompt: Prompted) -> float:
    """Return the exact TFLOPs to the first token: vision tower, decoder and scoring, without what is paid once."""
    shape, video = prompt.shape, prompt.video
    view = method.view(video)
    seen = video.seen(view)
    _, tower = tower_tflops(prompt.tower(seen.rows * seen.cols), min(prompt.encoded, seen.frames), view.merging)
    counts = method.visual_per_layer(shape.layers, video.tokens, video.frames)
    scoring: dict[str, int] = {}
    if method.active:
        scoring = method.overhead_macs(shape, video.tokens, prompt.text, prompt.prefix, frames=video.frames)
    extra = sum(macs for stage, macs in scoring.items() if stage != "bias_setup")
    inner = method.mlp_per_layer(counts)
    return tower + exact_tflops(shape, counts, prompt.text, mlp_per_layer=inner, extra_macs=extra)


def flops_matched_retention(method: Method, shape: ModelShape, n: int, retention: float, frames: int = 1) -> float:
    """Return the retention m / n at which a method costs what FastV (K=2) costs at `retention`, in paper TFLOPs.

    Parameters
    ----------
    method : whatever its own retention. n : visual tokens before pruning, of `frames` layout frames. Of the two token
    counts around the target the nearer in cost is taken.

    Raises
    ------
    MethodError : the method costs more than that even when it keeps a single token.
    """
    target = paper_tflops(
        shape, visual_per_layer(shape.layers, n, [(min(FASTV_LAYER, shape.layers), budget(retention, n))])
    )

    def cost(kept: int) -> float:
        counts = replace(method, retention=kept / n).visual_per_layer(shape.layers, n, frames)
        return paper_tflops(shape, counts, method.mlp_per_layer(counts))

    return _nearest(cost, n, target, f"FastV at retention {retention:g} ({target:.3g} paper TFLOPs)") / n


def ttft_matched_retention(method: Method, prompt: Prompted, retention: float) -> float:
    """Return the retention m / n at which a method's first token costs what FastV's (K=2) does at `retention`.

    As `flops_matched_retention`, in `first_token_tflops`: with the vision tower, which most methods do not spare.
    """
    n = prompt.video.tokens
    fastv = FastV(retention=retention, layer=min(FASTV_LAYER, prompt.shape.layers - 1))
    target = first_token_tflops(fastv, prompt)

    def cost(kept: int) -> float:
        return first_token_tflops(replace(method, retention=kept / n), prompt)

    return _nearest(cost, n, target, f"FastV's first token at retention {retention:g} ({target:.3g} TFLOPs)") / n


def _nearest(cost: Callable[[int], float], n: int, target: float, reference: str) -> int:
    """Return which of 1..n tokens costs what is nearest to the target; more tokens cost more."""
    low, high = 1, n
    if cost(low) > target * (1 + 1e-9):
        raise MethodError(
            f"this method cannot cost as little as {reference}: "
            f"with one token kept it still costs {cost(low):.3g}; ask for a higher retention or match=tokens"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return min((low, high), key=lambda kept: abs(cost(kept) - target))


def match_ttft(method: Method, prompt: Prompted) -> Method:
    """Return the method with the retention whose first token costs what FastV's (K=2) does at its own."""
    if not method.active:
        return method
    return replace(method, retention=ttft_matched_retention(method, prompt, method.retention))


def match_flops(method: Method, shape: ModelShape, n: int, frames: int = 1) -> Method:
    """Return the method with the retention that costs what FastV (K=2) costs at its own; vanilla as it is."""
    if not method.active:
        return method
    return replace(method, retention=flops_matched_retention(method, shape, n, method.retention, frames))


@dataclass(frozen=True)
class PaperRow:
    """One row of the ShaRP paper's tables (arXiv 2512.05385v1): what it kept and the TFLOPs it prints."""

    table: int
    config: str
    tokens: int
    method: str
    retention: float
    printed: str


def _table(number: int, config: str, tokens: int, *rows: tuple[str, float, str]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(number, config, tokens, method, retention, printed) for method, retention, printed in rows)


# Table 1 prints retentions, Table 2 token counts of 2880 (those are exact). FrameFusion is not here.
PAPER_ROWS = (
    *_table(
        1, "llava-onevision-7b", 6272, ("vanilla", 1.0, "40.8"),
        ("fastv", 0.25, "11"), ("pdrop", 0.285, "11"), ("feather", 0.25, "11"), ("sharp", 0.282, "11"),
        ("fastv", 0.20, "9.31"), ("pdrop", 0.196, "9.31"), ("feather", 0.20, "9.31"), ("sharp", 0.235, "9.31"),
        ("fastv", 0.15, "7.66"), ("pdrop", 0.115, "7.66"), ("feather", 0.15, "7.66"), ("sharp", 0.188, "7.66"),
        ("fastv", 0.10, "6.03"), ("pdrop", 0.015, "6.03"), ("feather", 0.10, "6.03"), ("sharp", 0.140, "6.03"),
    ),
    *_table(
        2, "qwen2-vl-7b", 2880, ("vanilla", 1.0, "16.7"),
        ("fastv", 576 / 2880, "4.1"), ("pdrop", 662 / 2880, "4.1"), ("feather", 576 / 2880, "4.1"),
        ("sharp", 679 / 2880, "4.1"),
        ("fastv", 288 / 2880, "2.6"), ("pdrop", 78 / 2880, "2.6"), ("feather", 288 / 2880, "2.6"),
        ("sharp", 400 / 2880, "2.6"),
    ),
)  # fmt: skip


def paper_flops_matched(row: PaperRow) -> float | None:
    """Return the retention that costs what FastV costs in the paper's row of the same TFLOPs; None for vanilla's."""
    fastv = [other for other in PAPER_ROWS if (other.table, other.printed) == (row.table, row.printed)]
    retention = next((other.retention for other in fastv if other.method == "fastv"), None)
    if retention is None:
        return None
    return flops_matched_retention(
        make_method(row.method, row.retention), shape_named(row.config), row.tokens, retention
    )
