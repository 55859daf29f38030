"""Plotly charts of a comparison. Basic traces only: the page's plotly.js is older than the Python package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from sharp_demo import strings
from sharp_demo.records import AttentionMaps, Layout, Ratio, Result
from sharp_demo.views.benchmark import Measured
from sharp_demo.views.colors import SCORE_COLORS, SHARED_COLORS, STAGE_RAMP, method_color
from sharp_demo.views.evidence import Evidence, evidence_frames
from sharp_demo.views.overlay import kept_share, scores_by_frame
from sharp_demo.views.summary import baseline_of, comparable, flops_ratio

TEXT = "#888"
GRID = "rgba(128,128,128,.28)"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
FIGURES = ("decode_video", "vision", "vision_scores", "prefill", "decode", "bias_setup")


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
            "margin": {"l": 10, "r": 12, "t": 44, "b": 10},
            "xaxis": {**axis, "title": {"text": x}},
            "yaxis": {**axis, "title": {"text": y}},
            "legend": {"orientation": "h", "x": 0, "y": -0.28, "yanchor": "top", "font": {"size": 11}},
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


def _mark_evidence(figure: go.Figure, evidence: Sequence[Evidence], layout: Layout) -> None:
    """Shade the stretches that hold the evidence; all of the clip is no mark."""
    if not evidence or len(evidence_frames(evidence, layout.timestamps)) == layout.frames:
        return
    for one in evidence:
        figure.add_shape(
            type="rect",
            x0=one.start,
            x1=one.end,
            y0=0,
            y1=1,
            yref="paper",
            fillcolor="rgba(255,196,0,.28)",
            line={"width": 0},
            layer="below",
        )
    figure.add_scatter(
        x=[None],
        y=[None],
        name=strings.EVIDENCE,
        mode="markers",
        marker={"symbol": "square", "size": 12, "color": "rgba(255,196,0,.5)"},
    )


def _score_lines(layout: Layout, scores: Mapping[str, Sequence[float]]) -> list[go.Scatter]:
    """Return one line per score kind over time; `scores` hold one value per frame."""
    return [
        go.Scatter(
            x=list(layout.timestamps),
            y=list(values),
            name=strings.SCORES.get(kind, kind),
            mode="lines+markers",
            line={"color": SCORE_COLORS.get(kind, TEXT), "dash": "dot" if kind == "bias" else "solid", "width": 2},
            marker={"size": 6, "symbol": {"raw": "circle", "bias": "x"}.get(kind, "diamond")},
        )
        for kind, values in scores.items()
    ]


def attention_per_frame(result: Result, evidence: Sequence[Evidence] = ()) -> go.Figure:
    """Plot a method's scores summed per frame (raw, bias, debiased where it has them), cuts dotted, evidence shaded."""
    figure = styled(strings.CHART_ATTENTION.format(label=result.label), strings.TIME, strings.CHART_ATTENTION_Y)
    figure.add_traces(
        _score_lines(
            result.layout,
            {kind: scores_by_frame(values, result.layout).tolist() for kind, values in result.scores.items()},
        )
    )
    _mark_cuts(figure, result.layout, result.segments)
    _mark_evidence(figure, evidence, result.layout)
    return figure


FIRST_LAYER_SHOWN = 1  # ShaRP's default cut is before it


def attention_by_layer(
    maps: AttentionMaps, evidence: Sequence[Evidence] = (), layer: int = FIRST_LAYER_SHOWN
) -> go.Figure:
    """Plot raw, bias and debiased attention per frame in one decoder layer; its first three traces are the lines."""
    layer = max(0, min(layer, len(maps.raw) - 1))
    title = strings.CHART_LAYERS.format(layer=layer, penalty=maps.penalty)
    figure = styled(title, strings.TIME, strings.CHART_LAYERS_Y, 360)
    figure.add_traces(_score_lines(maps.layout, attention_lines(maps, layer)))
    _mark_cuts(figure, maps.layout, maps.segments)
    _mark_evidence(figure, evidence, maps.layout)
    return figure


def attention_lines(maps: AttentionMaps, layer: int) -> dict[str, list[float]]:
    """Return one layer's attention per frame: raw, bias and debiased."""
    return {"raw": maps.raw[layer], "bias": maps.bias[layer], "debiased": maps.debiased[layer]}


