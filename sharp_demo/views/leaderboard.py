"""Accuracy on the paper's benchmarks against cost: what the paper prints, hollow, what was measured here, filled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

from sharp_demo import strings
from sharp_demo.pruning.registry import list_methods, method_class
from sharp_demo.views.colors import method_color
from sharp_demo.views.figures import styled


@dataclass(frozen=True)
class Point:
    """A method at one budget.

    Attributes
    ----------
    model, method, label : of the checkpoint, the registered method, and the row. source : who says so.
    average : over the benchmarks, percent. tflops : as the paper counts. first_token_ms : None where not known.
    questions : how many were asked; None: the paper does not count them.
    """

    model: str
    method: str
    label: str
    source: Literal["paper", "ours", "rehearsal"]
    average: float
    tflops: float
    first_token_ms: float | None
    questions: int | None


def load_leaderboard(assets: Path) -> list[Point]:
    """Return the stored points; empty where the file is not there."""
    path = assets / "leaderboard.json"
    return [Point(**values) for values in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def leaderboard_chart(points: Sequence[Point], model: str, against: Literal["tflops", "first_token_ms"]) -> go.Figure:
    """Return the average accuracy of one model's rows against their cost, a colour for each method."""
    figure = styled(strings.BOARD_TITLES[against], strings.BOARD_AXES[against], strings.BOARD_ACCURACY)
    chosen = [
        (point, cost) for point in points if point.model == model and (cost := getattr(point, against)) is not None
    ]
    for method in dict.fromkeys(point.method for point, _ in chosen):
        for source in ("paper", "ours", "rehearsal"):
            own = [(point, cost) for point, cost in chosen if (point.method, point.source) == (method, source)]
            if own:
                title = method_class(method).title if method in list_methods() else method
                figure.add_scatter(
                    x=[cost for _, cost in own],
                    y=[point.average for point, _ in own],
                    text=[point.label for point, _ in own],
                    mode="markers",
                    name=strings.board_series(title, source),
                    marker={
                        "color": method_color(method),
                        "size": 11,
                        "symbol": "circle-open" if source == "paper" else "circle",
                    },
                )
    return figure


def leaderboard_note(points: Sequence[Point], model: str) -> str:
    """Return what stands under the charts: who measured what, and that nobody has where that is so."""
    own = [point for point in points if point.model == model and point.source != "paper"]
    if not own:
        return strings.BOARD_EMPTY
    questions = max(point.questions or 0 for point in own)
    return strings.board_rehearsed(questions) if own[0].source == "rehearsal" else strings.board_measured(questions)
