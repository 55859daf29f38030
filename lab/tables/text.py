"""Markdown tables, and shares as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A share and its interval in percent points, e.g. "87.3 (84.0 to 90.5)"."""
    low, high = (f"{100 * bound:{sign}.1f}" for bound in interval)
    return f"{100 * value:{sign}.1f} ({low} to {high})"
