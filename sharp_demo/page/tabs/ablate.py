"""Ablate: ShaRP's modules and its scoring layer switched on and off on the same clip, vanilla beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.board import Board
from sharp_demo.page.callbacks import Callbacks
from sharp_demo.page.controls import KNOBS, method_specs
from sharp_demo.page.tabs.parts import METHODS_INPUT, Collected, Controls, data_table, status_line, stream, wire
from sharp_demo.page.tokens import token_columns
from sharp_demo.records import Event, MethodSpec, Request, Result
from sharp_demo.views.colors import method_color
from sharp_demo.views.summary import format_ms, same_answer

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


class AblateView(Collected):
    """The table of switches and the token columns of one ablation."""

    def __init__(self, request: Request, callbacks: Callbacks, session: str | None) -> None:
        super().__init__(total=len(request.methods))
        self.specs = request.methods
        self.callbacks, self.session = callbacks, session
        self.board = Board.waiting(request.methods, strings.STARTING)

    def apply(self, event: Event) -> bool:
        super().apply(event)
        self.board.apply(event)
        self.callbacks.store_sprite(self.board, self.session)
        return True

    def outputs(self) -> list[Any]:
        if self.status.phase in ("stopped", "error"):
            self.board.stop(self.status.message)
        value = self.board.value()
        for column in value["columns"]:
            column["note"] = ""  # the table above says which switches are on
        return [self.table(), value]

    def idle(self) -> list[Any]:
        return [gr.skip(), gr.skip()]

    def table(self) -> dict[str, Any]:
        """One row per setting: the switches, the answer, and how far the kept tokens are those of all switches on."""
        results = {result.label: result for result in self.results if result.status == "done"}
        whole = next((one for one in results.values() if one.method == "sharp"), None)
        rows = []
        for spec in self.specs:
            result = results.get(spec.title)
            cells: list[Any] = [{"text": spec.title, "color": method_color(spec.name)}]
            cells += [_switch(spec, switch) for switch in SWITCHES]
            cells += self._outcome(result, whole) if result else [self.missing(spec.title)] * 5
            rows.append(cells)
        return {"caption": strings.ABLATE_CAPTION, "head": strings.ABLATE_HEAD, "rows": rows}

    def _outcome(self, result: Result, whole: Result | None) -> list[Any]:
        baseline = self.baseline
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
            _number(format_ms(result.latency_ms.prefill)),
        ]


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


def build_ablate(callbacks: Callbacks, inputs: Sequence[Any]) -> list[gr.Radio]:
    """Add the mode's controls and outputs to the current layout, wired to the shared inputs; return its own inputs."""
    gr.Markdown(strings.ABLATE_HELP)
    with gr.Row(elem_classes="mode-controls"):
        plan = gr.Radio(strings.ABLATE_CHOICES, value="one", label=strings.ABLATE_PLAN, elem_id="ablate-plan")
        controls = Controls.create("ablate", strings.ABLATE_RUN)
    status = status_line(strings.ABLATE_IDLE, elem_id="ablate-status")
    table = data_table(elem_id="ablate-table")
    columns = token_columns(None, elem_id="ablate-columns", elem_classes="mode-part")

    def request_of(values: Sequence[Any]) -> Request:
        *page, chosen = values
        (sharp,) = method_specs(("sharp",), page[-len(KNOBS) :])
        known = {name for _, name in strings.ABLATE_CHOICES}
        # The comparison's own methods do not matter here, and none may be ticked.
        page[METHODS_INPUT] = ["vanilla"]
        return ablation_request(callbacks.request_of(page), chosen if chosen in known else "one", sharp.options)

    def query(values: Sequence[Any]) -> str:
        *page, chosen = values
        return callbacks.query(page, mode="ablate", plan=chosen)

    def run(request: Request, caller: gr.Request) -> Iterator[list[Any]]:
        yield from stream(callbacks, request, AblateView(request, callbacks, caller.session_hash), caller)

    wire(callbacks, controls, status, [*inputs, plan], [table, columns], request_of, query, run)
    return [plan]
