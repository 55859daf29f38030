"""Kiosk: stored results at once, examples in a loop while nobody is there, and nothing left of who was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.callbacks import Callbacks, Finished
from sharp_demo.page.inputs import Example
from sharp_demo.page.stored import path_of, read_stored
from sharp_demo.page.tabs.parts import HIDDEN, component

# Set before the page is read again, so that a reload cannot bring a visitor's link back.
RELOAD = "() => { location.replace(location.pathname); }"
CSS = """
@media (min-width: 1000px) { .gradio-container { zoom: 1.25; } }
footer { display: none !important; }
#examples [role="group"] { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 260px;
  overflow-x: auto; padding-bottom: 6px; }
#examples small { display: none; }
"""


def build_kiosk(
    callbacks: Callbacks,
    examples: Sequence[Example],
    row: gr.HTML,
    chosen: Sequence[Any],
    shown: Sequence[Any],
    files: Sequence[Any],
) -> None:
    """Add the kiosk to the page: `row` shows stored results too, and idle time wipes and loops.

    `chosen` are the inputs an example sets: video, question, model; `shown` the comparison's outputs in the order of
    `Callbacks.outputs`; `files` components whose values name files that were made for a visitor.
    """
    settings = callbacks.settings
    value = {
        "idle_s": settings.kiosk_idle_s,
        "loop_s": settings.kiosk_loop_s,
        "count": len(examples),
        "banner": strings.KIOSK_BANNER,
        "hint": strings.KIOSK_HINT,
    }
    kiosk = component("kiosk", value, elem_id="kiosk", elem_classes="mode-part")
    wiped = gr.Number(0, visible=False)

    def show(event: gr.EventData, caller: gr.Request) -> list[Any]:
        index, visit = int(event.index), callbacks.visits.of(caller.session_hash)
        if visit.waiting or visit.running:  # its events would go on over the stored result
            gr.Warning(strings.KIOSK_BUSY)
            return [gr.skip()] * (len(chosen) + len(shown))
        if not 0 <= index < len(examples):
            return [gr.skip()] * (len(chosen) + len(shown))
        return show_stored(callbacks, examples[index], len(shown), caller.session_hash)

    def wipe(event: gr.EventData, caller: gr.Request, *values: Any) -> list[Any]:
        if int(event.index) != -1:
            return [gr.skip(), gr.skip()]
        wipe_files([*values, *map(str, callbacks.visits.forget(caller.session_hash))], callbacks.cache)
        callbacks.engine.forget()
        return [None, 1]

    finished = shown[FINISHED]
    kiosk.select(show, None, [*chosen, *shown], queue=False, **HIDDEN)
    row.select(show, None, [*chosen, *shown], queue=False, **HIDDEN)
    kiosk.select(wipe, [chosen[0], shown[0], *files], [finished, wiped], queue=False, **HIDDEN)
    wiped.change(None, None, None, js=RELOAD, **HIDDEN)


FINISHED = -4  # the place of the finished run among the comparison's outputs: before the three buttons


def show_stored(callbacks: Callbacks, example: Example, outputs: int, session: str | None) -> list[Any]:
    """Return video, question, model and the comparison's outputs for an example: its stored result, if there is one."""
    chosen = [str(example.video), example.question, callbacks.engine.example_model or gr.skip()]
    stored = read_stored(path_of(callbacks.settings.assets, example))
    if stored is None:
        return [*chosen, *[gr.skip()] * outputs]
    board = stored.board(example)
    request = replace(stored.request, video=str(example.video))
    finished = Finished(request, stored.results, stored.sprite, example.evidence, stored=True)
    return [*chosen, *callbacks.outputs(board, finished, session)]


def wipe_files(values: Sequence[Any], cache: Path) -> None:
    """Delete the files inside the page's cache that the components' values name (a path, or FileData anywhere)."""
    for path in map(Path, paths_in(values)):
        # Nothing outside the cache, whatever a browser sends; the examples' copies come back when they are needed.
        if path.resolve().is_relative_to(cache.resolve()) and path.is_file():
            path.unlink(missing_ok=True)


def paths_in(value: Any) -> list[str]:
    """Return every path that a component's value holds."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        own = [value["path"]] if isinstance(value.get("path"), str) else []
        return own + [path for part in value.values() if isinstance(part, dict | list) for path in paths_in(part)]
    if isinstance(value, list | tuple):
        return [path for part in value if isinstance(part, str | dict | list | tuple) for path in paths_in(part)]
    return []
