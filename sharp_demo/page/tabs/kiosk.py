"""Kiosk: stored results at once, examples in a loop while nobody is there, and nothing left of who was."""

from __future__ import annotations

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.components import component
from sharp_demo.page.runs import HIDDEN, Runs, Updates
from sharp_demo.page.tabs.gallery import Gallery

# Set before the page is read again, so that a reload cannot bring a visitor's link back.
RELOAD_JS = "() => { location.replace(location.pathname); }"
KIOSK_TYPE_CSS = "@media (min-width: 1000px) { #main, #title, #examples { zoom: 1.25; } }"
KIOSK_CSS = """
footer { display: none !important; }
"""


def build_kiosk(runs: Runs, gallery: Gallery) -> None:
    """Add the kiosk to the page: idle time wipes what a visitor left and loops through the examples."""
    settings = runs.settings
    value = {
        "idle_s": settings.kiosk_idle_s,
        "loop_s": settings.kiosk_loop_s,
        "count": len(gallery.examples),
        "banner": strings.KIOSK_BANNER,
        "hint": strings.KIOSK_HINT,
    }
    kiosk = component("kiosk", value, elem_id="kiosk", elem_classes="mode-part")
    wiped = gr.Number(0, visible=False)

    def wipe(event: gr.EventData, caller: gr.Request) -> Updates:
        if int(event.index) != -1:
            return {wiped: gr.skip()}
        runs.forget(caller.session_hash)
        return {wiped: 1}

    gallery.wire(kiosk)
    kiosk.select(wipe, None, wiped, queue=False, **HIDDEN)
    wiped.change(None, None, None, js=RELOAD_JS, **HIDDEN)
