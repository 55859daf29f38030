"""The documents of `bench prefill --scale` as Markdown, and as a plot.

The plot is written by hand as SVG: plotly writes a static picture only through kaleido, which starts a browser, and
matplotlib would be one more dependency for this one picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lab.tables.names import PLAIN, label
from lab.tables.speed import about, megabytes, milliseconds, ratio_text
from lab.tables.text import table
from sharp_demo.records import Ratio

Document = dict[str, Any]
Point = tuple[float, float]

COLORS = ("#4269d0", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e", "#efb118", "#6cc5b0", "#ff8ab7")
MEASURES = {
    "prefill": ("Prefill", "ms", lambda result: result["prefill_ms"]["median"]),
    "cpu_time": ("Prefill, CPU time", "ms", lambda result: (result["cpu_time_ms"] or {}).get("median")),
    "beside_forward": ("Everything but the forward pass", "ms", lambda result: result["beside_forward"]["ms"] or None),
    "added_memory": ("Memory added by prefill and decode", "MB", lambda result: _mega(result["added_bytes"])),
    "kv": ("KV cache", "MB", lambda result: _mega(result["kv_bytes"])),
}


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def series(runs: Sequence[Document], measure: str) -> dict[str, list[Point]]:
    """For each case but the plain model the points (visual tokens, value) of one measure."""
    read = MEASURES[measure][2]
    lines: dict[str, list[Point]] = {}
    for run in runs:
        for result in run["results"]:
            value = None if result["method"] == PLAIN else read(result)
            if value is not None and value > 0:
                lines.setdefault(label(result, run), []).append((run["setup"]["visual_tokens"], value))
    return lines


def markdown(document: Document, title: str = "Cost by length of the video", level: int = 1) -> str:
    """The sweep as a Markdown page: one table per measure, with exponents."""
    runs = document["runs"]
    tokens = [run["setup"]["visual_tokens"] for run in runs]
    marks = "#" * level
    parts = [
        f"{marks} {title}",
        "",
        about(runs[0]).replace(f"{tokens[0]} visual tokens", "visual tokens as below, the first time", 1),
        "",
    ]
    for name, (heading, unit, _) in MEASURES.items():
        lines = series(runs, name)
        if not lines:
            continue
        rows = []
        for case, points in lines.items():
            values, slope = dict(points), document["fits"][name].get(case)
            cells = ("" if n not in values else format_value(values[n], unit) for n in tokens)
            rows.append([case, *cells, "" if slope is None else f"{slope:.2f}"])
        header = [heading, *(f"n = {n:,}" for n in tokens), "exponent"]
        parts += [f"{marks}# {heading}, {unit}", "", table(header, rows), ""]
    rows = [[case, *(ratios.get(n, "") for n in tokens)] for case, ratios in _speedups(runs).items()]
    parts += [f"{marks}# Speed-up", "", table(["", *(f"n = {n:,}" for n in tokens)], rows), ""]
    return "\n".join(parts).rstrip() + "\n"


def _speedups(runs: Sequence[Document]) -> dict[str, dict[int, str]]:
    """Per pruned case and length the measured speed-up and, behind it, the exact FLOPs ratio."""
    cells: dict[str, dict[int, str]] = {}
    for run in runs:
        for result in run["results"]:
            if result["method"] not in (PLAIN, "vanilla"):
                text = f"{ratio_text(Ratio(**result['speedup']))}, FLOPs {result['flops']['ratio']:.2f}x"
                cells.setdefault(label(result, run), {})[run["setup"]["visual_tokens"]] = text
    return cells


def format_value(value: float, unit: str) -> str:
    return milliseconds(value) if unit == "ms" else megabytes(value * 1e6)


# -- plot ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A log-log panel of the plot: its place in pixels and the ranges of its axes."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, n: float, value: float) -> tuple[float, float]:
        across, up = (math.log(v / low) / math.log(high / low) for v, (low, high) in ((n, self.x), (value, self.y)))
        return self.left + across * self.width, self.top + (1 - up) * self.height


def svg(document: Document, measures: Sequence[str] = ()) -> str:
    """Log-log lines of time and memory over visual tokens, with their exponents; a static picture.

    Time is CPU time where that is known: it depends least on what else the machine does.
    """
    runs = document["runs"]
    measures = measures or ("cpu_time" if series(runs, "cpu_time") else "prefill", "added_memory")
    drawn = [name for name in measures if len(_lengths(series(runs, name))) > 1]
    width, height = 460, 360
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * max(1, len(drawn))} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width * max(1, len(drawn))}" height="{height}" fill="white"/>',
    ]
    for number, name in enumerate(drawn):
        parts += _panel(series(runs, name), document["fits"][name], name, number * width, width, height)
    return "\n".join([*parts, "</svg>", ""])


def _lengths(lines: dict[str, list[Point]]) -> list[float]:
    """The visual tokens at which any line has a point, ascending."""
    return sorted({n for points in lines.values() for n, _ in points})


def _panel(
    lines: dict[str, list[Point]], slopes: dict[str, float | None], name: str, offset: int, width: int, height: int
) -> list[str]:
    heading, unit, _ = MEASURES[name]
    tokens = _lengths(lines)
    values = [value for points in lines.values() for _, value in points]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.01))
    panel = Panel(offset + 64, 34, width - 84, height - 84, (tokens[0], tokens[-1]), (low, high))
    bottom = panel.top + panel.height
    parts = [f'<text x="{panel.left}" y="18" font-size="13">{escape(heading)}, {unit}</text>']
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        _, y = panel.at(tokens[0], 10.0**power)
        parts.append(f'<path d="M{panel.left} {y:.1f}h{panel.width}" stroke="#ddd"/>')
        parts.append(f'<text x="{panel.left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    for n in tokens:
        x, _ = panel.at(n, low)
        parts.append(f'<path d="M{x:.1f} {panel.top}v{panel.height}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{n:,}</text>')
    middle = panel.left + panel.width / 2
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">visual tokens n</text>')
    for number, (case, points) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        places = [panel.at(n, value) for n, value in points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        slope = slopes.get(case)
        text = escape(case) + ("" if slope is None else f": n^{slope:.2f}")
        parts.append(f'<text x="{panel.left + 8}" y="{panel.top + 14 + 15 * number}" fill="{color}">{text}</text>')
    return parts
