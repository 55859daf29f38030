"""The documents of `bench prefill` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.tables.names import PLAIN, content_title, label
from lab.tables.text import table
from sharp_demo.engine.timing import paired_ratio
from sharp_demo.records import Ratio

Document = dict[str, Any]
Result = dict[str, Any]

STAGE_TITLES = {
    "attn": "Attn.",
    "fltr": "Fltr.",
    "dedpl": "Dedpl.",
    "fil": "Fil.",
    "gather": "gather",
    "other": "other",
}


@dataclass(frozen=True)
class Section:
    """One table: title, header, rows, and what a reader must know to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def sections(document: Document) -> list[Section]:
    """All tables of one measurement."""
    timed = any(result.get("ttft") for result in document["results"])
    first = [first_token(document)] if timed else []
    return [*first, speed(document), stages(document), decoding(document)]


def first_token(document: Document) -> Section:
    """End to end from the frames: what is seen before the prefill, the ratio to vanilla, and the ratio's ceiling."""
    header = ["method", "first token ms", "of it before prefill", "prefill ms", "speed-up (rounds)", "ceiling"]
    header += ["added memory MB", "of vanilla"]
    added = {one["attention"]: one["added_bytes"] for one in document["results"] if one["method"] == "vanilla"}
    rows = []
    for result in document["results"]:
        if result["method"] == PLAIN:
            continue
        timed, pruned, whole = result["ttft"], result["method"] != "vanilla", added[result["attention"]]
        rows.append(
            [
                label(result, document),
                milliseconds(timed["ms"]["median"]),
                share(timed["before_prefill_ms"] / timed["ms"]["median"]),
                milliseconds(result["prefill_ms"]["median"]),
                ratio_text(Ratio(**timed["speedup"])) if pruned else "",
                ratio_text(Ratio(**timed["ceiling"])),
                megabytes(result["added_bytes"]),
                share(result["added_bytes"] / whole) if whole else "",
            ]
        )
    contains = document["setup"]["contains"]
    note = f"First token: {contains['first token']}. Added memory: {contains['added']}."
    return Section("Time to the first token", header, rows, note)


def speed(document: Document) -> Section:
    """Measured speed-up beside what exact arithmetic allows."""
    header = ["method", "prefill ms", "min", "spread", "speed-up (rounds)", "FLOPs ratio", "reached", "executed ratio"]
    by_cpu = any(result["speedup_in_cpu_time"] for result in document["results"])
    header += ["in CPU time", "reached"] if by_cpu else []
    rows = []
    for result in document["results"]:
        timed, flops = result["prefill_ms"], result["flops"]
        pruned = result["method"] not in (PLAIN, "vanilla")
        rows.append(
            [
                label(result, document),
                milliseconds(timed["median"]),
                milliseconds(timed["min"]),
                f"{timed['spread']:.1%}",
                ratio_text(Ratio(**result["speedup"])) if pruned else "",
                f"{flops['ratio']:.2f}x" if pruned else "",
                share(result["share_of_flops_ratio"]) if pruned else "",
                f"{flops['executed_ratio']:.2f}x" if pruned else "",
            ]
        )
        if by_cpu:
            ratio = Ratio(**result["speedup_in_cpu_time"])
            reached = None if ratio.value is None else ratio.value / flops["ratio"]
            rows[-1] += [ratio_text(ratio), share(reached)] if pruned else ["", ""]
    overhead = "; ".join(attached_overheads(document))
    return Section(
        "Prefill",
        header,
        rows,
        "Speed-up: median of vanilla / method within a round, and its range over the rounds. Reached: speed-up / FLOPs "
        "ratio."
        + (f" Vanilla attached / plain model: {overhead}." if overhead else "")
        + (f" In CPU time: the same from {document['setup']['contains']['CPU time']}." if by_cpu else ""),
    )


def attached_overheads(document: Document) -> list[str]:
    """Vanilla with the runtime attached over the plain model: by the clock, and in processor time where it is known."""
    lines = []
    for attention, ratio in document["attached_overhead"].items():
        whole = {one["method"]: one["cpu_time_ms"] for one in document["results"] if one["attention"] == attention}
        cpu = None
        if whole["vanilla"] and whole[PLAIN]:
            cpu = paired_ratio(whole["vanilla"]["samples"], whole[PLAIN]["samples"])
        lines.append(f"{attention} {ratio_text(Ratio(**ratio))}" + (f", in CPU time {ratio_text(cpu)}" if cpu else ""))
    return lines