def attention_map(maps: AttentionMaps, evidence: Sequence[Evidence] = ()) -> go.Figure:
    """Draw layer by frame what attention each frame gets, before and after debiasing (the paper's Figure 2).

    Every layer is divided by its own attention to the whole video, so that layers that look at the text still show.
    """
    figure = styled(strings.CHART_MAP.format(penalty=maps.penalty), strings.TIME, strings.LAYER, 360)
    totals = [sum(row) or 1.0 for row in maps.raw]
    shares = {
        "raw": [[value / total for value in row] for row, total in zip(maps.raw, totals, strict=True)],
        "debiased": [[value / total for value in row] for row, total in zip(maps.debiased, totals, strict=True)],
    }
    for number, (kind, rows) in enumerate(shares.items(), 1):
        figure.add_heatmap(
            x=list(maps.layout.timestamps),
            y=[str(layer) for layer in range(len(rows))],
            z=rows,
            name=strings.SCORES[kind],
            coloraxis="coloraxis",
            xaxis=f"x{number if number > 1 else ''}",
            yaxis="y",
            hovertemplate=f"{strings.CHART_MAP_HOVER}<extra>{strings.SCORES[kind]}</extra>",
        )
    axis = {"title": {"text": strings.TIME}, "automargin": True, "showgrid": False}
    figure.update_layout(
        xaxis={**axis, "domain": [0, 0.48]},
        xaxis2={**axis, "domain": [0.52, 1], "anchor": "y"},
        yaxis={"type": "category", "showgrid": False},
        margin={"t": 64},  # title, then the names of the two maps
        coloraxis={"colorscale": "Viridis", "colorbar": {"thickness": 10, "tickformat": ".0%"}},
    )
    for number, kind in enumerate(shares):
        figure.add_annotation(
            text=strings.SCORES[kind],
            x=0.24 + 0.52 * number,
            y=1.02,
            xref="paper",
            yref="paper",
            showarrow=False,
            xanchor="center",
            yanchor="bottom",
        )
    found = evidence_frames(evidence, maps.layout.timestamps)
    for reference in ("x", "x2") if len(found) < maps.layout.frames else ():
        for one in evidence:
            figure.add_shape(
                type="rect",
                x0=one.start,
                x1=one.end,
                xref=reference,
                y0=0,
                y1=1,
                yref="paper",
                line={"color": "#ffc400", "width": 2, "dash": "dash"},
            )
    return figure


class Part(NamedTuple):
    """One piece of a total: `figure` is the entry of `FIGURES` it belongs to, or "other"."""

    name: str
    ms: float
    shared: bool
    figure: str


def stage_breakdown(result: Result) -> list[Part]:
    """Split a result's total into parts that sum to `latency_ms.total`; what was paid once comes on top of it.

    A stage that is `part_of` a figure is taken out of it; what it leaves is shown under the figure's own name.
    """
    latency = result.latency_ms
    stages = latency.stages
    parts: list[Part] = []
    for figure in FIGURES:
        inner = [
            Part(name.replace("_", " "), stage.ms, stage.shared, figure)
            for name, stage in stages.items()
            if stage.part_of == figure
        ]
        shared = stages[figure].shared if figure in stages else figure in ("decode_video", "vision")
        whole = stages[figure].ms if figure in stages else getattr(latency, figure, 0.0)
        rest = whole - sum(part.ms for part in inner)
        parts += inner
        if rest > 1e-9:
            name = strings.STAGES.get(figure, strings.REST.format(name=figure) if inner else figure)
            parts.append(Part(name, rest, shared, figure))
    other = latency.total - sum(part.ms for part in parts if part.figure != "bias_setup")
    return [*parts, Part(strings.OTHER, other, False, "other")] if other > 1e-6 else parts


def latency_bars(results: Sequence[Result]) -> go.Figure:
    """Stack every method's stages up to its total as if it had run alone; stages done once for all are grey."""
    figure = styled(strings.CHART_LATENCY, strings.CHART_LATENCY_X, "")
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
            name=strings.SHARED.format(name=part.name) if part.shared else part.name,
            orientation="h",
            marker={
                "color": SHARED_COLORS[part.figure == "vision"]
                if part.shared
                else _ramp(own.index(part.name), len(own)),
                "line": {"width": 0.5, "color": "rgba(128,128,128,.6)"},
            },
            hovertemplate=strings.CHART_LATENCY_HOVER,
        )
    figure.update_layout(
        barmode="stack",
        yaxis={"autorange": "reversed"},
        legend={"traceorder": "normal"},
        height=_tall(results),
    )
    return figure


def _tall(results: Sequence[Result]) -> int:
    return 250 + 40 * max(len(results), 2)


def _ramp(index: int, count: int) -> str:
    return STAGE_RAMP[round(index * (len(STAGE_RAMP) - 1) / max(count - 1, 1))]


