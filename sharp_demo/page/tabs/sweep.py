"""Sweep: at which share of kept tokens does the answer flip?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.errors import MethodError
from sharp_demo.page.callbacks import Callbacks
from sharp_demo.page.tabs.parts import Collected, Controls, Status, data_table, status_line, stream, wire
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import Event, MethodSpec, Request
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
    return replace(request, methods=tuple(specs), prefills=1)


class SweepView(Collected):
    """The table and the plot of one sweep."""

    def __init__(self, request: Request) -> None:
        super().__init__(total=len(request.methods), status=Status())
        self.specs = {spec.title: spec for spec in request.methods}
        pruned = [spec for spec in request.methods if spec.name != "vanilla"]
        self.steps = list(dict.fromkeys([1.0, *(spec.retention or 1.0 for spec in pruned)]))
        self.series = list(dict.fromkeys((self._name(spec), spec.name) for spec in pruned))
        self.points: dict[str, list[Point]] = {label: [] for label, _ in self.series}

    @staticmethod
    def _name(spec: MethodSpec) -> str:
        return spec.title.removesuffix(strings.at_share("", spec.retention or 1.0))

    def apply(self, event: Event) -> bool:
        changed = super().apply(event)
        baseline = self.baseline
        if changed and baseline is not None:
            self.points = {label: [point_of(baseline, 1.0, baseline)] for label, _ in self.series}
            for result in self.results:
                spec = self.specs[result.label]
                if spec.retention is not None and result.status == "done":
                    self.points[self._name(spec)].append(point_of(result, spec.retention, baseline))
        return changed

    def outputs(self) -> list[Any]:
        series = [(label, method, self.points[label]) for label, method in self.series]
        plot = probability_by_retention(series) if self.baseline is not None else None
        return [self.table(), gr.Plot(plot, visible=plot is not None)]

    def _unknown(self) -> str:
        return "…" if self.status.phase == "running" else strings.NO_VERDICT

    def idle(self) -> list[Any]:
        return [gr.skip(), gr.skip()]

    def table(self) -> dict[str, Any]:
        """One row per method: its verdict, then one cell per retention."""
        baseline = self.baseline
        caption = strings.sweep_caption(baseline.answer, baseline.tokens.visual) if baseline else ""
        answers = {result.label: result.answer for result in self.results if result.status == "done"}
        vanilla = next(title for title, spec in self.specs.items() if spec.name == "vanilla")
        rows = []
        for label, method in self.series:
            points = {point.retention: point for point in self.points[label]}
            found = strings.verdict(verdict(list(points.values()))) if len(points) > 1 else self._unknown()
            cells: list[Any] = [{"text": label, "color": method_color(method), "note": found}]
            for step in self.steps:
                point, own = points.get(step), strings.at_share(label, step) if step < 1 else vanilla
                if point is not None:
                    cells.append(_cell(point))
                elif own in answers:  # without vanilla's answer it is neither the same nor another
                    cells.append({"text": answers[own].strip() or strings.EMPTY_ANSWER, "kind": "open"})
                else:
                    cells.append(self.missing(own))
            rows.append(cells)
        head = [strings.METHOD, *(strings.percent(step) for step in self.steps)]
        return {"caption": caption, "head": head, "rows": rows}


def _cell(point: Point) -> dict[str, str]:
    title = strings.point(point.answer, point.kept, point.visual, point.probability)
    more = {"title": title, "note": strings.kept_count(point.kept, point.visual)}
    if point.same:
        return {"text": "✓", "kind": "same", **more}
    return {"text": f"✗ {point.answer.strip() or strings.EMPTY_ANSWER}", "kind": "differs", **more}


def build_sweep(callbacks: Callbacks, inputs: Sequence[Any]) -> list[gr.Radio]:
    """Add the mode's controls and outputs to the current layout, wired to the shared inputs; return its own inputs."""
    gr.Markdown(strings.SWEEP_HELP)
    with gr.Row(elem_classes="mode-controls"):
        steps = gr.Radio(strings.SWEEP_CHOICES, value="fine", label=strings.SWEEP_STEPS, elem_id="sweep-steps")
        controls = Controls.create("sweep", strings.SWEEP_RUN)
    status = status_line(strings.SWEEP_IDLE, elem_id="sweep-status")
    table = data_table(elem_id="sweep-table")
    plot = gr.Plot(visible=False, show_label=False, elem_id="sweep-plot")

    def request_of(values: Sequence[Any]) -> Request:
        *page, chosen = values
        return sweep_request(callbacks.request_of(page), STEPS["coarse" if chosen == "coarse" else "fine"])

    def query(values: Sequence[Any]) -> str:
        *page, chosen = values
        return callbacks.query(page, mode="sweep", steps=chosen)

    def run(request: Request, caller: gr.Request) -> Iterator[list[Any]]:
        yield from stream(callbacks, request, SweepView(request), caller)

    wire(callbacks, controls, status, [*inputs, steps], [table, plot], request_of, query, run)
    return [steps]
