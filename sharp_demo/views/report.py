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

from sharp_demo.records import AttentionMaps, Result
from sharp_demo.views import figures
from sharp_demo.views.colors import method_color
from sharp_demo.views.overlay import Sprite, filmstrip, kept_per_frame
from sharp_demo.views.summary import baseline_of, figures_of

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)


def comparison_dict(request: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Return the public JSON of a comparison: {"request", "results"}."""
    return {"request": dict(request), "results": [result.to_dict() for result in results]}


def render_report(
    request: Mapping[str, Any],
    results: Sequence[Result],
    clip_frames: np.ndarray | Sprite,
    attention: AttentionMaps | None = None,
) -> str:
    """Render request, answers, figures, kept tokens and charts as one self-contained HTML page.

    Parameters
    ----------
    request : `Request.to_dict()`.
    results : what each method did; may be empty when all failed.
    clip_frames : the sampled frames, uint8 [T, H, W, 3], or the sprite made of them.
    attention : per-layer maps of `engine.attention`, where they were computed.
    """
    frames = clip_frames.frames() if isinstance(clip_frames, Sprite) else clip_frames
    baseline = baseline_of(results)
    columns = [
        {
            "result": result,
            "color": method_color(result.method),
            "figures": figures_of(result, baseline),
            "strip": base64.b64encode(filmstrip(frames, result)).decode("ascii"),
            "kept": kept_per_frame(result),
            "config": json.dumps(result.config, indent=2, default=str),
        }
        for result in results
    ]
    data = json.loads(json.dumps(comparison_dict(request, results), default=str))
    return _TEMPLATES.get_template("report.html").render(
        request={**request, "video": Path(str(request.get("video", ""))).name},
        columns=columns,
        charts=[_chart(figure) for figure in report_figures(results, attention)],
        plotly_js=get_plotlyjs(),
        data={**data, "request": {**data["request"], "video": Path(str(request.get("video", ""))).name}},
    )


def report_figures(results: Sequence[Result], attention: AttentionMaps | None = None) -> list[go.Figure]:
    """Return the charts of a comparison in reading order."""
    if not results:
        return []
    charts = [figures.speedup_bars(results), figures.latency_bars(results), figures.kept_over_time(results)]
    charts += [figures.attention_per_frame(result) for result in results if "debiased" in result.scores]
    return charts + ([figures.attention_by_layer(attention)] if attention is not None else [])


def _chart(figure: go.Figure) -> str:
    # plotly escapes <, > and / in the JSON it writes into the script, so this string is safe to mark as such.
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
