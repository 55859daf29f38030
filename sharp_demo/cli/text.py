"""What all commands say and how: one line for errors, tables, and answers that are only data."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table


def say(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def printable(text: str) -> str:
    """Answers are data: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def stdout() -> Console:
    """A console as wide as the terminal; files and pipes get lines that need no folding."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def table_of(*columns: str, title: str | None = None) -> Table:
    return Table(
        *columns, title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
