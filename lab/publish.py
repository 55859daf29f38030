"""python -m lab.publish: makes every table of docs/results/ about accuracy and attention.

Held-out clips: PART-MODEL for every part, as JSON and Markdown. What is there already, made by the same code with the
same weights, clips and methods, is left alone. Validation clips (--split validation): what was tried, with its
numbers, is added to validation-log.md; readings and thresholds are decided there and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.accuracy.command import TITLE, Reporter, parse_retentions, to_json
from lab.accuracy.evaluate import Plan, evaluate, setup_of, usable_jobs
from lab.accuracy.front_door import front_door
from lab.accuracy.front_door import markdown as front_door_markdown
from lab.accuracy.phenomena import markdown as phenomena_markdown
from lab.accuracy.phenomena import phenomena
from lab.accuracy.variants import ABLATION, CORE, RENUMBERED, every_method, parse_variants
from lab.tables import about, accuracy_table, differences_to, markdown
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.load import Backbone, load
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


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m lab.publish", description=__doc__)
    parser.add_argument("--model", help="one embedded model or folder; default: all embedded models")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("heldout", "validation"), default="heldout")
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="default: all")
    parser.add_argument("--methods", default="ablation", help="validation only: as for evaluate")
    parser.add_argument("--retention", default="0.15,0.1,0.05,0.02", help="validation only: as for evaluate")
    parser.add_argument("--why", default="", help="validation only: what the run is to decide")
    parser.add_argument("--jobs", type=int, help="processes; default: the cores, up to 4")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="make again what is there already")
    chosen = parser.parse_args(arguments)
    try:
        publish(chosen, Settings())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def publish(chosen: argparse.Namespace, settings: Settings) -> None:
    """Make what the command line asked for, model by model."""
    chosen.out.mkdir(parents=True, exist_ok=True)
    jobs = chosen.jobs or usable_jobs(settings)
    for model in [chosen.model] if chosen.model else list(settings.embedded):
        if chosen.split == "validation":
            log_validation(chosen, model, settings, jobs)
            continue
        backbone = load(model, settings)
        for part in chosen.part or PARTS:
            if (planned := PARTS[part](chosen, backbone)) is None:
                continue
            plan, make = planned
            target = chosen.out / f"{part}-{Path(model).name}.json"
            if not chosen.fresh and is_made(target, setup_of(backbone, plan)):
                print(f"{target.name} is there already", file=sys.stderr)
                continue
            text, tables = make(backbone, settings, plan, jobs)
            target.write_text(text)
            target.with_suffix(".md").write_text(tables)
            print(f"wrote {target.name} and its tables", file=sys.stderr)


def is_made(target: Path, setup: dict[str, Any]) -> bool:
    """Whether a result file was made with this setup; commit and machine may differ."""
    if not target.is_file():
        return False
    stored = json.loads(target.read_text())
    there = stored["setup"] if "setup" in stored else next(iter(stored["models"].values()))["setup"]
    return all(there.get(key) == value for key, value in setup.items() if key not in VOLATILE)


Made = tuple[str, str]  # JSON and Markdown
Make = Callable[[Backbone, Settings, Plan, int], Made]
Planned = tuple[Plan, Make]


def _evaluation(chosen: argparse.Namespace, backbone: Backbone) -> Planned:
    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        document = evaluate(backbone.name, settings, plan, jobs=jobs, progress=Reporter(backbone.name))
        return to_json([document]), markdown(document, TITLE.format(Path(backbone.name).name))

    return Plan(CORE, questions=chosen.questions, seed=chosen.seed), make


def _systems(chosen: argparse.Namespace, backbone: Backbone) -> Planned:
    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        document = evaluate(backbone.name, settings, plan, jobs=jobs, progress=Reporter(f"{backbone.name}, systems"))
        title = f"Every method on {Path(backbone.name).name}, at equal FLOPs"
        versus = differences_to(document, "flops", "sharp")
        return to_json([document]), f"{markdown(document, title)}\n## Difference to ShaRP\n\n{versus}\n"

    questions = min(SYSTEMS_QUESTIONS, chosen.questions)
    return Plan(every_method(), (0.25, 0.2, 0.15, 0.1, 0.05), ("flops",), questions, chosen.seed), make


def _positions(chosen: argparse.Namespace, backbone: Backbone) -> Planned | None:
    """None where positions have several axes: nothing is ever numbered anew there."""
    if not family_of(backbone.model.config).renumbers:
        return None

    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        document = evaluate(backbone.name, settings, plan, jobs=jobs, progress=Reporter(f"{backbone.name}, positions"))
        title = f"Positions numbered anew or kept on {Path(backbone.name).name}, methods that prune before the LLM"
        return to_json([document]), markdown(document, title)

    questions = min(POSITIONS_QUESTIONS, chosen.questions)
    return Plan(RENUMBERED, (0.5, 0.25, 0.1), ("tokens",), questions=questions, seed=chosen.seed), make


def _ablation(chosen: argparse.Namespace, backbone: Backbone) -> Planned:
    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        document = evaluate(backbone.name, settings, plan, jobs=jobs, progress=Reporter(f"{backbone.name}, ablation"))
        title = f"ShaRP's modules and readings on {Path(backbone.name).name}"
        versus = differences_to(document, "tokens", "sharp")
        return to_json([document]), f"{markdown(document, title)}\n## Difference to ShaRP as it is\n\n{versus}\n"

    questions = min(ABLATION_QUESTIONS, chosen.questions)
    return Plan(ABLATION, (0.15, 0.1, 0.05, 0.02), ("tokens",), questions=questions, seed=chosen.seed), make


def _phenomena(chosen: argparse.Namespace, backbone: Backbone) -> Planned:
    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        seen = phenomena(backbone, plan, Reporter(f"{backbone.name}, phenomena"))
        return json.dumps(seen) + "\n", phenomena_markdown(seen)

    questions = min(PHENOMENA_QUESTIONS, chosen.questions)
    return Plan(parse_variants("vanilla"), questions=questions, seed=chosen.seed, per_clip=1), make


def _front_door(chosen: argparse.Namespace, backbone: Backbone) -> Planned:
    def make(backbone: Backbone, settings: Settings, plan: Plan, jobs: int) -> Made:
        engine = Engine(settings.model_copy(update={"model": backbone.name}))
        seen = front_door(backbone, engine, plan, Reporter(f"{backbone.name}, front door"))
        return json.dumps(seen) + "\n", front_door_markdown(seen)

    return Plan(
        parse_variants("vanilla"), questions=chosen.questions, seed=FRONT_DOOR_SEED, per_clip=FRONT_DOOR_PER_CLIP
    ), make


PARTS: dict[str, Callable[[argparse.Namespace, Backbone], Planned | None]] = {
    "evaluate": _evaluation,
    "systems": _systems,
    "ablation": _ablation,
    "phenomena": _phenomena,
    "positions": _positions,
    "front-door": _front_door,
}


def log_validation(chosen: argparse.Namespace, model: str, settings: Settings, jobs: int) -> None:
    """Evaluate on validation clips and add a section to the log."""
    variants = parse_variants(chosen.methods)
    plan = Plan(variants, parse_retentions(chosen.retention), ("tokens",), chosen.questions, chosen.seed, "validation")
    document = evaluate(model, settings, plan, jobs=jobs, progress=Reporter(f"{model}, validation"))
    first = next((one for one in variants if one.method == "sharp"), variants[0])
    log = chosen.out / LOG
    before = log.read_text() if log.is_file() else LOG_HEAD
    section = [
        f"## {chosen.why or 'Methods ' + chosen.methods} ({Path(model).name})",
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


if __name__ == "__main__":
    sys.exit(main())
