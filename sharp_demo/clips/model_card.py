"""The model card of an embedded checkpoint, written from its training log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharp_demo.clips.recipe import Recipe


def write_card(folder: Path, family: str, recipe: Recipe, log: Sequence[dict[str, Any]], *, parameters: int) -> None:
    (folder / "README.md").write_text("", encoding="utf-8")
