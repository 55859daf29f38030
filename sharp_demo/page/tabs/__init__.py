"""The page's tabs: each asks the same engine about the same clip and the same question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.runs import HIDDEN, Controls, Runs
from sharp_demo.page.tabs.ablate import Ablate
from sharp_demo.page.tabs.benchmarks import build_benchmarks
from sharp_demo.page.tabs.compare import Compare
from sharp_demo.page.tabs.sweep import Sweep
from sharp_demo.page.tabs.walk import Walkthrough


def build_tabs(runs: Runs, controls: Controls) -> tuple[gr.Tabs, Compare]:
    """Add the tabs to the current layout; `controls` are the comparison's, which stand with the inputs."""
    with gr.Tabs(elem_id="modes", overflow_behavior="wrap") as tabs:
        with _tab("compare", strings.MODE_COMPARE):
            compare = Compare(runs, controls)
        with _tab("ablate", strings.MODE_ABLATE):
            ablate = Ablate(runs)
        with _tab("sweep", strings.MODE_SWEEP):
            sweep = Sweep(runs)
        with _tab("walk", strings.MODE_WALK):
            walk = Walkthrough(runs)
        with _tab("benchmarks", strings.MODE_BENCHMARKS):
            build_benchmarks(runs.settings)
    for mode in (compare, ablate, sweep, walk):
        runs.wire(mode)
    return tabs, compare


@contextmanager
def _tab(name: str, title: str) -> Iterator[None]:
    """A tab that, opened, puts its mode into the address and shows the comparison's buttons in their own tab only."""
    with gr.Tab(title, id=name) as tab:
        yield
    opened_js = f"""() => {{
      window.sharpAddress.mode("{name}");
      document.querySelector("#run-row")?.classList.toggle("other-mode", {str(name != "compare").lower()});
    }}"""
    tab.select(None, None, None, js=opened_js, **HIDDEN)
