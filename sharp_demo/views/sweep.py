"""Where an answer flips as fewer tokens are kept: points of a sweep, its verdicts and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from sharp_demo import strings
from sharp_demo.records import Result
from sharp_demo.views.colors import method_color
from sharp_demo.views.figures import styled
from sharp_demo.views.summary import same_answer

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")


@dataclass(frozen=True)
class Point:
    """One method at one retention asked for; `same`: its whole answer is vanilla's."""

    retention: float
    kept: int
    visual: int
    answer: str
    same: bool
    probability: float | None


@dataclass(frozen=True)
class Verdict:
    """What a sweep says about one method.

    holds : the lowest retention down to which every answer so far is vanilla's. flips : the first (highest)
    retention with another answer, None when there is none. returns : a lower retention with vanilla's answer again.
    """

    holds: float
    flips: float | None
    returns: float | None


def point_of(result: Result, retention: float, baseline: Result) -> Point:
    """Return the point of one result; `retention` is the share asked for."""
    return Point(
        retention=retention,
        kept=result.tokens.kept,
        visual=result.tokens.visual,
        answer=result.answer,
        same=same_answer(result.answer, baseline.answer),
        probability=result.first_token_prob,
    )


def verdict(points: Sequence[Point]) -> Verdict:
    """Read a method's points, in any order, from the highest retention down; needs at least one."""
    ordered = sorted(points, key=lambda point: -point.retention)
    flip = next((i for i, point in enumerate(ordered) if not point.same), None)
    if flip is None:
        return Verdict(ordered[-1].retention, None, None)
    holds = ordered[flip - 1].retention if flip else 1.0
    back = next((point.retention for point in ordered[flip:] if point.same), None)
    return Verdict(holds, ordered[flip].retention, back)


def probability_by_retention(series: Sequence[tuple[str, str, Sequence[Point]]]) -> go.Figure:
    """Plot the probability of each answer's first token against the retention, many tokens to few.

    series : (label, method, points) each. A filled marker says vanilla's answer, an open cross another one.
    """
    figure = styled(strings.CHART_SWEEP, strings.CHART_SWEEP_X, strings.CHART_SWEEP_Y)
    for index, (label, method, points) in enumerate(series):
        ordered = sorted(points, key=lambda point: -point.retention)
        color = method_color(method)
        figure.add_scatter(
            x=[100 * point.retention for point in ordered],
            y=[point.probability for point in ordered],
            name=label,
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={
                # Larger below, so that methods that agree stay visible.
                "size": [8 + 4 * (len(series) - 1 - index) if point.same else 13 for point in ordered],
                "symbol": [SYMBOLS[index % len(SYMBOLS)] if point.same else "x-open" for point in ordered],
                "color": color,
                "line": {"width": 2, "color": color},
            },
            text=[strings.SAME_ANSWER if point.same else strings.ANOTHER_ANSWER for point in ordered],
            hovertemplate=strings.CHART_SWEEP_HOVER,
        )
    figure.add_scatter(
        x=[None],
        y=[None],
        name=strings.ANOTHER_ANSWER,
        mode="markers",
        marker={"symbol": "x-open", "size": 12, "color": "#888"},
    )
    ticks = [100, 50, 20, 10, 5, 2]
    figure.update_xaxes(type="log", range=[2.04, 0.24], tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    figure.update_yaxes(range=[0, 1.06], tickformat=".1f")
    return figure
