"""Measure everything that docs/results/ says about accuracy and attention: python -m lab.publish.

Held-out clips: PART-MODEL.json for every part, and its page. A part that the same code made with the same weights,
clips and methods is left alone. `--check N` asks the first N questions of each stored evaluation again and compares
verdict by verdict. Validation clips (`--split validation`): what was tried is added to validation-log.md, with its
numbers; readings and thresholds are decided there and nowhere else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lab.accuracy.command import Reporter, parse_retentions, to_json
from lab.accuracy.evaluate import EVALUATED, Plan, evaluate, setup_of, usable_jobs
from lab.accuracy.front_door import front_door
from lab.accuracy.phenomena import phenomena
from lab.accuracy.variants import ABLATION, CORE, RENUMBERED, every_method, parse_variants
from lab.tables.accuracy import about, accuracy_table, differences_to
from lab.tables.pages import of_one_model, page
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.cli.text import exit_code
from sharp_demo.engine import Engine
from sharp_demo.errors import InputError
from sharp_demo.settings import ROOT, Settings

RESULTS = ROOT / "docs" / "results"
LOG = "validation-log.md"
LOG_HEAD = """# What was tried on validation clips

Written by `python -m lab.publish --split validation`, one section a run, oldest first. Which reading of
the paper is the default, and every threshold that is not the paper's, is decided here; held-out clips decide nothing.
"""
VOLATILE = ("commit", "machine")  # of a setup: may differ without the numbers being others
SYSTEMS_QUESTIONS = 200
ABLATION_QUESTIONS = 200
PHENOMENA_QUESTIONS = 100
POSITIONS_QUESTIONS = 100
FRONT_DOOR_SEED = 9  # clips of its own
FRONT_DOOR_PER_CLIP = 8  # 50 clips with 400 questions

Measured = dict[str, Any]
Measure = Callable[[Backbone, Settings, Plan, int], Measured]


@dataclass(frozen=True)
class Part:
    """One stored result of a model: what it asks, given questions and seed, and what measures it.

    `plan` returns None where the part says nothing about a model.
    """

    plan: Callable[[Backbone, int, int], Plan | None]
    measure: Measure


# -- the parts -------------------------------------------------------------------------------------------------------


def _core(backbone: Backbone, questions: int, seed: int) -> Plan:
    return Plan(CORE, questions=questions, seed=seed)


def _systems(backbone: Backbone, questions: int, seed: int) -> Plan:
    return Plan(every_method(), (0.25, 0.2, 0.15, 0.1, 0.05), ("flops",), min(SYSTEMS_QUESTIONS, questions), seed)


def _ablation(backbone: Backbone, questions: int, seed: int) -> Plan:
    return Plan(ABLATION, (0.15, 0.1, 0.05, 0.02), ("tokens",), min(ABLATION_QUESTIONS, questions), seed)


def _positions(backbone: Backbone, questions: int, seed: int) -> Plan | None:
    """Return None where positions have several axes: no method renumbers those."""
    if not family_of(backbone.model.config).renumbers:
        return None
    return Plan(RENUMBERED, (0.5, 0.25, 0.1), ("tokens",), min(POSITIONS_QUESTIONS, questions), seed)


def _phenomena(backbone: Backbone, questions: int, seed: int) -> Plan:
    return Plan(parse_variants("vanilla"), questions=min(PHENOMENA_QUESTIONS, questions), seed=seed, per_clip=1)


def _front_door(backbone: Backbone, questions: int, seed: int) -> Plan:
    plan = Plan(parse_variants("vanilla"), questions=questions, seed=FRONT_DOOR_SEED)
    return replace(plan, per_clip=FRONT_DOOR_PER_CLIP)


def _ask(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Measured:
    return evaluate(backbone.name, settings, plan, jobs=jobs, progress=Reporter(backbone.name))


def _look(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Measured:
    return phenomena(backbone, plan, Reporter(f"{backbone.name}, phenomena"))


def _film(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Measured:
    engine = Engine(settings.model_copy(update={"model": backbone.name}))
    return front_door(backbone, engine, plan, Reporter(f"{backbone.name}, front door"))


PARTS = {
    "evaluate": Part(_core, _ask),
    "systems": Part(_systems, _ask),
    "ablation": Part(_ablation, _ask),
    "phenomena": Part(_phenomena, _look),
    "positions": Part(_positions, _ask),
    "front-door": Part(_front_door, _film),
}


# -- making and checking them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What the command line asked for."""

    models: tuple[str, ...]
    parts: tuple[str, ...]
    questions: int
    seed: int
    jobs: int
    out: Path

    def planned(self, backbone: Backbone) -> dict[Path, tuple[Part, Plan]]:
        """Return the file, the part and the plan of everything to make for a model."""
        plans = {part: PARTS[part].plan(backbone, self.questions, self.seed) for part in self.parts}
        name = Path(backbone.name).name
        return {self.out / f"{part}-{name}.json": (PARTS[part], plan) for part, plan in plans.items() if plan}


def publish(choice: Choice, settings: Settings, *, fresh: bool = False) -> None:
    """Write the JSON and the page of every part, model by model; with `fresh`, those that are there already too."""
    choice.out.mkdir(parents=True, exist_ok=True)
    for model in choice.models:
        backbone = load(model, settings)
        for target, (part, plan) in choice.planned(backbone).items():
            if not fresh and is_made(target, setup_of(backbone, plan)):
                _say(f"{target.name} is there already")
                continue
            measured = part.measure(backbone, settings, plan, choice.jobs)
            target.write_text(to_json([measured]) if part.measure is _ask else json.dumps(measured) + "\n")
            target.with_suffix(".md").write_text(page(target))
            _say(f"wrote {target.name} and its page")


