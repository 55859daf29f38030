"""How it works: a walk through SegM, PosC and RegD on the clip at hand, with the numbers of this run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData

from sharp_demo import strings
from sharp_demo.errors import MethodError
from sharp_demo.page.callbacks import Callbacks
from sharp_demo.page.controls import KNOBS, method_specs
from sharp_demo.page.tabs.ablate import MODULES
from sharp_demo.page.tabs.parts import METHODS_INPUT, Collected, Controls, component, status_line, stream, wire
from sharp_demo.records import MethodSpec, Request, Result
from sharp_demo.views.figures import attention_per_frame
from sharp_demo.views.overlay import encode, frame_of_clip
from sharp_demo.views.summary import same_answer
from sharp_demo.views.walkthrough import FATES, Walk, change_of, heat_of, steps_of, walk_of


def walk_request(request: Request, options: dict[str, Any]) -> Request:
    """Return the request for vanilla and a traced ShaRP with all modules on. Raises MethodError at 100 %."""
    if request.retention >= 1:
        raise MethodError(strings.WALK_FULL)
    traced = {**options, **dict.fromkeys(MODULES, True), "trace": True}
    specs = (MethodSpec("vanilla", {}, strings.VANILLA), MethodSpec("sharp", traced, strings.SHARP))
    return replace(request, methods=specs, prefills=1)


class WalkView(Collected):
    """The chapters and the plot of one walk."""

    def __init__(self, request: Request, callbacks: Callbacks, session: str | None) -> None:
        super().__init__(total=len(request.methods))
        self.callbacks, self.session = callbacks, session
        self.path = ""

    def outputs(self) -> list[Any]:
        sharp = next((one for one in self.results if one.method == "sharp" and one.trace), None)
        if sharp is None or self.sprite is None:
            return [None, gr.Plot(visible=False)]
        if not self.path:  # once: the browser may be reading the file when the next event comes
            self.path = self.callbacks.save_frames(self.sprite, self.session)
        layout = sharp.layout
        clip = {
            "sprite": FileData(path=self.path, mime_type="image/jpeg").model_dump(),
            "per_row": self.sprite.per_row,
            "width": self.sprite.width,
            "height": self.sprite.height,
            "shown": frame_of_clip(layout, self.sampled),
            "timestamps": list(layout.timestamps),
        }
        grid = {"frames": layout.frames, "rows": layout.rows, "cols": layout.cols}
        chapters = chapters_of(walk_of(sharp), sharp, self.baseline)
        value = {"clip": clip, **grid, "fates": strings.WALK_FATES, "chapters": chapters}
        return [value, gr.Plot(attention_per_frame(sharp), visible=True)]

    def idle(self) -> list[Any]:
        return [gr.skip(), gr.skip()]


def chapters_of(walk: Walk, result: Result, vanilla: Result | None) -> list[dict[str, Any]]:
    """Return the chapters: title, text, and the pictures to choose from (each with its own text)."""
    tokens = result.layout.tokens
    cuts = {"cosines": walk.cosines, "tau": walk.tau_seg, "segments": walk.segments}
    segm = {
        "title": strings.WALK_SEGM,
        "text": strings.walk_segm(walk, result.layout.frames),
        "cuts": cuts,
        "mask": strings.walk_mask(walk.visible),
        "views": [],
    }
    heat = []
    for kind, values in result.scores.items():
        levels, low, high = heat_of(values)
        text = strings.walk_heat(kind, low, high)
        heat.append({"label": strings.WALK_SCORES[kind], "text": text, "codes": encode(levels), "heat": True})
    change = {"label": strings.WALK_CHANGE, "text": strings.walk_change(walk), **_picture(change_of(walk, tokens))}
    posc = {
        "title": strings.WALK_POSC,
        "text": strings.walk_posc(walk, result.config["penalty"], len(walk.registers)),
        "views": [*heat, *([change] if "debiased" in result.scores else [])],
    }
    counts = strings.walk_steps(walk, tokens, result.config)
    regd = {
        "title": strings.WALK_REGD,
        "text": strings.walk_regd(len(walk.registers), tokens),
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


def build_walk(callbacks: Callbacks, inputs: Sequence[Any]) -> list[gr.Radio]:
    """Add the mode's controls and outputs to the current layout, wired to the shared inputs; it has none of its own."""
    gr.Markdown(strings.WALK_HELP)
    controls = Controls.create("walk", strings.WALK_RUN)
    status = status_line(strings.WALK_IDLE, elem_id="walk-status")
    story = component("walk", elem_id="walk-story", elem_classes="mode-part")
    plot = gr.Plot(visible=False, show_label=False, elem_id="walk-plot")

    def request_of(values: Sequence[Any]) -> Request:
        page = list(values)
        (sharp,) = method_specs(("sharp",), page[-len(KNOBS) :])
        page[METHODS_INPUT] = ["vanilla"]
        return walk_request(callbacks.request_of(page), dict(sharp.options))

    def query(values: Sequence[Any]) -> str:
        return callbacks.query(values, mode="walk")

    def run(request: Request, caller: gr.Request) -> Iterator[list[Any]]:
        yield from stream(callbacks, request, WalkView(request, callbacks, caller.session_hash), caller)

    wire(callbacks, controls, status, inputs, [story, plot], request_of, query, run)
    return []
