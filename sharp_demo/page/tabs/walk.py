"""How it works: a walk through SegM, PosC and RegD on the clip at hand, with the numbers of this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from sharp_demo import strings
from sharp_demo.errors import MethodError
from sharp_demo.page.board import Board
from sharp_demo.page.components import component
from sharp_demo.page.controls import method_specs
from sharp_demo.page.inputs import Values
from sharp_demo.page.runs import Mode, Runs, Updates
from sharp_demo.page.tabs.ablate import MODULES
from sharp_demo.page.tabs.parts import mode_buttons, status_line
from sharp_demo.records import MethodSpec, Request, Result
from sharp_demo.views.figures import attention_per_frame
from sharp_demo.views.overlay import encode
from sharp_demo.views.summary import same_answer
from sharp_demo.views.walkthrough import FATES, Walk, change_of, heat_of, steps_of, walk_of


def walk_request(request: Request, options: Mapping[str, Any]) -> Request:
    """Return the request for vanilla and a traced ShaRP with all modules on. Raises MethodError at 100 %."""
    if request.retention >= 1:
        raise MethodError(strings.WALK_FULL)
    traced = {**options, **dict.fromkeys(MODULES, True), "trace": True}
    specs = (MethodSpec("vanilla", {}, strings.VANILLA), MethodSpec("sharp", traced, strings.SHARP))
    return replace(request, methods=specs, timing_s=0)


class Walkthrough(Mode):
    """The chapters and the plot of one walk; lays the tab out in the current layout."""

    name = "walk"

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        gr.Markdown(strings.WALK_HELP)
        self.controls = mode_buttons(self.name, strings.WALK_RUN)
        self.status = status_line(strings.WALK_IDLE, elem_id="walk-status")
        self.story = component("walk", elem_id="walk-story", elem_classes="mode-part")
        self.plot = gr.Plot(visible=False, show_label=False, elem_id="walk-plot")
        self.outputs = [self.story, self.plot]

    def request(self, values: Values) -> Request:
        (sharp,) = method_specs(("sharp",), values)
        return walk_request(self.runs.inputs.request({**values, "methods": ["vanilla"]}), sharp.options)

    def results(self, board: Board) -> Updates:
        sharp = next((one for one in board.results if one.method == "sharp" and one.trace), None)
        clip = board.clip(sharp.layout) if sharp else None
        if sharp is None or clip is None:
            return {self.story: None, self.plot: gr.Plot(visible=False)}
        layout = sharp.layout
        story = {
            "clip": clip,
            "frames": layout.frames,
            "rows": layout.rows,
            "cols": layout.cols,
            "fates": strings.WALK_FATES,
            "chapters": chapters_of(walk_of(sharp), sharp, board.baseline),
        }
        return {self.story: story, self.plot: gr.Plot(attention_per_frame(sharp), visible=True)}


def chapters_of(walk: Walk, result: Result, vanilla: Result | None) -> list[dict[str, Any]]:
    """Return the chapters: title, text, and the pictures to choose from (each with its own text)."""
    tokens, k = result.layout.tokens, len(walk.registers)
    cuts = {"cosines": walk.cosines, "tau": walk.tau_seg, "segments": walk.segments}
    segm = {
        "title": strings.WALK_SEGM,
        "text": strings.walk_segm(walk.cosines, walk.tau_seg, len(walk.segments)),
        "cuts": cuts,
        "mask": strings.walk_mask(walk.visible),
        "views": [],
    }
    heat = []
    for kind, values in result.scores.items():
        levels, low, high = heat_of(values)
        text = strings.walk_heat(kind, low, high)
        heat.append({"label": strings.WALK_SCORES[kind], "text": text, "codes": encode(levels), "heat": True})
    changed = strings.walk_change(len(walk.registers - walk.by_raw), k)
    change = {"label": strings.WALK_CHANGE, "text": changed, **_picture(change_of(walk, tokens))}
    posc = {
        "title": strings.WALK_POSC,
        "text": strings.walk_posc(result.config["penalty"], k, walk.late_frames, walk.late_raw, walk.late),
        "views": [*heat, *([change] if "debiased" in result.scores else [])],
    }
    counts = strings.walk_steps(
        k=k,
        others=tokens - k,
        prefiltered=len(walk.prefiltered),
        absorbed=len(walk.absorbed),
        pivots=len(walk.pivots),
        filled=len(walk.filled),
        repaired=len(walk.repaired),
        tau_filter=result.config["tau_filter"],
        tau_merge=result.config["tau_merge"],
    )
    regd = {
        "title": strings.WALK_REGD,
        "text": strings.walk_regd(k, tokens),
        "views": [
            {"label": strings.WALK_STEPS[name], "text": counts[name], **_picture(picture)}
            for name, picture in steps_of(walk, tokens)
        ],
    }
    same = vanilla is not None and same_answer(vanilla.answer, result.answer)
    end = {
        "title": strings.WALK_END,
        "text": strings.walk_end(result, vanilla, same),
        "views": [],
    }
    return [segm, posc, regd, end]


def _picture(picture: np.ndarray) -> dict[str, Any]:
    used = sorted(set(picture.tolist()))
    return {"codes": encode(picture), "heat": False, "fates": [FATES[code] for code in used]}
