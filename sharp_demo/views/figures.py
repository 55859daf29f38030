"""Plotly charts of a comparison. Basic traces only: the page's plotly.js is older than the Python package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from sharp_demo.records import AttentionMaps, Layout, Result, Stage
from sharp_demo.views.colors import SCORE_COLORS, SHARED_COLORS, STAGE_RAMP, method_color
from sharp_demo.views.overlay import kept_share, scores_by_frame
from sharp_demo.views.summary import baseline_of, flops_ratio, prefill_speedup

TEXT = "#888"
GRID = "rgba(128,128,128,.28)"
FIGURES = ("decode_video", "vision", "bias_setup", "prefill", "decode")
STAGE_LABELS = {"decode_video": "decode video", "vision": "vision encoder", "bias_setup": "bias set-up (first use)"}
SCORE_LABELS = {"raw": "raw attention", "bias": "position bias (black video)", "debiased": "debiased"}


def styled(title: str, x: str, y: str, height: int = 320) -> go.Figure:
    """Return an empty figure that reads on light and dark pages alike."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    return go.Figure(
        layout={
            "title": {"text": title, "font": {"size": 14}, "x": 0.02, "yref": "container", "y": 0.97},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": TEXT, "size": 12},
            "height": height,
            "margin": {"l": 10, "r": 12, "t": 84, "b": 10},
            "xaxis": {**axis, "title": {"text": x}},
            "yaxis": {**axis, "title": {"text": y}},
            "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}},
            "hoverlabel": {"font": {"size": 12}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": TEXT},
        }
    )


def _cut_times(layout: Layout, segments: Sequence[Sequence[int]]) -> list[float]:
    """Return the time of each segment boundary, halfway between the frames it separates."""
    times = layout.timestamps
    return [(times[end - 1] + times[end]) / 2 for _, end in segments if end < layout.frames]


def _mark_cuts(figure: go.Figure, layout: Layout, segments: Sequence[Sequence[int]]) -> None:
    for time in _cut_times(layout, segments):
        figure.add_shape(
            type="line", x0=time, x1=time, y0=0, y1=1, yref="paper", line={"color": TEXT, "width": 1, "dash": "dot"}
        )


def _score_lines(layout: Layout, scores: Mapping[str, Sequence[float]], visible: bool = True) -> list[go.Scatter]:
    """Return one line per score kind over time; `scores` hold one value per frame."""
    return [
        go.Scatter(
            x=list(layout.timestamps),
            y=list(values),
            name=SCORE_LABELS.get(kind, kind),
            mode="lines+markers",
            visible=visible,
            line={"color": SCORE_COLORS.get(kind, TEXT), "dash": "dot" if kind == "bias" else "solid", "width": 2},
            marker={"size": 6, "symbol": {"raw": "circle", "bias": "x"}.get(kind, "diamond")},
        )
        for kind, values in scores.items()
    ]


def attention_per_frame(result: Result) -> go.Figure:
    """Plot a method's scores summed per frame (raw, bias, debiased where it has them), segment cuts dotted."""
    figure = styled(f"{result.label}: attention per frame", "time, s", "sum over the frame's tokens")
    figure.add_traces(
        _score_lines(
            result.layout,
            {kind: scores_by_frame(values, result.layout).tolist() for kind, values in result.scores.items()},
        )
    )
    _mark_cuts(figure, result.layout, result.segments)
    return figure


def attention_by_layer(maps: AttentionMaps) -> go.Figure:
    """Plot raw, bias and debiased attention per frame with a slider over the decoder layers."""
    figure = styled(f"Attention per frame and layer (λ = {maps.penalty:g})", "time, s", "share of attention", 360)
    layers = len(maps.raw)
    for layer in range(layers):
        kinds = {"raw": maps.raw[layer], "bias": maps.bias[layer], "debiased": maps.debiased[layer]}
        figure.add_traces(_score_lines(maps.layout, kinds, visible=layer == 0))
    _mark_cuts(figure, maps.layout, maps.segments)
    steps = [
        {
            "label": str(layer),
            "method": "restyle",
            "args": [{"visible": [shown == layer for shown in range(layers) for _ in range(3)]}],
        }
        for layer in range(layers)
    ]
    figure.update_layout(
        sliders=[{"active": 0, "steps": steps, "currentvalue": {"prefix": "decoder layer "}, "pad": {"t": 40}}]
    )
    return figure


class Part(NamedTuple):
    """One piece of a total: `figure` is the entry of `FIGURES` it belongs to, or "other"."""

    name: str
    ms: float
    shared: bool
    figure: str


