"""Sweep: at which share of kept tokens does the answer flip?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.errors import MethodError
from sharp_demo.page.board import Board
from sharp_demo.page.inputs import Values
from sharp_demo.page.runs import Mode, Runs, Updates
from sharp_demo.page.tabs.parts import data_table, mode_buttons, open_cell, status_line
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import MethodSpec, Request
from sharp_demo.views.colors import method_color
from sharp_demo.views.sweep import Point, point_of, probability_by_retention, verdict

STEPS = {
    "fine": (1.0, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02),
    "coarse": (1.0, 0.5, 0.2, 0.1, 0.05, 0.02),
}


def sweep_request(request: Request, steps: Sequence[float]) -> Request:
    """Return one request that holds vanilla and every chosen method at every step below 100 %.

    At 100 % every method takes itself out, so vanilla's run is theirs. Raises MethodError without a method to prune.
    """
    pruning = [spec for spec in request.methods if spec.name != "vanilla"]
    if not pruning:
        raise MethodError(strings.NO_PRUNING)
    specs = [MethodSpec("vanilla", {}, method_class("vanilla").title)]
    for step in sorted((step for step in steps if step < 1), reverse=True):
        specs += [replace(spec, label=strings.at_share(spec.title, step), retention=step) for spec in pruning]
    return replace(request, methods=tuple(specs), timing_s=0)


class Sweep(Mode):
    """The table and the plot of one sweep; lays the tab out in the current layout."""

    name = "sweep"

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        gr.Markdown(strings.SWEEP_HELP)
        with gr.Row(elem_classes="mode-controls"):
            runs.inputs.place("steps")
            self.controls = mode_buttons(self.name, strings.SWEEP_RUN)
        self.status = status_line(strings.SWEEP_IDLE, elem_id="sweep-status")
        self.table = data_table(elem_id="sweep-table")
        self.plot = gr.Plot(visible=False, show_label=False, elem_id="sweep-plot")
        self.outputs = [self.table, self.plot]

    def request(self, values: Values) -> Request:
        steps = STEPS["coarse" if values["steps"] == "coarse" else "fine"]
        return sweep_request(self.runs.inputs.request(values), steps)

    def results(self, board: Board) -> Updates:
        lines = lines_of(board)
        shown = board.over and board.baseline is not None  # complete, and not while the clock runs
        plot = probability_by_retention([(line.label, line.method, line.points) for line in lines]) if shown else None
        return {self.table: sweep_table(board, lines), self.plot: gr.Plot(plot, visible=shown)}


@dataclass(frozen=True)
class Line:
    """One method of a sweep, and its points so far; none without vanilla's answer."""

    label: str
    method: str
    points: list[Point]


def lines_of(board: Board) -> list[Line]:
    """Return one line per method of a sweep's board, in the order of its request."""
    specs = {spec.title: spec for spec in _pruned(board)}
    lines = {_name(spec): Line(_name(spec), spec.name, []) for spec in specs.values()}
    baseline = board.baseline
    if baseline is not None:
        for line in lines.values():
            line.points.append(point_of(baseline, 1.0, baseline))
        for result in board.results:
            spec = specs.get(result.label)
            if spec is not None and spec.retention is not None and result.status == "done":
                lines[_name(spec)].points.append(point_of(result, spec.retention, baseline))
    return list(lines.values())


def sweep_table(board: Board, lines: Sequence[Line]) -> dict[str, Any]:
    """One row per method: its verdict, then one cell per retention."""
    baseline = board.baseline
    steps = list(dict.fromkeys([1.0, *(spec.retention or 1.0 for spec in _pruned(board))]))
    caption = strings.sweep_caption(baseline.answer, baseline.tokens.visual) if baseline else ""
    answers = {result.label: result.answer for result in board.results if result.status == "done"}
    vanilla = method_class("vanilla").title
    unknown = "…" if board.phase == "running" else strings.NO_VERDICT
    rows = []
    for line in lines:
        points = {point.retention: point for point in line.points}
        found = verdict(line.points) if len(points) > 1 else None
        note = strings.verdict(found.holds, found.flips, found.returns) if found else unknown
        cells: list[Any] = [{"text": line.label, "color": method_color(line.method), "note": note}]
        for step in steps:
            point, own = points.get(step), strings.at_share(line.label, step) if step < 1 else vanilla
            if point is not None:
                cells.append(_cell(point))
            elif own in answers:  # without vanilla's answer it is neither the same nor another
                cells.append({"text": answers[own].strip() or strings.EMPTY_ANSWER, "kind": "open"})
            else:
                cells.append(open_cell(board, own))
        rows.append(cells)
    head = [strings.METHOD, *(strings.percent(step) for step in steps)]
    return {"caption": caption, "head": head, "rows": rows}


def _pruned(board: Board) -> list[MethodSpec]:
    return [spec for spec in (board.request.methods if board.request else ()) if spec.name != "vanilla"]


def _name(spec: MethodSpec) -> str:
    return spec.title.removesuffix(strings.at_share("", spec.retention or 1.0))


def _cell(point: Point) -> dict[str, str]:
    title = strings.point(point.answer, point.kept, point.visual, point.probability)
    more = {"title": title, "note": strings.kept_count(point.kept, point.visual)}
    if point.same:
        return {"text": "✓", "kind": "same", **more}
    return {"text": f"✗ {point.answer.strip() or strings.EMPTY_ANSWER}", "kind": "differs", **more}
