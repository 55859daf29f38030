"""What page tests share: hand-made contents, pages of one component, a model that never ends an answer."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from sharp_demo.records import Decoded, MethodDone, MethodSpec, Result
from sharp_demo.ui.board import Board

ENDLESS = 20_000  # tokens of an answer: minutes of an `endless` model, on any machine


def endless(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint that never ends an answer: what would end it is a placeholder, which none contains."""
    shutil.copytree(checkpoint, folder)
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    video = config["video_token_index"]
    words = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    for name, end in (
        ("generation_config.json", {"eos_token_id": video}),
        ("tokenizer_config.json", {"eos_token": words[video]}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **end}))
    return folder


def board_of(result: Result, sprite: str | None = None) -> dict[str, Any]:
    """A finished board of one result over four grey frames; the pictures are at `sprite`, or inline."""
    board = Board.waiting([MethodSpec("sharp", {}, "Sharp")])
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
