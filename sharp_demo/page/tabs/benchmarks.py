"""Benchmarks: the stored tables, and what they do and do not say. Nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.runs import HIDDEN
from sharp_demo.page.tabs.parts import data_table
from sharp_demo.pruning.registry import list_methods, method_class
from sharp_demo.settings import Settings
from sharp_demo.views.benchmark import Measured, load_benchmark
from sharp_demo.views.colors import method_color
from sharp_demo.views.leaderboard import leaderboard_chart, leaderboard_note, load_leaderboard
from sharp_demo.views.tables import Line, ablation_rows, accuracy_rows, load_tables, stored_accuracy


def accuracy_table(lines: tuple[list[float], list[Line]], caption: str) -> dict[str, Any]:
    """Return the table of accuracies in percent, one line per method."""
    retentions, rows = lines
    return {
        "caption": caption,
        "head": [strings.METHOD, *(strings.bench_retention(share) for share in retentions)],
        "rows": [
            [
                {"text": label, "color": method_color(method)},
                *({"text": cells.get(share, ""), "kind": "number"} for share in retentions),
            ]
            for label, method, cells in rows
        ],
    }


def speed_table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the table of measured prefills."""
    cells = []
    for row in rows:
        title = method_class(row["method"]).title if row["method"] in list_methods() else row["method"]
        speedup = row["speedup"]
        measured = (
            f"{speedup['value']:.2f}×" if speedup["value"] is not None else strings.bench_refused(speedup["refused"])
        )
        texts = (
            strings.bench_prompt(row["config"], row["visual"]),
            f"{row['device']}, {row['dtype']}",
            strings.percent(row["retention"]),
            f"{row['prefill_ms'] / 1000:.2f} s",
            measured,
            f"{row['flops_ratio']:.2f}×",
        )
        name = {"text": title, "color": method_color(row["method"])}
        cells.append([name, *({"text": text, "kind": "number"} for text in texts)])
    return {"caption": strings.BENCH_SPEED_CAPTION, "head": strings.BENCH_SPEED_HEAD, "rows": cells}


def build_benchmarks(settings: Settings) -> None:
    """Add the stored tables to the current layout, and the choice of model and budget."""
    stored, tables = load_benchmark(settings.assets), load_tables(settings.assets)
    models = list(dict.fromkeys(row.model for row in stored))
    gr.Markdown(strings.BENCH_HELP)
    if not models:
        gr.Markdown(strings.BENCH_NONE)
        return
    with gr.Row(elem_classes="mode-controls"):
        model = gr.Radio(models, value=models[0], label=strings.MODEL, elem_id="bench-model")
        match = gr.Radio(strings.BENCH_MATCH, value="tokens", label=strings.MATCH, elem_id="bench-match")
    shown = _shown(stored, tables["ablation"], models[0], "tokens")
    plot = gr.Plot(shown[0], show_label=False, elem_id="bench-plot")
    table = data_table(shown[1], elem_id="bench-table")
    gr.Markdown(strings.BENCH_ABLATION)
    ablation = data_table(shown[2], elem_id="bench-ablation")
    gr.Markdown(strings.BENCH_SPEED)
    data_table(speed_table(tables["speed"]), elem_id="bench-speed")
    gr.Markdown(strings.BENCH_LIMITS)
    build_leaderboard(settings)

    def show(chosen: Any, budget: Any) -> list[Any]:
        known = chosen if chosen in models else models[0]
        return _shown(stored, tables["ablation"], known, "flops" if budget == "flops" else "tokens")

    for choice in (model, match):
        choice.change(show, [model, match], [plot, table, ablation], queue=False, **HIDDEN)


def build_leaderboard(settings: Settings) -> None:
    """Add the paper's benchmarks to the current layout: accuracy against cost, one model at a time."""
    points = load_leaderboard(settings.assets)
    models = list(dict.fromkeys(point.model for point in points))
    if not models:
        return
    gr.Markdown(strings.BOARD_HELP)

    def show(chosen: Any) -> list[Any]:
        known = chosen if chosen in models else models[0]
        charts = [leaderboard_chart(points, known, cost) for cost in ("tflops", "first_token_ms")]
        return [*charts, leaderboard_note(points, known)]

    model = gr.Radio(models, value=models[0], label=strings.MODEL, elem_id="board-model")
    costs, times, note = show(models[0])
    plots = [
        gr.Plot(figure, show_label=False, elem_id=f"board-{name}")
        for name, figure in (("cost", costs), ("time", times))
    ]
    said = gr.Markdown(note, elem_id="board-note")
    model.change(show, [model], [*plots, said], queue=False, **HIDDEN)


def _shown(stored: Sequence[Measured], ablation: Sequence[dict[str, Any]], model: str, match: str) -> list[Any]:
    count = next((row.n for row in stored if row.model == model), 0)
    asked = next((row["n"] for row in ablation if row["model"] == model), 0)
    return [
        stored_accuracy(stored, model, match),
        accuracy_table(accuracy_rows(stored, model, match), strings.bench_caption(model, count)),
        accuracy_table(ablation_rows(ablation, model), strings.bench_caption(model, asked)),
    ]