def stage_breakdown(result: Result) -> list[Part]:
    """Split a result's total into parts that sum to `latency_ms["total"]`.

    A stage that is `part_of` a figure is taken out of it; what it leaves is shown under the figure's own name.
    """
    latency = result.latency_ms
    stages: dict[str, Stage] = {name: _as_stage(stage) for name, stage in latency.get("stages", {}).items()}
    parts: list[Part] = []
    for figure in FIGURES:
        inner = [
            Part(name.replace("_", " "), stage.ms, stage.shared, figure)
            for name, stage in stages.items()
            if stage.part_of == figure
        ]
        shared = stages[figure].shared if figure in stages else figure in ("decode_video", "vision")
        rest = latency.get(figure, 0.0) - sum(part.ms for part in inner)
        parts += inner
        if rest > 1e-9:
            name = STAGE_LABELS.get(figure, f"{figure}, other" if inner else figure)
            parts.append(Part(name, rest, shared, figure))
    other = latency["total"] - sum(part.ms for part in parts)
    return [*parts, Part("other", other, False, "other")] if other > 1e-6 else parts


def _as_stage(stage: Stage | Mapping[str, Any]) -> Stage:
    return stage if isinstance(stage, Stage) else Stage(**stage)


def latency_bars(results: Sequence[Result]) -> go.Figure:
    """Stack every method's stages up to its total as if it had run alone; stages done once for all are grey."""
    figure = styled("Time by stage, total as if run alone", "ms", "")
    labels = [result.label for result in results]
    table: dict[tuple[str, str], float] = {}
    seen: dict[str, Part] = {}
    for result in results:
        for part in stage_breakdown(result):
            table[result.label, part.name] = part.ms
            seen.setdefault(part.name, part)
    order = sorted(seen.values(), key=lambda part: (*FIGURES, "other").index(part.figure))
    own = [part.name for part in order if not part.shared]
    for part in order:
        figure.add_bar(
            y=labels,
            x=[table.get((label, part.name), 0.0) for label in labels],
            name=f"{part.name} (shared)" if part.shared else part.name,
            orientation="h",
            marker={
                "color": SHARED_COLORS[part.figure == "vision"]
                if part.shared
                else _ramp(own.index(part.name), len(own)),
                "line": {"width": 0.5, "color": "rgba(128,128,128,.6)"},
            },
            hovertemplate="%{y}: %{x:.1f} ms",
        )
    figure.update_layout(
        barmode="stack",
        yaxis={"autorange": "reversed"},
        legend={"y": -0.28, "yanchor": "top", "traceorder": "normal"},
        margin={"t": 40},
        height=_tall(results),
    )
    return figure


def _tall(results: Sequence[Result]) -> int:
    return 250 + 40 * max(len(results), 2)


def _ramp(index: int, count: int) -> str:
    return STAGE_RAMP[round(index * (len(STAGE_RAMP) - 1) / max(count - 1, 1))]


def speedup_bars(results: Sequence[Result]) -> go.Figure:
    """Put the measured prefill speed-up beside what exact and paper FLOPs promise; needs a vanilla result."""
    figure = styled("Speed-up and FLOPs ratio (vanilla = 1)", "", "times", _tall(results))
    baseline = baseline_of(results)
    if baseline is None:
        return _with_note(figure, "Run vanilla too: the ratios are measured against it.")
    pruned = [result for result in results if result.method != "vanilla"]
    if not pruned:
        return _with_note(figure, "Choose a pruning method to compare with vanilla.")
    labels = [result.label for result in pruned]
    colors = [method_color(result.method) for result in pruned]
    bars = (
        ("prefill speed-up, measured", [prefill_speedup(r, baseline) for r in pruned], ""),
        ("FLOPs ratio, exact", [flops_ratio(r, baseline) for r in pruned], "/"),
        ("FLOPs ratio, paper formula", [flops_ratio(r, baseline, "paper") for r in pruned], "x"),
    )
    for name, values, pattern in bars:
        figure.add_bar(
            x=labels,
            y=values,
            name=name,
            offsetgroup=name,
            marker={"color": colors, "pattern": {"shape": pattern, "fgcolor": "rgba(255,255,255,.75)", "size": 6}},
            text=[f"{value:.2f}×" for value in values],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
        )
        # A legend entry of its own: the bars carry the methods' colours, so only the pattern tells them apart.
        figure.add_bar(
            x=[None],
            y=[None],
            name=name,
            marker={"color": TEXT, "pattern": {"shape": pattern, "fgcolor": "#fff", "size": 6}},
            offsetgroup=name,
        )
    figure.add_shape(
        type="line", x0=0, x1=1, xref="paper", y0=1, y1=1, line={"color": TEXT, "width": 1, "dash": "dash"}
    )
    figure.update_layout(barmode="group")
    return figure


def kept_over_time(results: Sequence[Result]) -> go.Figure:
    """Plot the share of tokens each method kept in every frame."""
    figure = styled("Tokens kept per frame", "time, s", "share kept")
    for index, result in enumerate(results):
        figure.add_scatter(
            x=list(result.layout.timestamps),
            y=kept_share(result),
            name=result.label,
            mode="lines+markers",
            line={"color": method_color(result.method), "width": 2},
            marker={"size": 7, "symbol": ("circle", "square", "diamond", "triangle-up", "x", "star")[index % 6]},
        )
    for result in results:
        if result.segments:
            _mark_cuts(figure, result.layout, result.segments)
            break
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return figure


def _with_note(figure: go.Figure, text: str) -> go.Figure:
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure
