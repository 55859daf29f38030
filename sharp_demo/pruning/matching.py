"""Equal cost: the retention at which a method costs what FastV costs, and the paper's own tables matched so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sharp_demo.cost import ModelShape, paper_tflops, shape_named
from sharp_demo.errors import MethodError
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import make_method
from sharp_demo.pruning.schedule import budget, visual_per_layer

FASTV_LAYER = 2  # the cost every FLOPs-matched comparison refers to: FastV with two full layers


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

    low, high = 1, n
    if cost(low) > target * (1 + 1e-9):
        raise MethodError(
            f"this method cannot cost as little as FastV at retention {retention:g} ({target:.3g} paper TFLOPs): "
            f"with one token kept it still costs {cost(low):.3g}; ask for a higher retention or match=tokens"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return min((low, high), key=lambda kept: abs(cost(kept) - target)) / n


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
