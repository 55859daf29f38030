"""What people read stands in sharp_demo/strings.py: no sentence, title or label in page, web or views."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sharp_demo

PACKAGE = Path(sharp_demo.__file__).parent
FOLDERS = (PACKAGE / "page", PACKAGE / "web", PACKAGE / "views")
ALLOWED = {
    "web/health.py": "the health report is for the operator's monitor, not for visitors",
    "web/serve.py": "whoever starts the server reads it, on the command line",
    "page/runs.py: timed out": "the outcome in the log's line of a run",
    "page/theme.py: Segoe UI": "the name of a font",
    **dict.fromkeys(
        (f"page/tabs/ablate.py: {row}" for row in ("segm posc regd", "posc regd", "segm posc", "segm regd")),
        "names of switches, split at the blanks",
    ),
}
# Two words with a blank between them: a name, a key or a format has none.
WORDS = re.compile(r"[A-Za-z]{2,}[,:]? [A-Za-z]{2,}")
# Not for readers of the page: code in another language, HTTP and the log.
CODE = re.compile(r"[;{}<>=]|\w\(|_|[.#][a-z-]+ |\bpx\b|sans-serif|: reduce")
UNSEEN_CALLS = {"debug", "info", "warning", "error", "exception", "AssertionError", "RuntimeError"}
UNSEEN_NAMES = re.compile(r"(CSS|SCRIPT|JS|HEADERS|POLICY|CSP)$")


def files(suffix: str) -> list[Path]:
    found = sorted(path for folder in FOLDERS for path in folder.rglob(f"*{suffix}"))
    assert found
    return found


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants that a person may get to read: no docstrings, log lines or code in other languages."""
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # docstrings
            hidden.add(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and UNSEEN_NAMES.search(one.id) for one in targets) and node.value:
                hidden.update(ast.walk(node.value))
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "log")
            if name in UNSEEN_CALLS and owner == "log":
                hidden.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            yield node


def told(text: str) -> bool:
    return bool(WORDS.search(text)) and not CODE.search(text)


def in_python(source: str) -> list[str]:
    return [node.value for node in literals(ast.parse(source)) if told(node.value)]


def in_script(source: str) -> list[str]:
    """String literals of JavaScript, comments aside, that read like text."""
    code = re.sub(r"^\s*//.*$|(?<=[;{}]) // .*$", "", source, flags=re.MULTILINE)
    found = re.findall(r'"((?:[^"\\\n]|\\.)*)"|\'((?:[^\'\\\n]|\\.)*)\'|`((?:[^`\\]|\\.)*)`', code)
    return [text for match in found for text in match if told(text)]


class Texts(HTMLParser):
    """What a page's markup itself says: text and the attributes that are read out; `{{ }}` and `{% %}` say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.found += [value or "" for name, value in attrs if name in ("alt", "title", "aria-label", "placeholder")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.found.append(data)


def in_markup(source: str) -> list[str]:
    parser = Texts()
    parser.feed(re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", source, flags=re.DOTALL))
    return [text.strip() for text in parser.found if re.search("[A-Za-z]{2,}", text)]


KINDS = {".py": in_python, ".js": in_script, ".html": in_markup}


@pytest.mark.parametrize("suffix", KINDS)
def test_page_and_views_hold_no_words_of_their_own(suffix):
    found = []
    for path in files(suffix):
        name = str(path.relative_to(PACKAGE))
        if name not in ALLOWED:
            found += [f"{name}: {text}" for text in KINDS[suffix](path.read_text("utf-8"))]
    assert [one for one in found if one not in ALLOWED] == []


def test_what_is_allowed_is_there():
    for one in ALLOWED:
        name, _, text = one.partition(": ")
        found = in_python((PACKAGE / name).read_text("utf-8"))
        assert text in found if text else found, one


def test_the_search_finds_words_where_they_are():
    assert in_python('"""Doc string here."""\ngr.Button("Press this button")\nlog.info("not for you")') == [
        "Press this button"
    ]
    assert in_python('f"{count} answers in {seconds} s"\nx = "dark-theme"') == [" answers in "]
    assert in_script('// A comment here\nmake("p", "", "No pictures left"); const a = "px sans-serif";') == [
        "No pictures left"
    ]
    assert in_markup('<p title="Some help">{{ words.x }}</p><style>a b { }</style><h2>Answers</h2>') == [
        "Some help",
        "Answers",
    ]
