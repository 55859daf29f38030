"""Ablate: ShaRP's modules and its scoring layer switched on and off on the same clip, next to vanilla."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.board import Board
from sharp_demo.page.components import token_columns
from sharp_demo.page.controls import method_specs
from sharp_demo.page.inputs import Values
from sharp_demo.page.runs import Mode, Runs, Updates
from sharp_demo.page.tabs.parts import data_table, mode_buttons, open_cell, status_line
from sharp_demo.records import MethodSpec, Request, Result
from sharp_demo.views.colors import method_color
from sharp_demo.views.summary import format_measured, format_ms, same_answer

MODULES = ("segm", "posc", "regd")
SWITCHES = (*MODULES, "score_layer")
ON: dict[str, Any] = {"segm": True, "posc": True, "regd": True, "score_layer": "lookahead"}
OFF = {"segm": False, "posc": False, "regd": False, "score_layer": "first"}


def plan_of(name: str) -> list[dict[str, Any]]:
    """Return the settings of the switches a plan runs, all on first.

    "one": each switch off alone, then all modules off; "paper": the rows of the paper's Table 5; "all": every
    combination of the modules; "both": the same with either scoring layer.
    """
    if name == "one":
        return [ON, *({**ON, switch: OFF[switch]} for switch in SWITCHES), {**OFF, "score_layer": "lookahead"}]
    if name == "paper":
        rows = ("segm posc regd", "posc regd", "segm posc", "segm regd", "posc", "")
        return [{**ON, **{module: module in row.split() for module in MODULES}} for row in rows]
    layers = ("lookahead", "first") if name == "both" else ("lookahead",)
    return [
        {**dict(zip(MODULES, modules, strict=True)), "score_layer": layer}
        for layer, modules in product(layers, product((True, False), repeat=3))
    ]


def ablation_request(request: Request, plan: str, options: Mapping[str, Any]) -> Request:
    """Return one request that holds vanilla and ShaRP with every setting of the plan.

    `options` are ShaRP's other options, the same in every column.
    """
    specs = [MethodSpec("vanilla", {}, strings.VANILLA)]
    rest = {name: value for name, value in options.items() if name not in SWITCHES}
    for setting in plan_of(plan):
        specs.append(MethodSpec("sharp", {**rest, **setting}, strings.variant(setting)))
    return replace(request, methods=tuple(specs))


class Ablate(Mode):
    """The table of switches and the token columns of one ablation; lays the tab out in the current layout."""

    name = "ablate"

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        gr.Markdown(strings.ABLATE_HELP)
        with gr.Row(elem_classes="mode-controls"):
            runs.inputs.place("plan")
            self.controls = mode_buttons(self.name, strings.ABLATE_RUN)
        self.status = status_line(strings.ABLATE_IDLE, elem_id="ablate-status")
        self.table = data_table(elem_id="ablate-table")
        self.columns = token_columns(None, elem_id="ablate-columns", elem_classes="mode-part")
        self.outputs = [self.table, self.columns]

    def request(self, values: Values) -> Request:
        (sharp,) = method_specs(("sharp",), values)
        known = {name for _, name in strings.ABLATE_CHOICES}
        plan = values["plan"] if values["plan"] in known else "one"
        # The comparison's own methods do not matter here, and none may be ticked.
        return ablation_request(self.runs.inputs.request({**values, "methods": ["vanilla"]}), plan, sharp.options)

    def live(self, board: Board) -> Updates:
        value = {**board.value(), "asked": None, "verdict": ""}  # the table says both
        for column in value["columns"]:
            column["note"] = ""  # the table above says which switches are on
        return {**super().live(board), self.columns: value}

    def results(self, board: Board) -> Updates:
        return {self.table: ablation_table(board)}


def ablation_table(board: Board) -> dict[str, Any]:
    """One row per setting: the switches, the answer, and how far the kept tokens are those of all switches on."""
    results = {result.label: result for result in board.results if result.status == "done"}
    whole = next((one for one in results.values() if one.method == "sharp"), None)
    rows = []
    for spec in board.request.methods if board.request else ():
        result = results.get(spec.title)
        cells: list[Any] = [{"text": spec.title, "color": method_color(spec.name)}]
        cells += [_switch(spec, switch) for switch in SWITCHES]
        cells += _outcome(result, board, whole) if result else [open_cell(board, spec.title)] * 5
        rows.append(cells)
    return {"caption": strings.ABLATE_CAPTION, "head": strings.ABLATE_HEAD, "rows": rows}


def _outcome(result: Result, board: Board, whole: Result | None) -> list[Any]:
    baseline = board.baseline
    same = baseline is not None and same_answer(result.answer, baseline.answer)
    answer = result.answer.strip() or strings.EMPTY_ANSWER
    sure = result.first_token_prob
    pruned = result.method == "sharp" and whole is not None
    return [
        {
            "text": answer if same or baseline is None else f"✗ {answer}",
            "kind": "open" if baseline is None else "same" if same else "differs",
        },
        _number("" if sure is None else f"{sure:.3f}"),
        _number(strings.percent(common(result, whole)) if pruned and whole else ""),
        _number(f"{sum(map(bool, result.kept))} / {result.layout.frames}"),
        _prefill(result, pending=not board.over),
    ]


def _prefill(result: Result, *, pending: bool) -> dict[str, str]:
    """Return the cell of a prefill's time and speed-up, which the timing rounds tell."""
    if pending and not result.latency_ms.rounds:
        return _number(strings.TO_BE_TIMED)
    note = format_measured(result.speedup.prefill) if result.speedup else ""
    return {**_number(format_ms(result.latency_ms.prefill)), "note": note}


def common(result: Result, other: Result) -> float:
    """Return the share of a result's kept tokens that another one kept too."""
    kept = {(frame, token) for frame, tokens in enumerate(result.kept) for token in tokens}
    others = {(frame, token) for frame, tokens in enumerate(other.kept) for token in tokens}
    return len(kept & others) / max(len(kept), 1)


def _switch(spec: MethodSpec, switch: str) -> dict[str, str]:
    if spec.name != "sharp":
        return {"text": "", "kind": "open"}
    if switch == "score_layer":
        return {"text": strings.SCORE_LAYERS[spec.options[switch]], "kind": "number"}
    return {"text": strings.ON, "kind": "on"} if spec.options[switch] else {"text": strings.OFF, "kind": "off"}


def _number(text: str) -> dict[str, str]:
    return {"text": text, "kind": "number"}
