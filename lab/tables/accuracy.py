"""The evaluation document as Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.stats import ClipBootstrap
from lab.tables.text import percent, table, with_interval

Document = dict[str, Any]
Result = dict[str, Any]

MATCHED = {
    "tokens": "Equal tokens: every method keeps the same share of the visual tokens",
    "flops": "Equal FLOPs: every method has the budget at which it should cost what FastV (K=2) costs at that share",
    "ttft": "Equal cost to the first token: as before, with the vision tower, which some methods spare",
}
OFF = 0.05  # a method this far from the cost it was matched to is marked
OFF_NOTE = (
    "FLOPs are those of what was kept, in percent of vanilla's, paper convention. \\* More than 5 % off FastV's: the"
    " budget is solved for before the video is seen; this method's counts then depend on the video, or are whole tokens"
    " of every frame."
)
EVIDENCE_NOTE = (
    "Percentage of the tokens that hold the answer and are kept; {}. Questions whose answer any token of a scene shows"
    " are left out."
)
MERGED = "after a plus sign, of those that are averaged into a token that is kept"
NOT_MERGED = "what is averaged into another token does not count"  # in documents from before it was measured
POSITIONS = ("early", "middle", "late", "all")


def markdown(document: Document, title: str) -> str:
    """Everything a reader needs of one evaluated model: accuracies, what they rest on, and differences."""
    parts = [f"# {title}", "", *about(document), ""]
    for match in document["setup"]["matches"]:
        parts += [f"## {MATCHED[match]}", "", accuracy_table(document, match), ""]
    low = min(document["setup"]["retentions"], key=lambda retention: abs(retention - 0.05))
    match = document["setup"]["matches"][0]
    at = f"at R = {100 * low:g} %, equal {'tokens' if match == 'tokens' else 'FLOPs'}"
    parts += [
        f"## Evidence kept, equal {'tokens' if match == 'tokens' else 'FLOPs'}",
        "",
        evidence_table(document, match),
        "",
    ]
    parts += [f"## By position of the evidence, {at}", "", position_table(document, match, low), ""]
    parts += [f"## By kind of question, {at}", "", kind_table(document, match, low), ""]
    for match in document["setup"]["matches"]:
        if versus := versus_table(document, match):
            parts += [
                f"## ShaRP against the others, equal {'tokens' if match == 'tokens' else 'FLOPs'}",
                "",
                versus,
                "",
            ]
    for gap in document["unreachable"]:
        parts.append(f"Not run: {gap['method']} at R = {100 * gap['retention']:g} %, {gap['match']}: {gap['why']}")
    return "\n".join(parts).rstrip() + "\n"


def about(document: Document) -> list[str]:
    setup, asked = document["setup"], document["questions"]
    model, machine = setup["model"], setup["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    trained = "" if model["trained"] else " **The model is untrained: these figures mean nothing.**"
    return [
        f"{asked['n']} questions about {asked['clips']} synthetic clips, split `{setup['split']}`, seed"
        f" {setup['seed']}; the same for every line. Exact match of the whole reply, in percent, with the 95 % interval"
        " of a bootstrap by clip. Random draws one subset a clip. R is the share of visual tokens kept."
        f"{trained}",
        "",
        f"Model {model['name']} ({model['parameters']:,} parameters, weights `{model['weights_sha256'][:12]}`),"
        f" {model['device']}, {model['dtype']}, {model['attention_backend']}; commit `{setup['commit']}`; {versions};"
        f" {machine['cores']} cores of {machine['cpu']}.",
        "",
        "Question kinds: " + ", ".join(f"{kind} {count}" for kind, count in asked["by_kind"].items()) + ".",
    ]


def differences_to(document: Document, match: str, reference: str) -> str:
    """Paired differences in accuracy of every method to one of them, in percent points, by retention."""
    clips = np.array([asked[0] for asked in document["questions"]["asked"]])
    bootstrap = ClipBootstrap(clips, seed=document["setup"]["seed"])
    results = _pick(document, match)
    base = {one["retention"]: _verdicts(one) for one in results if one["method"] == reference}
    rows = []
    for name in dict.fromkeys(one["method"] for one in results if one["group"] != "reference"):
        mine = {one["retention"]: one for one in results if one["method"] == name}
        cells = []
        for retention in document["setup"]["retentions"]:
            there = retention in mine and retention in base
            cells.append(
                with_interval(*bootstrap.difference(_verdicts(mine[retention]), base[retention]), "+") if there else ""
            )
        rows.append([next(iter(mine.values()))["label"], *cells])
    return table(["method", *(f"R = {100 * one:g} %" for one in document["setup"]["retentions"])], rows)


def _verdicts(result: Result) -> np.ndarray:
    return np.array([float(verdict) for verdict in result["right"]])


def _pick(document: Document, match: str, retention: float | None = None) -> list[Result]:
    return [
        result
        for result in document["results"]
        if result["match"] == match
        and (retention is None or result["retention"] == retention or result["group"] == "reference")
    ]


def accuracy_table(document: Document, match: str) -> str:
    """One row per method, one column per retention; FLOPs in percent of vanilla's, paper convention."""
    retentions = document["setup"]["retentions"]
    results = _pick(document, match)
    fastv = {one["retention"]: one["tflops_ratio"] for one in results if one["method"] == "fastv"}
    rows = []
    for name in dict.fromkeys(result["method"] for result in results):
        mine = {result["retention"]: result for result in results if result["method"] == name}
        label = next(iter(mine.values()))["label"]
        if mine.keys() == {1.0} and 1.0 not in retentions:
            one = mine[1.0]
            rows.append([label, with_interval(one["accuracy"], one["ci95"]), *[""] * (len(retentions) - 1)])
            continue
        cells = [mine.get(retention) for retention in retentions]
        rows.append([label, *("" if one is None else _cell(one, match, fastv) for one in cells)])
    made = table(["method", *(f"R = {100 * retention:g} %" for retention in retentions)], rows)
    return f"{made}\n\n{OFF_NOTE}" if "\\*" in made else made


