"""What the tabs share: a status line with a progress bar, a table, and what a cell without an answer says."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.board import Board
from sharp_demo.page.components import component
from sharp_demo.page.runs import Controls


def mode_buttons(mode: str, label: str) -> Controls:
    """Create a mode's buttons, side by side; element ids are `mode`-run and so on."""
    with gr.Row(elem_classes="mode-buttons"):
        return Controls.create(label, prefix=f"{mode}-", width=120)


def status_line(message: str, **kwargs: Any) -> gr.HTML:
    """One line on how far a run is, with a bar; value: `Board.status()`."""
    return component("status", Board(message=message).status(), elem_classes="mode-part", **kwargs)


def data_table(value: Any = None, **kwargs: Any) -> gr.HTML:
    """A table of plain text: {"caption", "head": [text], "rows": [[cell]]}.

    A cell is text or {"text", "kind", "title", "color", "note"}; kinds: same, differs, open, number, on, off.
    """
    return component("table", value, elem_classes="mode-part", **kwargs)


def open_cell(board: Board, label: str) -> dict[str, str]:
    """Return the cell of a setting that has no whole answer: it failed, was stopped, was not run, or is to come."""
    column = board.column(label)
    if column.status == "error":
        return {"text": strings.FAILED, "kind": "open", "title": column.error}
    text = "…"
    if column.result is not None:
        text = strings.STOPPED
    elif board.over:
        text = strings.NOT_RUN_CELL
    return {"text": text, "kind": "open", "title": ""}