def check(choice: Choice, settings: Settings) -> bool:
    """Return whether the stored evaluations have the verdicts that this code gives, question by question.

    Only the first `choice.questions` questions of each are asked: they are the same ones that a longer run starts
    with. Raises InputError where nothing is stored.
    """
    same = True
    for model in choice.models:
        backbone = load(model, settings)
        for target, (part, plan) in choice.planned(backbone).items():
            if part.measure is not _ask:
                continue
            if not target.is_file():
                raise InputError(f"{target} is not there; make it first with python -m lab.publish")
            stored = of_one_model(json.loads(target.read_text("utf-8")))
            other = differing(stored, part.measure(backbone, settings, plan, choice.jobs))
            asked = len(stored["results"]) * plan.questions
            _say(f"{target.name}: {len(other)} of {asked:,} verdicts differ", *other[:20])
            same = same and not other
    return same


def differing(stored: Measured, measured: Measured) -> list[str]:
    """Return one line for each verdict of `measured` that is not the stored one, and for each row without a partner."""
    rows = {_row(one): one["right"] for one in stored["results"]}
    again = {_row(one): one["right"] for one in measured["results"]}
    lines = [f"only in one of both: {row}" for row in rows.keys() ^ again.keys()]
    for row in rows.keys() & again.keys():
        for number, (before, now) in enumerate(zip(rows[row], again[row], strict=False)):
            if before != now:
                lines.append(f"{row}, question {number}: {before} before, {now} now")
    return lines


def _row(result: Measured) -> tuple[str, float, str]:
    return result["method"], result["retention"], result["match"]


def is_made(target: Path, setup: Measured) -> bool:
    """Return whether a result file was made with this setup; commit and machine may differ."""
    if not target.is_file():
        return False
    there = of_one_model(json.loads(target.read_text("utf-8")))["setup"]
    return all(there.get(key) == value for key, value in setup.items() if key not in VOLATILE)


def log_validation(choice: Choice, settings: Settings, methods: str, retention: str, why: str) -> None:
    """Evaluate on validation clips and add a section for each model to the log."""
    variants = parse_variants(methods)
    plan = Plan(variants, parse_retentions(retention), ("tokens",), choice.questions, choice.seed, "validation")
    choice.out.mkdir(parents=True, exist_ok=True)
    for model in choice.models:
        progress = Reporter(f"{model}, validation")
        document = evaluate(model, settings, plan, jobs=choice.jobs, progress=progress)
        first = next((one for one in variants if one.method == "sharp"), variants[0])
        log = choice.out / LOG
        before = log.read_text("utf-8") if log.is_file() else LOG_HEAD
        section = [
            f"## {why or 'Methods ' + methods} ({Path(model).name})",
            "",
            *about(document),
            "",
            accuracy_table(document, "tokens"),
            "",
            f"Difference to {first.label}, in percent points:",
            "",
            differences_to(document, "tokens", first.name),
        ]
        log.write_text(before + "\n" + "\n".join(section) + "\n")


def _say(*lines: str) -> None:
    print("\n  ".join(lines), file=sys.stderr)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def command(
    model: Annotated[str, typer.Option(help="one embedded model or folder; default: all embedded models")] = "",
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; default: all")] = None,
    questions: Annotated[int, typer.Option(help="questions to ask; some parts ask fewer")] = 400,
    seed: Annotated[int, typer.Option(help="which clips of the split")] = 0,
    split: Annotated[str, typer.Option(help="heldout, or validation")] = "heldout",
    methods: Annotated[str, typer.Option(help="validation only: as for evaluate")] = "ablation",
    retention: Annotated[str, typer.Option(help="validation only: as for evaluate")] = "0.15,0.1,0.05,0.02",
    why: Annotated[str, typer.Option(help="validation only: what the run is to decide")] = "",
    jobs: Annotated[int, typer.Option(help="processes; default: the cores, up to 4")] = 0,
    out: Annotated[Path, typer.Option(help="where the results are")] = RESULTS,
    fresh: Annotated[bool, typer.Option("--fresh", help="make again what is there already")] = False,
    check_: Annotated[int, typer.Option("--check", help="write nothing: ask so many questions again and compare")] = 0,
) -> None:
    settings = Settings()
    for name, options in ((split, EVALUATED), *((one, tuple(PARTS)) for one in part or ())):
        if name not in options:
            raise InputError(f"there is no {name!r}; there are {', '.join(options)}")
    models = (model,) if model else tuple(settings.embedded)
    choice = Choice(models, tuple(part or PARTS), questions, seed, jobs or usable_jobs(settings), out)
    if check_:
        if not check(replace(choice, questions=check_), settings):
            raise typer.Exit(1)
    elif split == "validation":
        log_validation(choice, settings, methods, retention, why)
    else:
        publish(choice, settings, fresh=fresh)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a verdict differs from the stored one, 2 bad input (one line on stderr)."""
    return exit_code(app, sys.argv[1:] if arguments is None else arguments, "python -m lab.publish")


if __name__ == "__main__":
    sys.exit(main())
