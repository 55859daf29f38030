"""The page's other modes: each on the same engine, the same clip and the same question as the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.callbacks import Callbacks
from sharp_demo.page.tabs.ablate import build_ablate
from sharp_demo.page.tabs.benchmarks import build_benchmarks
from sharp_demo.page.tabs.parts import HIDDEN
from sharp_demo.page.tabs.sweep import build_sweep
from sharp_demo.page.tabs.walk import build_walk

CSS = (Path(__file__).parents[1] / "css" / "modes.css").read_text("utf-8")


def build_modes(callbacks: Callbacks, inputs: Sequence[Any]) -> list[gr.Radio]:
    """Add one tab per mode to the current `gr.Tabs`; return the modes' own inputs in the order of `link.CHOICES`.

    `inputs` are the page's, in the order `Callbacks` reads them.
    """
    modes = (
        ("ablate", strings.MODE_ABLATE, build_ablate),
        ("sweep", strings.MODE_SWEEP, build_sweep),
        ("walk", strings.MODE_WALK, build_walk),
    )
    own = []
    for name, title, build in modes:
        with gr.Tab(title, id=name) as tab:
            own += build(callbacks, inputs)
        when_opened(tab, name)
    with gr.Tab(strings.MODE_BENCHMARKS, id="benchmarks") as tab:
        build_benchmarks(callbacks.settings)
    when_opened(tab, "benchmarks")
    return own


def when_opened(tab: gr.Tab, name: str) -> None:
    """Put the mode into the address, and show the comparison's Run and Stop in its own tab only."""
    js = f"""() => {{
      window.sharpAddress.mode("{name}");
      document.querySelector("#run-row")?.classList.toggle("other-mode", {str(name != "compare").lower()});
    }}"""
    tab.select(None, None, None, js=js, **HIDDEN)
