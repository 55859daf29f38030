"""What page tests share: hand-made contents, pages of one component."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import numpy as np

from sharp_demo.page.board import Board
from sharp_demo.records import Decoded, MethodDone, MethodSpec, Request, Result


def board_of(result: Result, sprite: str | None = None) -> dict[str, Any]:
    """A finished board of one result over four grey frames; the pictures are at `sprite`, or inline."""
    board = Board.waiting(Request("clip.mp4", "q", (MethodSpec("sharp", {}, "Sharp"),)))
    board.apply(Decoded(np.full((4, 48, 80, 3), 180, np.uint8), (0.0, 1.0, 2.0, 3.0), {}, 1.0))
    board.apply(MethodDone("Sharp", result))
    board.sprite_path = "frames.jpg"
    value = board.value()
    inline = "data:image/jpeg;base64," + base64.b64encode(board.sprite.jpeg).decode()
    value["clip"]["sprite"] = {"url": sprite or inline}
    return value


@contextmanager
def served(demo: gr.Blocks) -> Iterator[str]:
    """The address of a page while it is served."""
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        yield url
    finally:
        demo.close()
