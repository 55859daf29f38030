"""Custom components. Their templates are static: data goes in as `value` and is written with textContent.

Gradio expands `${...}` and `{{...}}` inside a template *after* filling it in, so a question or an answer in a
template would run as code in the visitor's browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent


class StaticHTML(gr.HTML):
    """A `gr.HTML` whose markup never depends on its value."""

    def __init__(self, value: Any = None, *, markup: str, script: str, css: str = "", **kwargs: Any) -> None:
        super().__init__(
            value,
            html_template=markup,
            js_on_load=script,
            css_template=css,
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "internal"}


class TokenColumns(StaticHTML):
    """One card per method, the kept-token view over the frames, and the filmstrip; value: `Board.value()`."""

    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        super().__init__(
            value,
            markup=(HERE / "tokens.html").read_text("utf-8"),
            script=(HERE / "tokens.js").read_text("utf-8"),
            css=(HERE / "tokens.css").read_text("utf-8"),
            **kwargs,
        )


class PlainText(StaticHTML):
    """One line of text that is never read as markup."""

    SCRIPT = (
        "const draw = () => element.querySelector('p').textContent = props.value || ''; watch('value', draw); draw();"
    )

    def __init__(self, value: str = "", **kwargs: Any) -> None:
        super().__init__(
            value,
            markup="<p></p>",
            script=self.SCRIPT,
            css="p { margin: 0; font-size: 13px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }",
            **kwargs,
        )


class ExampleRow(StaticHTML):
    """Example clips with their questions as buttons; value: [{"video": FileData, "question", "note"}].

    Fires `select` with `index`.
    """

    SCRIPT = """
const row = element.querySelector("div");
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
    button.addEventListener("pointerenter", () => clip.play().catch(() => {}));
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
    CSS = """
div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(250px, 100%), 1fr)); gap: 10px; }
button { display: flex; gap: 10px; align-items: center; text-align: left; padding: 6px; cursor: pointer; min-width: 0;
  border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--block-background-fill);
  color: var(--body-text-color); font: inherit; }
button:hover, button[aria-pressed="true"] { border-color: #3d7ff0; box-shadow: inset 0 0 0 1px #3d7ff0; }
button:focus-visible { outline: 3px solid #3d7ff0; outline-offset: 2px; }
video { width: 84px; height: 63px; object-fit: cover; border-radius: 5px; background: #20242b; flex: none; }
span { display: flex; flex-direction: column; min-width: 0; }
strong { font-size: 14px; line-height: 1.3; }
small { font-size: 12px; line-height: 1.3; color: var(--body-text-color-subdued); }
"""

    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        super().__init__(
            value, markup='<div role="group" aria-label="Examples"></div>', script=self.SCRIPT, css=self.CSS, **kwargs
        )
