"""Custom components. Their templates are static: data goes in as `value` and is written with textContent.

Gradio expands `${...}` and `{{...}}` inside a template *after* filling it in, so a question or an answer in a
template would run as code in the visitor's browser. These are functions and not subclasses of `gr.HTML` because
Gradio writes a .pyi file next to the source of every component class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sharp_demo import strings

HERE = Path(__file__).parent
# The modules of a component's script in their order; where none are named, the file of its own name.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "theatre": (
        *("core", "painter", "cards", "layers", "pointer", "timeline", "filmstrip", "playback", "race", "picture"),
        "theatre",
    ),
    "walk": ("core", "walk"),
    "table": ("core", "table"),
    "examples": ("core", "examples"),
}
# What scripts say: they find it in STRINGS.
WORDS: dict[str, Mapping[str, Any]] = {
    "theatre": strings.THEATRE,
    "walk": strings.WALK,
    "table": {"table": strings.TABLE},
    "examples": {"label": strings.EXAMPLES},
}


def component(name: str, value: Any = None, **kwargs: Any) -> gr.HTML:
    """Return the component whose static markup and style are `name`.html and .css; its script is `script_of`."""
    markup, css = ((HERE / kind / f"{name}.{kind}").read_text("utf-8") for kind in ("html", "css"))
    return gr.HTML(
        value,
        html_template=markup,
        js_on_load=script_of(name),
        css_template=css,
        apply_default_css=False,
        **kwargs,
    )


def script_of(name: str) -> str:
    """Return a component's script: its words, and its modules one after another in one scope.

    A browser runs it as the body of a function, where `import` cannot stand; so the order is declared in `SCRIPTS`.
    """
    words = [f"const STRINGS = {json.dumps(WORDS[name])};\n"] if name in WORDS else []
    return "".join([*words, *((HERE / "js" / f"{one}.js").read_text("utf-8") for one in SCRIPTS.get(name, (name,)))])


def plot_code() -> str:
    """Return the name of the file with Gradio's code for charts; FileNotFoundError where this Gradio has none."""
    assets = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
    for path in assets.glob("PlotlyPlot-*.js"):
        return path.name
    raise FileNotFoundError(f"no PlotlyPlot-*.js in {assets}")


def token_columns(value: Any = None, **kwargs: Any) -> gr.HTML:
    """One card per method, the kept-token view over the frames, and the filmstrip; value: `Board.value()`."""
    return component("theatre", value, **kwargs)


def plain_text(value: str = "", **kwargs: Any) -> gr.HTML:
    """One line of text that is never read as markup."""
    return component("plain", value, **kwargs)


def example_row(value: Any = None, **kwargs: Any) -> gr.HTML:
    """Example clips with their questions as buttons; fires `select` with the `index` of the one clicked.

    value : [{"video": {"url"}, "question", "note"}].
    """
    return component("examples", value, **kwargs)
