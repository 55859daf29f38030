"""The house: imports go one way, nothing imports in a circle, the faces know nothing of torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_imports_follow_the_layers_without_circles() -> None:
    """The contracts stand in pyproject.toml; it sets up logs as it pleases, so it runs in a process of its own."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "sharp_demo",
        "sharp_demo.cli",
        "sharp_demo.engine",
        "sharp_demo.engine.condition",
        "sharp_demo.doctor",
        "sharp_demo.records",
        "sharp_demo.strings",
        "sharp_demo.pruning.registry",
        "sharp_demo.views.figures",
        "sharp_demo.views.report",
        "sharp_demo.video",
        "sharp_demo.page.board",
        "sharp_demo.page.runs",
        "sharp_demo.page.controls",
        "sharp_demo.page.menu",
    ],
)
def test_faces_know_nothing_of_torch(module: str) -> None:
    code = f"import {module}, sys; print(*{{'torch', 'transformers'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "sharp_demo").rglob("*.py")
        if re.search(r"\bos\.(environ(?!\[[^]]+\] =)|getenv)", file.read_text("utf-8"))
    }
    assert readers == {"sharp_demo/settings.py"}


def test_only_backbones_look_inside_a_family() -> None:
    """Pruning, engine and cost ask the family's interface; no branch depends on the shape of a model."""
    asks = re.compile(r'hasattr\([^)]*"visual"\)|\.(model\.visual|mrope|vision_tower|language_model|needs_grid)\b')
    found = {
        file.relative_to(ROOT).as_posix()
        for folder in ("sharp_demo", "lab")
        for file in (ROOT / folder).rglob("*.py")
        if file.parent.name != "backbones" and asks.search(file.read_text("utf-8"))
    }
    assert found == set()
