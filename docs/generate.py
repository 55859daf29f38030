"""Write the parts of the documentation that repeat the code: python docs/generate.py [--check].

Method table and measured figures (README.md), model families (docs/backbones.md), options of every method and sections
for those that have none by hand (docs/methods.md), who is ahead at equal FLOPs (docs/demo.md), command-line help
(docs/cli.md), what the paper's tables take (docs/benchmarks.md), settings (docs/settings.md), stored benchmarks
(docs/performance.md), every page of docs/results/ that has a JSON, and what the app shows of them (assets/*.json). With
--check nothing is written; a difference is an error.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.headlines import (  # noqa: E402
    RESULTS,
    accuracy_table,
    bench_list,
    core_table,
    equal_flops_table,
    modules_table,
    speed_table,
    stored,
)
from lab.paper.command import estimates  # noqa: E402
from lab.paper.leaderboard import pack_leaderboard  # noqa: E402
from lab.paper.page import paper_page  # noqa: E402
from lab.paper.plan import table as paper_table  # noqa: E402
from lab.paper.plan import table_names  # noqa: E402
from lab.tables import scale, speed  # noqa: E402
from lab.tables.pages import RENDERERS, page  # noqa: E402
from sharp_demo.backbones import families  # noqa: E402
from sharp_demo.cli import app  # noqa: E402
from sharp_demo.pruning import registry  # noqa: E402
from sharp_demo.pruning.method import GROUPS, Method  # noqa: E402
from sharp_demo.settings import Settings  # noqa: E402
from sharp_demo.views.benchmark import pack_benchmark  # noqa: E402
from sharp_demo.views.tables import pack_tables  # noqa: E402


def method_table() -> str:
    """One row per method: name, what it scores and where it drops, what it has to see for that."""
    header = (
        "method",
        "name",
        "year",
        "prunes",
        "what it does",
        "sees the question",
        "needs vision-tower attention",
        "engines",
    )
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for method in (one for group in GROUPS for one in registry.METHODS if one.group() == group):
        title = f"[{method.title}]({method.paper})" if method.paper else method.title
        where = "" if method.where == "nowhere" else GROUPS[method.where][0].lower() + GROUPS[method.where][1:]
        aware, vision = ("yes" if flag else "no" for flag in (method.question_aware, method().needs_vision))
        cells = (
            title,
            f"`{method.name}`",
            str(method.year or ""),
            where,
            method.summary,
            aware,
            vision,
            method.engines,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def family_table() -> str:
    """One row per model family: its class in transformers and its published checkpoints."""
    rows = ["| family | name | transformers | published checkpoints |", "|---|---|---|---|"]
    for family in families.FAMILIES:
        checkpoints = ", ".join(
            f"`{model.name}` ({model.hub}, {model.parameters:,} parameters)" for model in family.published
        )
        rows.append(f"| {family.title} | `{family.name}` | `{family.model_class}` | {checkpoints} |")
    return "\n".join(rows)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{','.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def option_tables() -> str:
    """One table per method that has options of its own; where it has all those of another, only what differs."""
    parts = [
        f"Common to all: `retention` (default `{Method.retention:g}`), the share of visual tokens to keep, in (0, 1]."
    ]
    tables: dict[str, dict[str, str]] = {}  # title -> option -> its row
    for method in registry.METHODS:
        rows = {option.name: _option_row(option) for option in fields(method) if option.name != "retention"}
        if not rows:
            continue
        contained = [title for title, others in tables.items() if len(others) > 5 and others.keys() < rows.keys()]
        lines = [f"### {method.title}", ""]
        for title in contained[:1]:
            lines += [f"Every option of {title}, and these, which are its own or have another default:", ""]
        shown = [row for name, row in rows.items() if not contained or row != tables[contained[0]].get(name)]
        tables[method.title] = rows
        parts.append("\n".join([*lines, "| option | default | meaning |", "|---|---|---|", *shown]))
    return "\n\n".join(parts)


def _option_row(option: Field[Any]) -> str:
    choices = option.metadata.get("choices") or ()
    meaning = option.metadata.get("help", "") + (f" ({', '.join(map(str, choices))})" if choices else "")
    return f"| `{option.name}` | {_literal(option.default)} | {meaning} |"


def method_sections(page: str) -> str:
    """A section, from the class's docstring, for every method that `page` describes nowhere by hand."""
    by_hand = with_block(page, "sections", "")
    parts = []
    for method in registry.METHODS:
        if not re.search(rf"^## .*{re.escape(method.title)}", by_hand, re.MULTILINE | re.IGNORECASE):
            source = f"[{method.year or 'Paper'}]({method.paper}). " if method.paper else ""
            parts.append(f"## {method.title}\n\n{source}{inspect.getdoc(method)}")
    return "\n\n".join(parts)


def methods_page(page: str) -> str:
    """`page` with its generated sections and option tables."""
    return with_block(with_block(page, "sections", method_sections(page)), "options", option_tables())


