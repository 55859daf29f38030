"""Compare: the chosen methods side by side, the charts of their results, and what can be taken home."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.page.board import Board
from sharp_demo.page.components import component, token_columns
from sharp_demo.page.examples import example_of
from sharp_demo.page.inputs import Values
from sharp_demo.page.runs import HIDDEN, MODEL, Controls, Finished, Mode, Runs, Updates, problem_of, public
from sharp_demo.records import Request, Result
from sharp_demo.views import figures
from sharp_demo.views.benchmark import Measured, load_benchmark
from sharp_demo.views.report import comparison_dict, render_report

# A download starts when its hidden button gets the file: the file is only written when someone asks for it.
CLICK_JS = "() => setTimeout(() => document.querySelector('#{id}')?.click(), 150)"
PICTURE_JS = "() => { window.dispatchEvent(new Event('sharp:picture')); }"
# Browsers give pages that are served over plain HTTP from another machine no clipboard.
COPY_JS = """() => {
  (navigator.clipboard?.writeText(location.href) ?? Promise.reject()).catch(() => prompt("", location.href));
}"""


class Compare(Mode):
    """Lays the tab out in the current layout. `controls`: the page's own buttons, which stand with the inputs."""

    name = "compare"
    keeps = True

    def __init__(self, runs: Runs, controls: Controls) -> None:
        self.runs, self.controls = runs, controls
        self.status = token_columns(Board.idle(runs.settings.methods).value(), elem_id="columns")
        with gr.Column(visible=False, elem_id="charts") as self.section:
            gr.Markdown(strings.SPEED_HELP)
            speed = ChartRow(0)
            gr.Markdown(strings.ATTENTION_HELP)
            attention = ChartRow(1)
            self.by_layer = gr.Button(strings.BY_LAYER, size="sm", elem_id="by-layer")
            # A slider of the browser's own: the one that plotly draws cannot be moved by keyboard.
            self.layer = gr.Slider(0, 1, step=1, visible=False, label=strings.CHART_LAYERS_SLIDER, elem_id="layer")
            with gr.Row():
                self.layers = gr.Plot(visible=False, show_label=False, min_width=300, elem_id="layers")
                self.layer_map = gr.Plot(visible=False, show_label=False, min_width=300, elem_id="layer-map")
            gr.Markdown(strings.ACCURACY_HELP)
            self.rows = (speed, attention, ChartRow(2))
            self._downloads()
        self.outputs = [
            *(part for row in self.rows for part in (row.sight, *row.plots)),
            *(self.section, self.layer, self.layers, self.layer_map),
        ]
        self._wire()

    def request(self, values: Values) -> Request:
        return self.runs.inputs.request(values)

    def board(self, request: Request) -> Board:
        board = Board.waiting(request)
        board.evidence = self.runs.inputs.evidence(request)
        board.own = example_of(self.runs.inputs.examples, request.video) is None
        return board

    def told(self, board: Board) -> dict[str, Any]:
        return board.value()

    def results(self, board: Board) -> Updates:
        if not board.results:
            hidden = {plot: gr.Plot(visible=False) for plot in (self.layers, self.layer_map)}
            return {self.section: gr.Column(visible=False), self.layer: gr.Slider(visible=False), **hidden}
        if not board.over:
            return {}
        # Empty: a chart is made when its row comes into view, and never while the clock of this run is on.
        empty = {part: value for row in self.rows for part, value in row.empty(board.run).items()}
        return {self.section: gr.Column(visible=True), **empty}

    def stored(self, board: Board, session: str | None) -> Updates:
        """Return the updates that show a run which ended before."""
        self.runs.keep(board, session)
        return {**self.live(board), **self.results(board), **self.controls.when("idle")}

    # -- what is done with a run that has ended ------------------------------------------------------------------

    def charts_in(self, row: ChartRow) -> Callable[[gr.Request], tuple[Any, Any]]:
        """Return what draws the charts of a row that came into view; while there is no run, nothing changes."""

        def draw(caller: gr.Request) -> tuple[Any, Any]:
            finished = self.runs.finished.get(caller.session_hash or "")
            if finished is None:
                return gr.skip(), gr.skip()
            return charts_of(finished, row.number, load_benchmark(self.runs.settings.assets))

        return draw

    def attention(self, caller: gr.Request) -> Iterator[Updates]:
        """Compute and draw the attention of every layer for the run on the page."""
        finished, session = self._finished(caller), caller.session_hash or ""
        yield {self.by_layer: gr.Button(strings.BY_LAYER_BUSY, interactive=False)}
        try:
            maps = self.runs.engine.attention(finished.request, penalty_of(finished.results))
        except Exception as error:
            yield {self.by_layer: gr.Button(strings.BY_LAYER, interactive=True)}
            raise Error(problem_of(error), print_exception=False) from None
        self.runs.finished.put(session, self.runs.visits.of(session).client, replace(finished, attention=maps))
        last = len(maps.raw) - 1
        yield {
            self.layer: gr.Slider(value=min(figures.FIRST_LAYER_SHOWN, last), maximum=last, visible=True),
            self.layers: gr.Plot(figures.attention_by_layer(maps, finished.evidence), visible=True),
            self.layer_map: gr.Plot(figures.attention_map(maps, finished.evidence), visible=True),
            self.by_layer: gr.Button(strings.BY_LAYER, interactive=True),
        }

    def one_layer(self, layer: Any, caller: gr.Request) -> Any:
        """Draw the attention of another layer; nothing changes while there is none."""
        finished = self.runs.finished.get(caller.session_hash or "")
        if finished is None or finished.attention is None or not isinstance(layer, int | float):
            return gr.skip()
        return gr.Plot(figures.attention_by_layer(finished.attention, finished.evidence, int(layer)), visible=True)

    def save_json(self, caller: gr.Request) -> str:
        """Write the comparison as JSON into the page's file cache and return its path."""
        finished = self._finished(caller)
        data = comparison_dict(public(finished.request), finished.results, finished.failed, stored=finished.stored)
        return self.runs.save(json.dumps(data, indent=1, default=str), "comparison.json", caller.session_hash)

    def save_report(self, caller: gr.Request) -> str:
        """Write the HTML report into the page's file cache and return its path."""
        finished = self._finished(caller)
        page = render_report(
            public(finished.request),
            finished.results,
            finished.sprite,
            finished.attention,
            finished.evidence,
            finished.failed,
            stored=finished.stored,
            benchmark=load_benchmark(self.runs.settings.assets),
        )
        return self.runs.save(page, "comparison.html", caller.session_hash)

    def _finished(self, caller: gr.Request) -> Finished:
        finished = self.runs.finished.get(caller.session_hash or "")
        if finished is None:
            raise Error(strings.NO_RUN, print_exception=False)
        return finished

    # -- layout and wiring ---------------------------------------------------------------------------------------

    def _downloads(self) -> None:
        with gr.Row():
            json_button = gr.Button(strings.JSON, size="sm", elem_id="save-json")
            report_button = gr.Button(strings.REPORT, size="sm", elem_id="save-report")
            picture = gr.Button(strings.PICTURE, size="sm", elem_id="save-picture")
            link = gr.Button(strings.LINK, size="sm", elem_id="copy-link")
        picture.click(None, None, None, js=PICTURE_JS, **HIDDEN)
        link.click(lambda: gr.Info(strings.LINK_COPIED), None, None, js=COPY_JS, **HIDDEN)
        self.json_file = gr.DownloadButton(visible="hidden", elem_id="json-file")
        self.report_file = gr.DownloadButton(visible="hidden", elem_id="report-file")
        self.writers = (
            (json_button, self.save_json, self.json_file),
            (report_button, self.save_report, self.report_file),
        )

    def _wire(self) -> None:
        for row in self.rows:
            row.sight.select(self.charts_in(row), None, list(row.plots), queue=False, **HIDDEN)
        self.by_layer.click(
            self.attention,
            None,
            [self.layer, self.layers, self.layer_map, self.by_layer],
            **MODEL,
        )
        self.layer.input(
            self.one_layer,
            self.layer,
            self.layers,
            queue=False,
            trigger_mode="always_last",
            **HIDDEN,
        )
        for button, write, file in self.writers:
            written = button.click(write, None, file, queue=False, **HIDDEN)
            written.success(None, None, None, js=CLICK_JS.replace("{id}", file.elem_id), **HIDDEN)