def _cell(result: Result, match: str, fastv: dict[float, float]) -> str:
    """Accuracy; at equal FLOPs what was kept and what that cost too, marked where it is off `fastv`'s cost."""
    accuracy, cost = with_interval(result["accuracy"], result["ci95"]), result["tflops_ratio"]
    if match == "tokens":
        return accuracy
    target = fastv.get(result["retention"], cost)
    mark = "\\*" if result["group"] != "reference" and abs(cost / target - 1) > OFF else ""
    return f"{accuracy}, keeps {percent(result['kept_share'])} %, FLOPs {percent(cost)} %{mark}"


def evidence_table(document: Document, match: str) -> str:
    """What was kept of the tokens that hold the answer, one row per method, one column per retention."""
    retentions, results = document["setup"]["retentions"], _pick(document, match)
    rows = []
    for name in dict.fromkeys(result["method"] for result in results if result["group"] != "reference"):
        mine = {result["retention"]: result for result in results if result["method"] == name}
        cells = [mine.get(retention) for retention in retentions]
        rows.append([next(iter(mine.values()))["label"], *("" if one is None else _evidence(one) for one in cells)])
    measured = all("evidence_merged" in result for result in results)
    made = table(["method", *(f"R = {100 * retention:g} %" for retention in retentions)], rows)
    return f"{EVIDENCE_NOTE.format(MERGED if measured else NOT_MERGED)}\n\n{made}"


def _evidence(result: Result) -> str:
    merged = result.get("evidence_merged")
    return percent(result["evidence_kept"]) + (f" + {percent(merged)}" if merged else "")


def position_table(document: Document, match: str, retention: float) -> str:
    """Accuracy by the third of the clip that holds the evidence, and what was kept of it and where."""
    header = ["method", *POSITIONS, "evidence tokens kept", "kept early", "kept middle", "kept late", "FLOPs"]
    rows = [
        [
            result["label"],
            *(percent(result["by_position"].get(position)) for position in POSITIONS),
            percent(result["evidence_kept"]),
            *(percent(share) for share in result["kept_by_third"]),
            percent(result["tflops_ratio"]),
        ]
        for result in _pick(document, match, retention)
    ]
    return table(header, rows)


def kind_table(document: Document, match: str, retention: float) -> str:
    """Accuracy by kind of question."""
    kinds = list(document["questions"]["by_kind"])
    rows = [
        [result["label"], *(percent(result["by_kind"][kind]) for kind in kinds)]
        for result in _pick(document, match, retention)
    ]
    return table(["method", *kinds], rows)


def versus_table(document: Document, match: str) -> str:
    """Paired differences of the default ShaRP to the best other method, to random and to vanilla."""
    rows = []
    for result in _pick(document, match):
        if result["method"] == "sharp":
            cells = [result["versus"].get(name) for name in ("best", "random", "vanilla")]
            rows.append(
                [
                    f"R = {100 * result['retention']:g} %",
                    *(
                        "" if one is None else with_interval(one["difference"], one["ci95"], "+") + f", {one['method']}"
                        for one in cells
                    ),
                ]
            )
    return table(["", "best other method", "random, same cut", "vanilla"], rows) if rows else ""
