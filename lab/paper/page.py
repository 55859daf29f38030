"""The page of a stored table: Markdown from its document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lab.paper.plan import benchmarks
from lab.tables.text import percent, table, with_interval
from sharp_demo.pruning.registry import method_class

Document = Mapping[str, Any]

REHEARSAL = (
    "**This is a rehearsal**: the embedded model on drawn films, in the benchmarks' formats. It shows that the way "
    "from question to table works. The model was never taught letters: its scores are near nothing and say nothing "
    "about any method. The paper's numbers, which are another model's, are left out."
)
NOTES = (
    "Intervals resample videos, since questions about one video are not independent; those to vanilla are paired by "
    "question. McNemar's test is exact and takes questions for independent. *At most 1 point worse* means that the "
    "one-sided 95 % bound of the difference to vanilla lies above -1 point; *not shown* is not the contrary. The "
    "interval of *ours - paper* is ours alone: the paper prints none. Every question counts, one without a readable "
    "letter as wrong; lmms-eval's own MVBench score leaves out empty answers. Times are those of single questions on "
    "the machine named above, without repetitions."
)


def paper_page(document: Document) -> str:
    """Return a table as Markdown."""
    lines = [f"# {document['title']}", "", f"`{document['command']}`", ""]
    if document["rehearsal"]:
        lines += [REHEARSAL, ""]
    elif document["limit"]:
        lines += [f"**A sample**: {document['limit']} questions of each benchmark.", ""]
    lines += _setup(document)
    for name in document["benchmarks"]:
        rows = [_score_row(row, row["scores"][name]) for row in document["rows"]]
        lines += [f"## {benchmarks()[name].title}", "", table(SCORES, rows), ""]
    lines += ["## All together", "", table(COSTS, [_cost_row(row) for row in document["rows"]]), ""]
    if document["kind"] == "figure":
        lines += _frames(document)
    lines += _notes(document)
    return "\n".join(lines)


SCORES = (
    "row", "ours (95 % interval)", "paper", "ours - paper", "to vanilla (95 % interval)", "only this : only vanilla",
    "McNemar p", "at most 1 point worse",
)  # fmt: skip
COSTS = (
    "row", "method", "kept", "paper's", "mean over layers", "TFLOPs", "paper's", "prefill ms", "paper's",
    "first token ms", "average", "paper's",
)  # fmt: skip


def _score_row(row: Document, score: Document) -> tuple[str, ...]:
    gap, interval = score["difference"], score["difference_ci95"]
    vanilla = row["method"] == "vanilla"
    return (
        row["label"],
        with_interval(score["ours"], score["ci95"]),
        percent(score["paper"]),
        "" if gap is None else with_interval(gap, interval, "+"),
        "" if vanilla else with_interval(score["to_vanilla"], score["to_vanilla_ci95"], "+"),
        "" if vanilla else f"{score['only_this']} : {score['only_vanilla']}",
        "" if vanilla else f"{score['mcnemar_p']:.3f}",
        "" if vanilla else ("yes" if score["at_most_a_point_worse"] else "not shown"),
    )


def _cost_row(row: Document) -> tuple[str, ...]:
    printed_ms = row["printed_prefill_ms"]
    return (
        row["label"],
        method_class(row["method"]).title,
        f"{100 * row['kept']:.1f} %",
        row["printed_retention"],
        f"{100 * row['layer_mean']:.1f} %",
        f"{row['tflops']:.3g}",
        row["printed_tflops"] or "",
        f"{row['prefill_ms']:.1f}",
        "" if printed_ms is None else f"{printed_ms:.1f}",
        f"{row['first_token_ms']:.1f}",
        percent(row["average"]),
        percent(row["paper_average"]),
    )


def _setup(document: Document) -> list[str]:
    setup = document["setup"]
    counts = {name: next(iter(document["rows"]))["scores"][name] for name in document["benchmarks"]}
    asked = ", ".join(f"{benchmarks()[name].title} {one['n']} ({one['videos']} videos)" for name, one in counts.items())
    distinct = setup["fewest_distinct_frames"]
    versions = ", ".join(f"{name} {'/'.join(found)}" for name, found in setup["versions"].items())
    lines = [
        f"- Model: {document['model']}, {'/'.join(setup['dtypes'])}, {'/'.join(setup['attention'])}, "
        f"on {'/'.join(setup['devices'])}",
        f"- Questions: {asked}",
        f"- Frames: {'/'.join(map(str, setup['frames']))} of each video"
        + ("" if distinct is None else f"; the shortest has {distinct} different ones"),
        f"- Versions: {versions}; commit {', '.join(one[:7] + one[40:] for one in setup['commits'])}",
    ]
    lines += [f"- Left out, {label}: {why}" for label, why in document["left_out"].items()]
    return [*lines, ""]


def _frames(document: Document) -> list[str]:
    """Where the kept tokens, and the attention, lie: shares of the four quarters of the clip."""
    rows = [(row["label"], *map(percent, quarters(row["kept_by_frame"]))) for row in document["rows"]]
    header = ("row", "first quarter", "second", "third", "last quarter")
    lines = ["## Share of the kept tokens by quarter of the video, percent", "", table(header, rows), ""]
    if maps := document.get("attention"):
        for name in ("raw", "debiased"):
            layers = [(f"layer {i}", *map(percent, quarters(row))) for i, row in enumerate(maps[name])]
            lines += [f"## Attention of the last token, {name}, percent", "", table(header, layers), ""]
    return lines


def quarters(values: Sequence[float]) -> list[float]:
    """Sums over the four quarters of a list, whose length need not be a multiple of four."""
    sums = [0.0] * 4
    for i, value in enumerate(values):
        sums[(2 * i + 1) * 4 // (2 * len(values))] += value
    return sums


def _notes(document: Document) -> list[str]:
    return ["## How to read this", "", f"{NOTES} Paper: {document['source']}.", ""]
