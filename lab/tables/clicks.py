"""What a visitor waits for, before and after (tools/clicks.py), as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from lab.tables.text import table

Format = Callable[[float], str]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"


def milliseconds(value: float) -> str:
    return f"{value:,.0f} ms"


def ratio(value: float) -> str:
    return f"{value:.2f}x"


ROWS: dict[str, tuple[str, Format]] = {
    "http": ("server start to the first answer on HTTP", seconds),
    "fresh_server": ("Run until the fourth answer stands: fresh server", seconds),
    "first_in_tab": ("the same: first run in a fresh tab", seconds),
    "later": ("the same: later run in that tab, another question", seconds),
    "frozen_ms": ("longest task of the page before the last answer", milliseconds),
    "fastv_in_tab": ("FastV's prefill speed-up, first run in a fresh tab", ratio),
    "fastv_by_api": ("the same by the API, no browser", ratio),
    "decode_ms": ("decoding 16 frames of an 8 s clip", milliseconds),
    "compare": ("`compare` from a shell", seconds),
    "help": ("`--help`", seconds),
}


def markdown(document: dict[str, Any]) -> str:
    """The table with a line that says what was measured on what."""
    before, after = document["measured"]["before"], document["measured"]["after"]
    rows = [(what, spread(before[name], write), spread(after[name], write)) for name, (what, write) in ROWS.items()]
    machine, versions = document["machine"], document["versions"]
    return "\n".join(
        [
            table(("what", f"before ({document['before'][:7]})", f"after ({document['commit'][:7]})"), rows),
            "",
            f"Medians of {document['rounds']} interleaved rounds, smallest and largest value in brackets: "
            f"`python tools/clicks.py --before FOLDER`. {machine['cores']} cores of {machine['cpu']}; "
            f"torch {versions['torch']}, transformers {versions['transformers']}, gradio {versions['gradio']}.",
        ]
    )


def spread(values: Sequence[float], write: Format) -> str:
    """The median, and the smallest and largest value."""
    return f"{write(statistics.median(values))} ({write(min(values))} to {write(max(values))})"
