"""The stored benchmarks as the app shows them: accuracy, ablation and speed tables, and the plot of accuracies.

Accuracies come from `assets/benchmark.json`; ablation and speed from `assets/tables.json`. Both are made from
docs/results by docs/generate.py, because docs/ is not there wherever the app runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sharp_demo import strings
from sharp_demo.backbones.families import published_models
from sharp_demo.views.benchmark import Measured
from sharp_demo.views.colors import method_color
from sharp_demo.views.figures import styled

Line = tuple[str, str, dict[float, str]]
FLOORS = ("random", "uniform", "latest")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "cross")


def pack_tables(ablations: Iterable[Mapping[str, Any]], prefills: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of `assets/tables.json` from documents of `docs/results` (ablation-*, bench-prefill-*).

    Of the speeds those are taken that a visitor can compare: whole configurations, one thread on a CPU, the first
    content of a run.
    """
    ablation = [
        {key: row[key] for key in ("model", "method", "label", "retention", "accuracy", "ci95", "n")}
        for document in ablations
        for row in document["results"]
    ]
    speed: list[dict[str, Any]] = []
    for document in prefills:
        setup = document["setup"]
        known = published_models().get(setup["config"])
        whole = setup["layers"] if known is None else known.text["num_hidden_layers"]
        if setup["layers"] < whole or (setup["device"] == "cpu" and setup["threads"] > 1):
            continue
        content = document["results"][0]["content"]
        where = {
            "config": setup["config"],
            "visual": setup["visual_tokens"],
            "device": setup["device"],
            "dtype": setup["dtype"],
            "threads": setup["threads"],
            "machine": setup["machine"].get("cpu", ""),
        }
        for row in document["results"]:
            if row["method"] == "plain" or row["content"] != content:
                continue
            told = any(one["method"] == "vanilla" and where.items() <= one.items() for one in speed)
            if row["method"] == "vanilla" and told:
                continue
            speed.append(
                {
                    **where,
                    "method": row["method"],
                    "retention": row["retention"],
                    "prefill_ms": round(row["prefill_ms"]["median"], 1),
                    "speedup": row["speedup"],
                    "flops_ratio": round(row["flops"]["ratio"], 4),
                }
            )
    return {"ablation": ablation, "speed": speed}


def load_tables(assets: Path) -> dict[str, Any]:
    """Return the stored ablation and speed rows; empty where the file is not there."""
    path = assets / "tables.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"ablation": [], "speed": []}


def interval(accuracy: float, ci95: Sequence[float]) -> str:
    """Return an accuracy with its 95 % interval, in percent."""
    return f"{100 * accuracy:.1f} ({100 * ci95[0]:.1f}–{100 * ci95[1]:.1f})"


def accuracy_rows(stored: Sequence[Measured], model: str, match: str) -> tuple[list[float], list[Line]]:
    """Return the retentions, highest first, and per line (label, method, {retention: accuracy with interval})."""
    rows = [row for row in stored if row.model == model and row.match == match]
    retentions = sorted({row.retention for row in rows if row.retention < 1}, reverse=True)
    lines: dict[str, Line] = {}
    for row in rows:
        shares = retentions if base(row.method) == "vanilla" else [row.retention]
        cells = lines.setdefault(row.label, (row.label, base(row.method), {}))[2]
        cells |= dict.fromkeys(shares, interval(row.accuracy, row.ci95))
    return retentions, list(lines.values())


def ablation_rows(ablation: Sequence[Mapping[str, Any]], model: str) -> tuple[list[float], list[Line]]:
    """Return the same for the stored ablation."""
    rows = [
        Measured(row["model"], row["method"], row["label"], "tokens", row["retention"], row["retention"],
                 row["accuracy"], tuple(row["ci95"]), row["n"], 1.0)
        for row in ablation
    ]  # fmt: skip
    return accuracy_rows(rows, model, "tokens")


def stored_accuracy(stored: Sequence[Measured], model: str, match: str) -> go.Figure:
    """Plot the stored accuracy of every line against the share of tokens kept, with 95 % intervals."""
    figure = styled(strings.CHART_STORED.format(model=model), strings.CHART_STORED_X, strings.CHART_ACCURACY_Y, 420)
    rows = [row for row in stored if row.model == model and row.match == match and drawn(row)]
    labels = list(dict.fromkeys(row.label for row in rows))
    for number, label in enumerate(labels):
        line = sorted((row for row in rows if row.label == label), key=lambda row: row.retention)
        if base(line[0].method) == "vanilla":
            shares = [row.retention for row in rows if row.retention < 1]
            figure.add_scatter(x=[min(shares), max(shares)], y=[line[0].accuracy] * 2, name=label, mode="lines",
                               line={"color": method_color("vanilla"), "dash": "dash"})  # fmt: skip
            continue
        accuracy = [row.accuracy for row in line]
        figure.add_scatter(
            x=[row.retention for row in line],
            y=accuracy,
            error_y={
                "array": [row.ci95[1] - row.accuracy for row in line],
                "arrayminus": [row.accuracy - row.ci95[0] for row in line],
                "thickness": 1,
                "width": 3,
            },
            name=label,
            mode="lines+markers",
            line={"color": method_color(base(line[0].method)), "width": 2},
            marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
        )
    figure.update_xaxes(type="log", tickformat=".0%", tickvals=[0.02, 0.05, 0.1, 0.15, 0.25])
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def drawn(row: Measured) -> bool:
    """Whether the plot shows a line: vanilla, methods at their own cut, floors and FastV cut where ShaRP cuts."""
    method = base(row.method)
    early = row.label.endswith("K=1")
    return {"vanilla": True, "feather": not early, "fastv": True, "sharp": early}.get(
        method, early and method in FLOORS
    )


def base(method: str) -> str:
    """Return the registered name of a variant such as "random:layer=1"."""
    return method.split(":")[0]
