"""The house: imports go one way and in no circle, faces know nothing of torch, errors read alike."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_imports_follow_the_layers_without_circles() -> None:
    """The contracts stand in pyproject.toml; it sets up logs as it pleases, so it runs in a process of its own."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


FACES = (
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
)


def test_faces_know_nothing_of_torch() -> None:
    """One process imports them one after another and names each that brought torch."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    command = [sys.executable, "-c", code, *FACES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ERRORS = {"InputError", "ModelError", "VideoError", "MethodError", "UnsupportedError", "QuestionError", "DecodeError"}


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every message that is written where its error is made; `{}` stands for a value."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ERRORS and node.args:
            match node.args[-1]:
                case ast.Constant(value=str(text)):
                    yield node.lineno, text
                case ast.JoinedStr(values=parts):
                    yield (
                        node.lineno,
                        "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in parts),
                    )


def test_errors_start_in_lower_case_and_end_without_a_period() -> None:
    """The page makes sentences of them (`strings.sentence`); a command line puts `error: ` before them."""
    names = re.compile(r"[A-Z][a-z]+[A-Z]|[A-Z]{2}")  # PosC, OpenCV, ...
    odd = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for folder in ("sharp_demo", "lab")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, text in messages(file)
        if text.endswith(".") or (text[0].isupper() and not names.match(text))
    ]
    assert not odd, "\n".join(odd)


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


NAMES_A_FAMILY = {
    "sharp_demo/settings.py": "the embedded models, which are named like their folders",
    "sharp_demo/strings.py": "what the stored benchmark found, model by model",
    "sharp_demo/pruning/matching.py": "the tables of the ShaRP paper, model by model",
}


def without_docstrings(source: str) -> str:
    """Code alone: what a method's docstring says of official code for some model decides nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def test_families_are_named_in_backbones_only() -> None:
    """Other code asks the family of the model it has; a model family that joins needs no line there."""
    names = re.compile("llava|qwen", re.IGNORECASE)
    found = set()
    for folder in ("sharp_demo", "lab"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix not in (".py", ".js", ".css", ".html") or file.parent.name == "backbones":
                continue
            text = file.read_text("utf-8")
            if names.search(without_docstrings(text) if file.parent.name == "pruning" else text):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == NAMES_A_FAMILY.keys()