def settings_page() -> str:
    """Every environment variable of a deployment."""
    rows = []
    for name, knob in Settings.model_fields.items():
        default = knob.get_default(call_default_factory=True)
        default = "" if default is None else ",".join(default) if isinstance(default, tuple) else default
        shown = "`assets/` of the project" if name == "assets" else f"`{default}`" if default != "" else ""
        rows.append(f"| `SHARP_{name.upper()}` | {shown} | {knob.description or name.replace('_', ' ')} |")
    return "\n".join(
        [
            "# Settings",
            "",
            "Environment variables, read by `app.py` and by the command line; `python -m sharp_demo doctor` prints the",
            "values in force. The Hugging Face libraries read their own variables (`HF_HOME`, `HF_HUB_OFFLINE`, ...).",
            "",
            "| variable | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its full name, those of groups included."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def cli_page() -> str:
    """Arguments and options of every command."""
    parts = ["# Command line", "", "Exit codes: 0 done, 2 bad input (one line on stderr), 1 our fault."]
    for name, command in _commands(typer.main.get_command(app)):
        parts += ["", f"## python -m sharp_demo {name}", "", command.help, "", "| argument | default | meaning |"]
        parts += ["|---|---|---|"]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                parts.append(f"| {parameter.name.upper()} | | {parameter.help} |")
            elif parameter.name != "help":
                default = parameter.default
                shown = "" if default is None or default is False else f"`{getattr(default, 'value', default)}`"
                parts.append(f"| `{parameter.opts[0]}` | {shown} | {parameter.help} |")
    return "\n".join([*parts, ""])


def fuzz_tables() -> str:
    """The tables of the stored run of tools/fuzz_video.py."""
    lines = (ROOT / "docs/results/fuzz-video.md").read_text("utf-8").splitlines()
    return "\n".join(lines[next(number for number, line in enumerate(lines) if line.startswith("|")) :])


def stored_benchmarks() -> list[Path]:
    return sorted((ROOT / "docs/results").glob("bench-*.json"))


def bench_page(path: Path, title: str, level: int = 1) -> str:
    """One stored benchmark as Markdown."""
    document = json.loads(path.read_text("utf-8"))
    write = scale.markdown if document["kind"] == "scale" else speed.markdown
    return write(document, title, level=level)


def benchmark_data() -> str:
    """What the app shows of the stored accuracies, one line a row: docs/ is not there wherever the app runs."""
    packed = pack_benchmark([result for document in stored("evaluate-*.json") for result in document["results"]])
    rows = ",\n".join(json.dumps(row) for row in packed["rows"])
    return f'{{"fields": {json.dumps(packed["fields"])}, "rows": [\n{rows}\n]}}\n'


def tables_data() -> str:
    """What the app shows of the stored ablations and prefill times."""
    prefills = [document for document in stored("bench-prefill-*.json") if document["kind"] == "prefill"]
    packed = pack_tables(stored("ablation-*.json"), prefills)
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in packed.items()
    ]
    return "{" + ",\n".join(parts) + "}\n"


def paper_results() -> list[Path]:
    """The tables of the paper that `reproduce` has stored."""
    return sorted((RESULTS / "paper").glob("*.json"))


def leaderboard_data() -> str:
    """What the app shows of the paper's tables, one point a line: the paper's own and what `reproduce` has stored."""
    points = pack_leaderboard([json.loads(path.read_text("utf-8")) for path in paper_results()])
    return "[\n" + ",\n".join(json.dumps(point) for point in points) + "\n]\n"


def with_block(text: str, name: str, content: str) -> str:
    """Return `text` with the marked block replaced. Raises ValueError when the markers are not there."""
    pattern = re.compile(rf"(<!-- generated:{name} -->\n).*?(<!-- /generated:{name} -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"expected one block {name!r}, found {count}")
    return replaced


def pages() -> dict[Path, str]:
    """What every generated or partly generated page should hold."""
    security = ROOT / "docs/security.md"
    readme, methods, performance = ROOT / "README.md", ROOT / "docs/methods.md", ROOT / "docs/performance.md"
    public = ROOT / "docs/benchmarks.md"
    demo, backbones, front = ROOT / "docs/demo.md", ROOT / "docs/backbones.md", readme.read_text("utf-8")
    for name, content in (
        ("methods", method_table()),
        ("speed", speed_table(("sharp",))),
        ("accuracy", accuracy_table()),
    ):
        front = with_block(front, name, content)
    speed = with_block(performance.read_text("utf-8"), "speed", speed_table(("fastv", "feather", "sharp")))
    results = RESULTS / "README.md"
    said = results.read_text("utf-8")
    for name, content in (
        ("core", core_table()),
        ("modules", modules_table()),
        ("systems", equal_flops_table((0.25, 0.05))),
    ):
        said = with_block(said, name, content)
    return {
        readme: front,
        results: said,
        demo: with_block(demo.read_text("utf-8"), "equal-flops", equal_flops_table()),
        backbones: with_block(backbones.read_text("utf-8"), "families", family_table()),
        methods: methods_page(methods.read_text("utf-8")),
        performance: with_block(speed, "bench", bench_list()),
        public: with_block(
            public.read_text("utf-8"), "estimates", estimates([paper_table(name) for name in table_names()])
        ),
        security: with_block(security.read_text("utf-8"), "fuzz", fuzz_tables()),
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "docs/settings.md": settings_page(),
        ROOT / "assets/benchmark.json": benchmark_data(),
        ROOT / "assets/tables.json": tables_data(),
        ROOT / "assets/leaderboard.json": leaderboard_data(),
        **{path.with_suffix(".md"): paper_page(json.loads(path.read_text("utf-8"))) for path in paper_results()},
        **{path.with_suffix(".md"): bench_page(path, path.stem) for path in stored_benchmarks()},
        **{path.with_suffix(".md"): page(path) for part in RENDERERS for path in RESULTS.glob(f"{part}-*.json")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a difference")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
