"""A comparison as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sharp_demo import strings
from sharp_demo.records import AttentionMaps, Result
from sharp_demo.views import figures
from sharp_demo.views.benchmark import Measured
from sharp_demo.views.colors import method_color
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.overlay import Sprite, filmstrip, fullest_layout, kept_per_frame, mark_of
from sharp_demo.views.summary import answers_compare, baseline_of, differing_words, figures_of, same_answer

CONFIG = {"displaylogo": False, "responsive": True}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)


def comparison_dict(
    request: Mapping[str, Any],
    results: Sequence[Result],
    failed: Sequence[Mapping[str, str]] = (),
    *,
    stored: bool = False,
) -> dict[str, Any]:
    """Return the public JSON of a comparison: {"request", "results", "failed"}, and "stored" for one made before."""
    document = {
        "request": dict(request),
        "results": [result.to_dict() for result in results],
        "failed": [dict(failure) for failure in failed],
    }
    return {**document, "stored": True} if stored else document


def render_report(
    request: Mapping[str, Any],
    results: Sequence[Result],
    clip_frames: np.ndarray | Sprite,
    attention: AttentionMaps | None = None,
    evidence: Sequence[Evidence] = (),
    failed: Sequence[Mapping[str, str]] = (),
    *,
    stored: bool = False,
    benchmark: Sequence[Measured] = (),
) -> str:
    """Render request, answers, figures, kept tokens and charts as one self-contained HTML page.

    Parameters
    ----------
    request : `Request.to_dict()`.
    results : what each method did; may be empty when all failed.
    clip_frames : the sampled frames, uint8 [T, H, W, 3], or the sprite made of them.
    attention : per-layer maps of `engine.attention`, where they were computed.
    evidence : where the clip holds the answer, where that is known.
    failed : label, kind and message of methods that failed or were never run.
    stored : whether the results were computed earlier.
    benchmark : the stored accuracies, for the plot against the share of tokens kept.
    """
    frames = clip_frames.frames() if isinstance(clip_frames, Sprite) else clip_frames
    baseline = baseline_of(results)
    columns = [
        {
            "result": result,
            "color": method_color(result.method),
            "figures": figures_of(result, baseline),
            "strip": base64.b64encode(filmstrip(frames, result, whole=fullest_layout(results))).decode("ascii"),
            "kept_line": strings.REPORT_PAGE["kept_line"].format(
                label=result.label,
                kept=", ".join(map(str, kept_per_frame(result))),
                total=result.layout.rows * result.layout.cols,
            ),
            **_beside(result, baseline),
            "config": json.dumps(result.config, indent=2, default=str),
        }
        for result in results
    ]
    data = json.loads(json.dumps(comparison_dict(request, results, failed, stored=stored), default=str))
    video = Path(str(request.get("video", ""))).name
    page = _TEMPLATES.get_template("report.html").render(
        words=strings.REPORT_PAGE,
        sure=strings.sure,
        subtitle=strings.report_subtitle(video, request, results[0] if results else None, stored=stored),
        request=request,
        columns=columns,
        failed=failed,
        marks=_legend(results),
        charts=[_chart(figure) for figure in report_figures(results, attention, evidence, benchmark)],
        layers=_layers(attention, evidence) if attention is not None else None,
        plotly_js=get_plotlyjs(),
        data={**data, "request": {**data["request"], "video": video}},
    )
    return page.replace("\0", "\ufffd")  # HTML cannot hold it: a browser would drop it without a trace


def _beside(result: Result, baseline: Result | None) -> dict[str, Any]:
    if baseline is None or not answers_compare(result, baseline):
        return {"words": [(result.answer, False)], "same": None}
    return {
        "words": differing_words(result.answer, baseline.answer),
        "same": same_answer(result.answer, baseline.answer),
    }


def report_figures(
    results: Sequence[Result],
    attention: AttentionMaps | None = None,
    evidence: Sequence[Evidence] = (),
    benchmark: Sequence[Measured] = (),
) -> list[go.Figure]:
    """Return the charts of a comparison in reading order, but for the one with a slider over the layers."""
    if not results:
        return []
    charts = [figures.speedup_bars(results), figures.latency_bars(results), figures.kept_over_time(results, evidence)]
    charts.append(figures.kept_by_layer(results))
    charts += [figures.attention_per_frame(result, evidence) for result in results if "debiased" in result.scores]
    if attention is not None:
        charts.append(figures.attention_map(attention, evidence))
    if benchmark:
        charts.append(figures.accuracy_by_retention(benchmark, results))
    return charts


def _layers(maps: AttentionMaps, evidence: Sequence[Evidence]) -> dict[str, Any]:
    """Return the chart of one layer's attention and what its slider needs to show another's."""
    last = len(maps.raw) - 1
    shown = min(figures.FIRST_LAYER_SHOWN, last)
    titles = [strings.CHART_LAYERS.format(layer=layer, penalty=maps.penalty) for layer in range(last + 1)]
    lines = [list(figures.attention_lines(maps, layer).values()) for layer in range(last + 1)]
    chart = figures.attention_by_layer(maps, evidence, shown)
    return {"chart": _chart(chart, "layers"), "last": last, "shown": shown, "titles": titles, "lines": lines}


def _legend(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return mark and name of every role that a kept token has in these results, and of tokens merged into others."""
    roles = dict.fromkeys(role for result in results for frame in result.role for role in frame)
    named = [(mark_of(role), strings.THEATRE["roles"].get(role, role)) for role in roles if mark_of(role)]
    merged = any(result.merged_into for result in results)
    return [*named, ("╱", strings.THEATRE["roles"]["absorbed"])] if merged else named


def _chart(figure: go.Figure, name: str | None = None) -> str:
    # plotly escapes <, > and / in the JSON it writes into the script, so this string is safe to mark as such.
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG)
