"""Kiosk: stored results at once, examples in a loop while nobody is there, and nothing left of who was."""

from __future__ import annotations

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.components import component
from sharp_demo.page.examples import Example
from sharp_demo.page.runs import HIDDEN, Runs, Updates
from sharp_demo.page.stored import path_of, read_stored
from sharp_demo.page.tabs.compare import Compare

# Set before the page is read again, so that a reload cannot bring a visitor's link back.
RELOAD_JS = "() => { location.replace(location.pathname); }"
KIOSK_CSS = """
@media (min-width: 1000px) { .gradio-container { zoom: 1.25; } }
footer { display: none !important; }
#examples [role="group"] { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 260px;
  overflow-x: auto; padding-bottom: 6px; }
#examples small { display: none; }
"""


def build_kiosk(runs: Runs, compare: Compare, row: gr.HTML) -> None:
    """Add the kiosk to the page: `row`, the examples, shows stored results too, and idle time wipes and loops."""
    settings, examples = runs.settings, runs.inputs.examples
    value = {
        "idle_s": settings.kiosk_idle_s,
        "loop_s": settings.kiosk_loop_s,
        "count": len(examples),
        "banner": strings.KIOSK_BANNER,
        "hint": strings.KIOSK_HINT,
    }
    kiosk = component("kiosk", value, elem_id="kiosk", elem_classes="mode-part")
    wiped = gr.Number(0, visible=False)

    def show(event: gr.EventData, caller: gr.Request) -> Updates:
        index, visit = int(event.index), runs.visits.of(caller.session_hash)
        if visit.waiting or visit.running:  # its events would go on over the stored result
            gr.Warning(strings.KIOSK_BUSY)
        elif 0 <= index < len(examples):
            return show_stored(runs, compare, examples[index], caller.session_hash)
        return {compare.status: gr.skip()}

    def wipe(event: gr.EventData, caller: gr.Request) -> Updates:
        if int(event.index) != -1:
            return {wiped: gr.skip()}
        runs.forget(caller.session_hash)
        return {wiped: 1}

    shown = [*runs.inputs.example_controls(), compare.status, *compare.controls.all(), *compare.outputs]
    for source in (kiosk, row):
        source.select(show, None, shown, queue=False, **HIDDEN)
    kiosk.select(wipe, None, wiped, queue=False, **HIDDEN)
    wiped.change(None, None, None, js=RELOAD_JS, **HIDDEN)


def show_stored(runs: Runs, compare: Compare, example: Example, session: str | None) -> Updates:
    """Return the updates for an example: its clip and question, and its stored result, if there is one."""
    chosen = runs.inputs.choose(example)
    stored = read_stored(path_of(runs.settings.assets, example))
    return chosen if stored is None else {**chosen, **compare.stored(stored.board(example), session)}
