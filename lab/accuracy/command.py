"""`python -m sharp_demo evaluate`: evaluates models and writes or prints the tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lab.accuracy.evaluate import MATCHES, Plan, evaluate, usable_jobs
from lab.accuracy.variants import parse_variants
from lab.tables.accuracy import accuracy_table
from lab.tables.pages import accuracy_page
from lab.world.records import Split
from sharp_demo.backbones.load import default_model
from sharp_demo.errors import InputError
from sharp_demo.settings import Settings


def run(
    settings: Settings,
    *,
    model: str | None,
    methods: str,
    retention: str,
    match: str | None,
    questions: int,
    seed: int,
    split: str,
    world: str | None,
    jobs: int | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Evaluate the named models one after another. Raises InputError before anything runs."""
    plan = Plan(
        variants=parse_variants(methods),
        retentions=parse_retentions(retention),
        matches=MATCHES if match is None else (match,),
        questions=questions,
        seed=seed,
        split=cast(Split, split),  # Plan refuses any other
        world=world or "",
    )
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    names = [name.strip() for name in (model or default_model(settings)).split(",") if name.strip()]
    documents = []
    for name in dict.fromkeys(names):
        document = evaluate(name, settings, plan, jobs=jobs or usable_jobs(settings), progress=Reporter(name))
        documents.append(document)
        for one in plan.matches:
            print(f"{name}, equal {one}\n\n{accuracy_table(document, one)}\n")
    if json_path is not None:
        json_path.write_text(to_json(documents))
    if markdown_path is not None:
        markdown_path.write_text(
            "\n".join(accuracy_page(document, Path(document_name(document)).name) for document in documents)
        )


def parse_retentions(text: str) -> tuple[float, ...]:
    """Read "0.25,0.1". Raises InputError for what is no number."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"cannot read the retentions {text!r}; write numbers, for example 0.25,0.1") from None


def to_json(documents: Sequence[dict[str, Any]]) -> str:
    """{"results": [...], "models": {name: setup, questions, unreachable}} as text, one result a line."""
    about = {
        document_name(document): {key: value for key, value in document.items() if key != "results"}
        for document in documents
    }
    results = ",\n".join(json.dumps(result) for document in documents for result in document["results"])
    models = ",\n".join(f"{json.dumps(name)}: {json.dumps(rest)}" for name, rest in about.items())
    return f'{{"results": [\n{results}\n],\n"models": {{\n{models}\n}}}}\n'


def document_name(document: dict[str, Any]) -> str:
    return document["setup"]["model"]["name"]


class Reporter:
    """Says on stderr how many clips are done: in place on a terminal, a line every tenth of them in a log."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, done: int, total: int) -> None:
        line = f"{self.what}: {done} of {total} clips"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr)
        elif done * 10 // total != (done - 1) * 10 // total:
            print(line, file=sys.stderr, flush=True)
