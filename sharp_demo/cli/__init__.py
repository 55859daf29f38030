"""python -m sharp_demo compare | bench | evaluate | reproduce | flops | methods | doctor.

Exit codes: 0 done, 2 bad input (one line on stderr), 1 our fault.

Heavy imports stand inside the commands: `flops` and `--help` answer without loading torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

import typer

from sharp_demo.cli import compare, doctor, flops, laboratory, methods
from sharp_demo.cli.text import exit_code

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
bench = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Speed benchmarks.")
app.add_typer(bench, name="bench")
for command in (
    compare.compare,
    laboratory.evaluate,
    laboratory.reproduce,
    doctor.doctor,
    methods.methods,
    flops.flops,
):
    app.command()(command)
bench.command()(laboratory.prefill)


@app.callback()
def root() -> None:
    """Visual-token pruning for video LLMs: many methods, side by side on one video and one question."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's own."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
    return exit_code(app, list(sys.argv[1:] if arguments is None else arguments) or ["--help"], "python -m sharp_demo")
