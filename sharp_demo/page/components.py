"""Custom components. Their templates are static: data goes in as `value` and is written with textContent.

Gradio expands `${...}` and `{{...}}` inside a template *after* filling it in, so a question or an answer in a
template would run as code in the visitor's browser. These are functions and not subclasses of `gr.HTML` because
Gradio writes a .pyi file beside the source of every component class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sharp_demo import strings

HERE = Path(__file__).parent


def static_html(
    value: Any, *, markup: str, script: str, css: str = "", words: Mapping[str, Any] | None = None, **kwargs: Any
) -> gr.HTML:
    """Return a `gr.HTML` whose markup never depends on its value; the script finds `words` in STRINGS."""
    if words is not None:
        script = f"const STRINGS = {json.dumps(words)};\n{script}"
    return gr.HTML(value, html_template=markup, js_on_load=script, css_template=css, apply_default_css=False, **kwargs)


# Of the components whose scripts say something.
WORDS: dict[str, Mapping[str, Any]] = {
    "tokens": strings.THEATRE,
    "walk": strings.WALK,
    "table": {"table": strings.TABLE},
}


def component(name: str, value: Any = None, **kwargs: Any) -> gr.HTML:
    """Return the component whose static markup, script and style are `name`.html, .js and .css."""
    markup, script, css = ((HERE / kind / f"{name}.{kind}").read_text("utf-8") for kind in ("html", "js", "css"))
    return static_html(value, markup=markup, script=script, css=css, words=WORDS.get(name), **kwargs)


def token_columns(value: Any = None, **kwargs: Any) -> gr.HTML:
    """One card per method, the kept-token view over the frames, and the filmstrip; value: `Board.value()`."""
    return component("tokens", value, **kwargs)


PLAIN_SCRIPT = """
const draw = () => element.querySelector("p").textContent = props.value || "";
watch("value", draw);
draw();
"""
PLAIN_CSS = "p { margin: 0; font-size: 13px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }"


def plain_text(value: str = "", **kwargs: Any) -> gr.HTML:
    """One line of text that is never read as markup."""
    return static_html(value, markup="<p></p>", script=PLAIN_SCRIPT, css=PLAIN_CSS, **kwargs)


EXAMPLE_SCRIPT = """
const row = element.querySelector("div");
row.setAttribute("aria-label", STRINGS.label);
function draw() {
  row.replaceChildren();
  (props.value || []).forEach((example, index) => {
    const button = document.createElement("button");
    button.type = "button";
    const clip = document.createElement("video");
    clip.muted = clip.loop = clip.playsInline = true;
    clip.preload = "metadata";
    clip.tabIndex = -1;
    clip.src = example.video.url + "#t=0.5";
    const text = document.createElement("span");
    const question = document.createElement("strong");
    question.textContent = example.question;
    const note = document.createElement("small");
    note.textContent = example.note;
    text.append(question, note);
    button.append(clip, text);
    button.addEventListener("pointerenter", () => {
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) clip.play().catch(() => {});
    });
    button.addEventListener("pointerleave", () => clip.pause());
    button.addEventListener("click", () => {
      for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
      trigger("select", { index: index });
    });
    row.append(button);
  });
}
watch("value", draw);
draw();
"""
EXAMPLE_CSS = """
div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(250px, 100%), 1fr)); gap: 10px; }
button { display: flex; gap: 10px; align-items: center; text-align: left; padding: 6px; cursor: pointer; min-width: 0;
  border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--block-background-fill);
  color: var(--body-text-color); font: inherit; }
@media (max-width: 600px) {
  div { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 240px; overflow-x: auto;
    scroll-snap-type: x proximity; padding-bottom: 6px; }
  button { scroll-snap-align: start; }
}
button:hover, button[aria-pressed="true"] { border-color: #3d7ff0; box-shadow: inset 0 0 0 1px #3d7ff0; }
button:focus-visible { outline: 3px solid #3d7ff0; outline-offset: 2px; }
video { width: 84px; height: 63px; object-fit: cover; border-radius: 5px; background: #20242b; flex: none; }
span { display: flex; flex-direction: column; min-width: 0; }
strong { font-size: 14px; line-height: 1.3; }
small { font-size: 12px; line-height: 1.3; color: var(--body-text-color-subdued); }
"""


def example_row(value: Any = None, **kwargs: Any) -> gr.HTML:
    """Example clips with their questions as buttons; fires `select` with the `index` of the one clicked.

    value : [{"video": FileData, "question", "note"}].
    """
    markup = '<div role="group"></div>'
    words = {"label": strings.EXAMPLES}
    return static_html(value, markup=markup, script=EXAMPLE_SCRIPT, css=EXAMPLE_CSS, words=words, **kwargs)