class ChartRow:
    """Two charts side by side, and before them what fires `select` when it comes into view."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sight = component("sight")
        with gr.Row(elem_classes="charts"):
            self.plots = tuple(gr.Plot(show_label=False, min_width=300) for _ in range(2))

    def empty(self, run: str) -> Updates:
        """Return the updates that leave the row without charts until it is seen."""
        return {self.sight: {"run": run, "row": self.number}, **dict.fromkeys(self.plots)}


def charts_of(run: Finished, row: int, benchmark: Sequence[Measured]) -> tuple[go.Figure | None, go.Figure | None]:
    """Return the two charts of a row: times, tokens over the clip, or tokens over the layers and stored accuracy."""
    results, evidence = run.results, run.evidence
    if row == 0:
        return figures.speedup_bars(results), figures.latency_bars(results)
    if row == 1:
        scored = max(results, key=lambda result: len(result.scores))
        attention = figures.attention_per_frame(scored, evidence) if scored.scores else None
        return figures.kept_over_time(results, evidence), attention
    return figures.kept_by_layer(results), figures.accuracy_by_retention(benchmark, results)


def penalty_of(results: Sequence[Result]) -> float | None:
    """Return the λ that a run's ShaRP used; None when ShaRP gave no answer."""
    return next((result.config.get("penalty") for result in results if result.method == "sharp"), None)