def stages(document: Document) -> Section:
    """The columns of the ShaRP paper's Table 4, medians in milliseconds."""
    header = ["method", *STAGE_TITLES.values(), "LLM Fw.", "Total", "beside Fw., of vanilla", "bias, first use"]
    read = document.get("vision_scores_ms") is not None
    header += ["tower's scores", "of vanilla"] if read else []
    rows = []
    for result in document["results"]:
        if result["method"] == PLAIN:
            continue
        columns, setup = result["table_4"], result["bias_setup_ms"]
        rows.append(
            [
                label(result, document),
                *(milliseconds(columns[name]) if result["stages_ms"] else "" for name in STAGE_TITLES),
                milliseconds(columns["forward"]),
                milliseconds(columns["total"]),
                f"{result['beside_forward']['share_of_vanilla']:.2%}" if result["stages_ms"] else "",
                "" if setup is None else f"+{milliseconds(setup)}",
            ]
        )
        if read:
            scores = result["vision_scores"]
            rows[-1] += (
                ["", ""] if scores is None else [f"+{milliseconds(scores['ms'])}", f"{scores['share_of_vanilla']:.2%}"]
            )
    contains = document["setup"]["contains"]
    named = [f"{title} {contains[name]}" for name, title in STAGE_TITLES.items()]
    return Section(
        "Stages, milliseconds (columns of Table 4 of the paper)",
        header,
        rows,
        "; ".join([*named, f"LLM Fw. {contains['forward']}", f"bias, first use: {contains['bias_cold']}, once"])
        + (f"; tower's scores: {contains['vision_scores']}" if read else "")
        + ".",
    )


def decoding(document: Document) -> Section:
    """Time to the first token, time per further token, cache and memory."""
    header = ["method", "first token ms", "with vision", "vision share", "decode ms/token", "gain"]
    header += ["KV cache MB", "of vanilla", "peak MB", "added MB", "kept"]
    rows = []
    for result in document["results"]:
        if result["method"] == PLAIN:
            continue
        first, decode, gain = result["first_token_ms"], result["decode_ms_per_token"], result["decode_gain"]
        rows.append(
            [
                label(result, document),
                milliseconds(first["without_vision"]),
                milliseconds(first["with_vision"]),
                share(first["vision_share"]),
                "" if decode is None else f"{decode['median']:.1f}",
                "" if gain is None or result["method"] == "vanilla" else ratio_text(Ratio(**gain)),
                megabytes(result["kv_bytes"]),
                share(result["kv_share"]),
                megabytes(result["peak_bytes"]),
                megabytes(result["added_bytes"]),
                kept(result),
            ]
        )
    contains = document["setup"]["contains"]
    vision = document["vision_ms"]
    timed = f"vision tower timed {len(vision['samples'])} time(s)" if vision else "the vision tower was not timed"
    return Section(
        "First token, decoding and memory",
        header,
        rows,
        f"First token: prefill without video decoding; {timed}. Decode: {contains['decode']}. Peak: "
        f"{contains['peak']}; added: {contains.get('added', 'above what was in use before the prefill')}.",
    )


def kept(result: Result) -> str:
    """How many tokens were kept, and in what roles."""
    tokens = result["tokens"]
    roles = ", ".join(f"{count} {role}" for role, count in tokens["roles"].items() if role != "kept")
    return f"{tokens['kept']}" + (f" ({roles})" if roles else "")


def ratio_text(ratio: Ratio) -> str:
    """A ratio and the range of its rounds, or why there is none."""
    if ratio.value is None:
        return f"n/a ({ratio.refused})"
    return f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def about(document: Document) -> str:
    """What was measured and on what, in one paragraph."""
    setup = document["setup"]
    machine, versions = setup["machine"], setup["versions"]
    frames, rows, cols = setup["layout"]
    contents = {tuple(one["content"].values()): one["content"] for one in document["results"]}
    titles = " | ".join(content_title(content) for content in contents.values())
    attention = ", ".join(f"{name} ({reason})" for name, reason in setup["attention"].items())
    gpu = f", {machine['gpu']}" if "gpu" in machine and setup["device"].startswith("cuda") else ""
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in setup["notes"])
    return (
        f"{setup['config']}, {setup['layers']} decoder layers, {setup['visual_tokens']} visual tokens ({frames} x "
        f"{rows} x {cols}) and {setup['text_tokens']} text tokens; clip-like embeddings ({titles}); {setup['rounds']} "
        f"interleaved rounds after a warm-up, bias warm.{notes} {setup['device']}, {setup['dtype']}, "
        f"{setup['threads']} thread(s), attention {attention}; {machine['cores']} cores of {machine['cpu']}{gpu}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; commit {setup['commit']}, "
        f"seed {setup['seed']}."
    )


def markdown(document: Document, title: str = "Prefill benchmark", level: int = 1) -> str:
    """The document as a Markdown page."""
    marks = "#" * level
    parts = [f"{marks} {title}", "", about(document), ""]
    for section in sections(document):
        parts += [f"{marks}# {section.title}", "", table(section.header, section.rows), "", section.note, ""]
    return "\n".join(parts).rstrip() + "\n"
