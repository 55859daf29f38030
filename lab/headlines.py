"""The figures that README and docs quote, read from docs/results, so that no copy of them can go stale."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from lab.tables.text import table
from sharp_demo.pruning.registry import method_class
from sharp_demo.settings import ROOT

RESULTS = ROOT / "docs/results"


def stored(pattern: str) -> list[dict[str, Any]]:
    """Return the documents of docs/results whose file names match, in the order of their names."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob(pattern))]


def speed_table(methods: Collection[str]) -> str:
    """Return the measured speed-up on the CPU: of the prefill, and of the first token with the vision tower in it."""
    rows = [
        "| visual tokens | method | kept | prefill | ratio of exact FLOPs | outside the forward pass | first token |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for document in sorted(stored("bench-prefill-cpu-[0-9]*.json"), key=lambda one: one["setup"]["visual_tokens"]):
        (vanilla,) = (result for result in document["results"] if result["method"] == "vanilla")
        for result in document["results"]:
            if result["method"] in methods:
                whole, ours = (one["first_token_ms"]["with_vision"] for one in (vanilla, result))
                cells = (
                    f"{document['setup']['visual_tokens']:,}",
                    method_class(result["method"]).title,
                    f"{100 * result['retention']:g} %",
                    f"{result['speedup']['value']:.2f}x",
                    f"{result['flops']['ratio']:.2f}x",
                    f"{100 * result['beside_forward']['share_of_vanilla']:.1f} % of vanilla",
                    "not measured" if whole is None else f"{whole / ours:.2f}x",
                )
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def bench_list() -> str:
    """Return one line for each stored prefill benchmark, with a link to its tables."""
    lines = []
    for path in sorted(RESULTS.glob("bench-*.json")):
        document = json.loads(path.read_text("utf-8"))
        runs = document["runs"] if document["kind"] == "scale" else [document]
        setup, lengths = runs[0]["setup"], [f"{run['setup']['visual_tokens']:,}" for run in runs]
        what = f"{' to '.join(dict.fromkeys((lengths[0], lengths[-1])))} visual tokens"
        lines.append(
            f"- [{path.stem}](results/{path.stem}.md): {setup['config']}, {what}, {setup['layers']} layers, "
            f"{setup['threads']} thread{'s' * (setup['threads'] != 1)}, {setup['dtype']}, {setup['machine']['cpu']}; "
            f"commit {setup['commit'][:7]}, torch {setup['versions']['torch']}, seed {setup['seed']}"
        )
    return "\n".join(lines)


README_COLUMNS = ("Vanilla", "ShaRP, K=1", "Random, K=1", "FastV, K=2", "Feather, K=2", "Random, K=2")


def accuracy_table(retention: float = 0.05) -> str:
    """Accuracy of the embedded models at equal tokens, in percent."""
    rows = [f"| model | {' | '.join(README_COLUMNS)} |", "|---|" + "---:|" * len(README_COLUMNS)]
    for document in stored("evaluate-*.json"):
        found = {
            result["label"]: f"{100 * result['accuracy']:.1f}"
            for result in document["results"]
            if result["match"] == "tokens" and result["retention"] in (retention, 1.0)
        }
        rows.append(f"| {' | '.join((next(iter(document['models'])), *map(found.__getitem__, README_COLUMNS)))} |")
    return "\n".join(rows)


def equal_flops_table(retentions: Sequence[float] = (0.05,)) -> str:
    """Accuracy of every method at equal FLOPs, the best first; floors last."""
    return _by_label("systems", "flops", retentions, ranked=True)


def core_table() -> str:
    """Accuracy of the paper's comparison, floors and oracles at equal tokens."""
    return _by_label("evaluate", "tokens", (0.15, 0.05))


def modules_table() -> str:
    """Accuracy of ShaRP's modules and readings at equal tokens."""
    return _by_label("ablation", "tokens", (0.15, 0.1, 0.05))


def _by_label(part: str, match: str, retentions: Sequence[float], *, ranked: bool = False) -> str:
    """One row a method, one column for each model and retention, in percent; `ranked`: the best mean first."""
    columns: dict[str, dict[str, float]] = {}
    floors = set()
    for document in stored(f"{part}-*.json"):
        (model,) = document["models"]
        for retention in retentions:
            rows = [one for one in document["results"] if one["match"] == match and one["retention"] in (retention, 1)]
            columns[f"{model}, R = {100 * retention:g} %"] = {one["label"]: one["accuracy"] for one in rows}
            floors |= {one["label"] for one in rows if one["group"] == "floor"}
    labels = list(next(iter(columns.values())))
    if ranked:
        labels.sort(key=lambda label: (label in floors, -sum(column[label] for column in columns.values())))
    body = [[label, *(f"{100 * column[label]:.1f}" for column in columns.values())] for label in labels]
    return table([f"equal {'FLOPs' if match == 'flops' else 'tokens'}", *columns], body)
