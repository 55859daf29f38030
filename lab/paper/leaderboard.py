"""What the app's leaderboard shows: the points that the paper prints, and those that `reproduce` has stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lab.paper.plan import Table, table
from sharp_demo.views.leaderboard import Point

TABLES = ("table1", "table2")


def pack_leaderboard(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the content of `assets/leaderboard.json` from the documents of `docs/results/paper`."""
    printed = [point for name in TABLES for point in printed_points(table(name))]
    return [asdict(point) for point in (*printed, *(one for document in documents for one in own_points(document)))]


def printed_points(one: Table) -> list[Point]:
    """The paper's rows that have TFLOPs; times to the first token are not printed."""
    return [
        Point(
            model=one.model.rpartition("/")[2],
            method=row.run.method,
            label=f"{row.run.method}, {row.printed_retention}",
            source="paper",
            average=round(sum(row.scores[name] for name in one.benchmarks) / len(one.benchmarks), 1),
            tflops=float(row.tflops),
            first_token_ms=None,
            questions=None,
        )
        for row in one.rows
        if row.tflops is not None
    ]


def own_points(document: Mapping[str, Any]) -> list[Point]:
    """The rows of a stored table; figures have no average of the same benchmarks and are left out."""
    if document["table"] not in TABLES:
        return []
    return [
        Point(
            model=document["model"].rpartition("/")[2],
            method=row["method"],
            label=f"{row['label']}, {100 * row['kept']:.1f}%",
            source="rehearsal" if document["rehearsal"] else "ours",
            average=round(100 * row["average"], 1),
            tflops=row["tflops"],
            first_token_ms=row["first_token_ms"],
            questions=sum(score["n"] for score in row["scores"].values()),
        )
        for row in document["rows"]
    ]