def speedup_bars(results: Sequence[Result]) -> go.Figure:
    """Put the measured prefill speed-up next to what exact and paper FLOPs promise; needs a vanilla result."""
    figure = styled(strings.CHART_SPEED, "", strings.CHART_SPEED_Y, _tall(results))
    baseline = baseline_of(results)
    if baseline is None:
        return _with_note(figure, strings.CHART_NO_VANILLA)
    pruned = [result for result in results if result.method != "vanilla" and comparable(result, baseline)]
    if not pruned:
        return _with_note(figure, strings.CHART_NO_PRUNING)
    labels = [result.label for result in pruned]
    colors = [method_color(result.method) for result in pruned]
    bars: tuple[tuple[list[float | None], list[tuple[float, float]] | None, str], ...] = (
        (*_measured([r.speedup.first_token if r.speedup else None for r in pruned]), "."),
        (*_measured([r.speedup.prefill if r.speedup else None for r in pruned]), ""),
        ([flops_ratio(r, baseline) for r in pruned], None, "/"),
        ([flops_ratio(r, baseline, "paper") for r in pruned], None, "x"),
    )
    for name, (values, ranges, pattern) in zip(strings.CHART_SPEED_BARS, bars, strict=True):
        figure.add_bar(
            x=labels,
            y=values,
            name=name,
            offsetgroup=name,
            marker={"color": colors, "pattern": {"shape": pattern, "fgcolor": "rgba(255,255,255,.75)", "size": 6}},
            error_y=None if ranges is None else _error_bars(values, ranges),
            text=[strings.CHART_NOISY if value is None else f"{value:.2f}×" for value in values],
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


def _measured(ratios: Sequence[Ratio | None]) -> tuple[list[float | None], list[tuple[float, float]]]:
    """Return the ratios' values and their ranges; without a value there is no bar."""
    known = [ratio or Ratio(None) for ratio in ratios]
    return [ratio.value for ratio in known], [(ratio.low or 0.0, ratio.high or 0.0) for ratio in known]


def _error_bars(values: Sequence[float | None], ranges: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "symmetric": False,
        "array": [high - value if value else 0 for value, (_, high) in zip(values, ranges, strict=True)],
        "arrayminus": [value - low if value else 0 for value, (low, _) in zip(values, ranges, strict=True)],
        "thickness": 1,
        "width": 3,
        "color": TEXT,
    }


def kept_over_time(results: Sequence[Result], evidence: Sequence[Evidence] = ()) -> go.Figure:
    """Plot the share of tokens each method kept in every frame."""
    figure = styled(strings.CHART_KEPT, strings.TIME, strings.CHART_KEPT_Y)
    for index, result in enumerate(results):
        figure.add_scatter(
            x=list(result.layout.timestamps),
            y=kept_share(result),
            name=result.label,
            mode="lines+markers",
            line={"color": method_color(result.method), "width": 2},
            marker={"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        )
    for result in results:
        if result.segments:
            _mark_cuts(figure, result.layout, result.segments)
            break
    if results:
        _mark_evidence(figure, evidence, results[0].layout)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return figure


def kept_by_layer(results: Sequence[Result]) -> go.Figure:
    """Plot the share of the visual tokens that entered each decoder layer; layer 0 shows what came in before it."""
    figure = styled(strings.CHART_DEPTH, strings.LAYER, strings.CHART_DEPTH_Y)
    for index, result in enumerate(results):
        figure.add_scatter(
            x=list(range(len(result.visual_per_layer))),
            y=[count / result.tokens.visual for count in result.visual_per_layer],
            name=result.label,
            mode="lines+markers",
            line={"color": method_color(result.method), "width": 2, "shape": "hv"},
            marker={"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        )
    figure.update_xaxes(dtick=1 if not results or len(results[0].visual_per_layer) <= 12 else 4)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return figure


def accuracy_by_retention(stored: Sequence[Measured], results: Sequence[Result]) -> go.Figure:
    """Plot the stored accuracy of the run's methods against the share kept, and mark the share this run kept."""
    figure = styled(strings.CHART_ACCURACY, strings.CHART_ACCURACY_X, strings.CHART_ACCURACY_Y)
    rows = [row for row in stored if results and row.model == results[0].model and row.match == "tokens"]
    whole = next((row for row in rows if row.method == "vanilla"), None)
    if whole is None:
        return _with_note(figure, strings.CHART_NO_ACCURACY)
    for number, result in enumerate(results):
        curve = sorted((row for row in rows if row.method == result.method and row.retention < 1), key=_share)
        if not curve:
            continue
        curve.append(whole)
        low, high = zip(*(row.ci95 for row in curve), strict=True)
        accuracy = [row.accuracy for row in curve]
        figure.add_scatter(
            x=[row.kept_share for row in curve],
            y=accuracy,
            error_y={
                "array": [top - mean for top, mean in zip(high, accuracy, strict=True)],
                "arrayminus": [mean - bottom for bottom, mean in zip(low, accuracy, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            name=curve[0].label,
            mode="lines+markers",
            line={"color": method_color(result.method), "width": 2},
            marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
        )
        share = result.tokens.retention
        figure.add_scatter(
            x=[share],
            y=[float(np.interp(share, [row.kept_share for row in curve], accuracy))],
            name=strings.CHART_ACCURACY_RUN.format(label=result.label),
            mode="markers",
            showlegend=False,
            marker={"size": 17, "symbol": "circle-open", "color": method_color(result.method), "line": {"width": 3}},
        )
    figure.update_xaxes(type="log", tickformat=".0%", tickvals=[0.02, 0.05, 0.1, 0.2, 0.5, 1])
    figure.update_yaxes(tickformat=".0%")
    return figure


def _share(row: Measured) -> float:
    return row.kept_share


def _with_note(figure: go.Figure, text: str) -> go.Figure:
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure
