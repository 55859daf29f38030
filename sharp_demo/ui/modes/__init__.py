"""The page's other modes: each on the same engine, the same clip and the same question as the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.ui.callbacks import Callbacks
from sharp_demo.ui.modes.ablate import build_ablate
from sharp_demo.ui.modes.benchmarks import build_benchmarks
from sharp_demo.ui.modes.parts import HIDDEN
from sharp_demo.ui.modes.sweep import build_sweep
from sharp_demo.ui.modes.walk import build_walk

CSS = (Path(__file__).parent / "modes.css").read_text("utf-8")


def build_modes(callbacks: Callbacks, inputs: Sequence[Any]) -> None:
    """Add one tab per mode to the current `gr.Tabs`; `inputs` are the page's, in the order `Callbacks` reads them."""
    modes = (
        ("ablate", strings.MODE_ABLATE, build_ablate),
        ("sweep", strings.MODE_SWEEP, build_sweep),
        ("walk", strings.MODE_WALK, build_walk),
    )
    for name, title, build in modes:
        with gr.Tab(title, id=name) as tab:
            build(callbacks, inputs)
        show_run_row(tab, False)
    with gr.Tab(strings.MODE_BENCHMARKS, id="benchmarks") as tab:
        build_benchmarks(callbacks.settings)
    show_run_row(tab, False)


def show_run_row(tab: gr.Tab, shown: bool) -> None:
    """Show the comparison's Run and Stop only while its own tab is selected: other modes have their own."""
    js = f"() => document.querySelector('#run-row')?.classList.toggle('other-mode', {str(not shown).lower()})"
    tab.select(None, None, None, js=js, **HIDDEN)
