"""Attention over time, and what methods keep of it, as a page."""

from __future__ import annotations

from typing import Any

from lab.tables.text import percent, table

CURVES = ("raw", "bias", "debiased")


def markdown(document: dict[str, Any]) -> str:
    """Everything a reader needs of one model's attention over time."""
    setup, chance = document["setup"], document["chance_by_third"]

    def interval(entry: dict[str, Any]) -> str:
        low, high = entry["ci95"]
        return f"{percent(entry['mean'])} ({percent(low)} to {percent(high)})"

    attention_rows = [
        [
            str(entry["layer"]),
            percent(entry["visual_attention"]),
            percent(entry["evidence_share"]),
            interval(entry["raw"]["late_share"]),
            interval(entry["bias"]["late_share"]),
            *(interval(entry[name]["late_of_top"]) for name in CURVES),
        ]
        for entry in document["layers"]
    ]
    kept_rows = [[one["label"], *map(percent, one["by_third"][:2]), interval(one["late"])] for one in document["kept"]]
    frames = [str(frame) for frame in range(document["frames"])]
    top = f"top {100 * setup['kept_at']:g} %"
    parts = [
        f"# Attention over time in {setup['model']['name']}",
        "",
        f"{document['questions']} questions about {document['clips']} clips, split `{setup['split']}`, seed"
        f" {setup['seed']}; in percent, with 95 % intervals by clip. The last third of the clip is"
        f" {percent(chance[2])} % of the frames: that is what no preference for a time would give.",
        f"Weights `{setup['model']['weights_sha256'][:12]}`, commit `{setup['commit']}`.",
        "",
        "## The last prompt token's attention, layer by layer",
        "",
        "Attention that goes to the video at all; the share of it on the tokens that hold the answer; the share on the"
        f" last third, on the clip and on a black video; how much of the {top} tokens lies in the last third when they"
        f" are chosen by the attention, by its bias, and by attention - {setup['penalty']:g} x bias.",
        "",
        table(
            ["layer", "on the video", "on the evidence", "late, raw", "late, black video",
             f"late of {top}, raw", f"late of {top}, bias", f"late of {top}, debiased"],
            attention_rows,
        ),
        "",
        f"## What methods keep at R = {100 * setup['kept_at']:g} %",
        "",
        table(["method", "early", "middle", "late"], kept_rows),
        "",
        "## Attention by frame",
    ]  # fmt: skip
    for name in CURVES:
        rows = [
            [str(entry["layer"]), *(f"{100 * value:.2f}" for value in entry[name]["by_frame"])]
            for entry in document["layers"]
        ]
        parts += ["", f"{name.capitalize()}, percent of all attention:", "", table(["layer", *frames], rows)]
    return "\n".join(parts) + "\n"
