"""What all commands say and how: one line for errors, tables, and answers that are only data."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sharp_demo.errors import InputError


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


def exit_code(app: typer.Typer, arguments: Sequence[str], name: str) -> int:
    """Run a command line and return its exit code: bad input is one line on stderr and 2."""
    try:
        return app(list(arguments), prog_name=name, standalone_mode=False) or 0
    except InputError as error:
        return say(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return say("stopped", 130)
    except Exception as error:
        # Usage errors of the parser; its class moves between typer releases, this method does not.
        if hasattr(error, "format_message"):
            return say(error.format_message(), 2)
        raise  # our fault: Python prints the traceback and exits with 1
