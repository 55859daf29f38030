"""`python -m sharp_demo reproduce`: plans a table of the paper, asks, scores, and writes what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.paper.harness import HarnessError, Job, Score, read_scores, run_job
from lab.paper.page import paper_page
from lab.paper.plan import Row, Table, benchmarks, estimate, fitting, gpus, table, table_names, with_methods
from lab.paper.rehearsal import write_rehearsal
from lab.paper.results import (
    GROUPS,
    Document,
    attention_document,
    row_document,
    score_document,
    setup_document,
    verdicts,
)
from lab.paper.runs import MethodRun
from lab.paper.store import Store
from lab.tables.text import table as markdown
from lab.world.generate import make_clip
from sharp_demo.backbones.families import family_of_type, published, visual_layout
from sharp_demo.backbones.load import load
from sharp_demo.cost import ModelShape, shape_named, tower_tflops
from sharp_demo.errors import InputError
from sharp_demo.settings import Settings

ALL = "all"
REHEARSAL_QUESTIONS = 40
SOURCE = "arXiv 2512.05385v1"


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; see `reproduce --help`."""

    what: str
    model: str | None = None
    limit: int | None = None
    dry_run: bool = False
    methods: str = ""
    shard: str = ""
    work: Path = Path("runs/paper")
    out: Path = Path("docs/results/paper")


@dataclass(frozen=True)
class Subject:
    """The model that is asked, as the plan must know it."""

    shape: ModelShape
    tokens: int
    layout_frames: int
    frames: int


def run(settings: Settings, options: Options) -> None:
    """Reproduce one table, or estimate all. Raises InputError, or HarnessError where lmms-eval gave no scores."""
    names = table_names() if options.what == ALL else (options.what,)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    tables = [with_methods(table(name), methods) for name in names]
    if options.limit is not None and options.limit < 1:
        raise InputError(f"limit is {options.limit}; it must be at least 1")
    if options.dry_run:
        print(estimates(tables, options.limit))
        return
    for one in tables:
        print(reproduce(settings, options, one))


def estimates(tables: Sequence[Table], limit: int | None = None) -> str:
    """Return GPU hours and disk of the tables, as Markdown."""
    rows, unknown = [], dict[str, None]()
    for one in tables:
        known = published(one.config)
        tower = family_of_type(known.config["model_type"]).tower_shape(known.config, one.tokens // one.layout_frames)
        seen = tower_tflops(tower, one.layout_frames)[1]
        cells = [estimate(one, gpu, seen, 2.0 * known.parameters, limit) for gpu in gpus()]
        unknown |= dict.fromkeys(cells[0].unknown)
        questions = sum(
            min(limit or benchmarks()[name].questions, benchmarks()[name].questions) for name in one.benchmarks
        )
        hours = [f"{sum(cell.hours.values()):.1f}" for cell in cells]
        rows.append((one.name, one.config, f"{questions:,}", str(len(one.rows)), *hours, f"{cells[0].disk_gb:.0f}"))
    header = ("what", "model", "questions", "rows", *(f"hours on one {gpu.name}" for gpu in gpus()), "GB on disk")
    assumed = [one.title for one in benchmarks().values() if one.assumed]
    notes = (
        f"Not in the disk: the videos of {', '.join(unknown)}, whose size is not known here. "
        f"Numbers of questions of {', '.join(assumed)} are assumed. The A40 computes as fast as the paper's Table 4 "
        "says, the H100 is given the same share of its peak. Reading the videos comes on top of the hours."
    )
    return f"{markdown(header, rows)}\n\n{notes}"


def reproduce(settings: Settings, options: Options, one: Table) -> str:
    """Ask and score a table, write its document and page, and return the page; a sentence after a shard."""
    model = options.model or one.model
    rehearsal = model in settings.embedded
    subject = _subject(settings, model, one) if rehearsal else _published_subject(one)
    rows, left_out = fitting(one.rows, subject.shape, subject.tokens, subject.layout_frames)
    job = _job(settings, options, one, model, rows, rehearsal)
    run_job(job)
    if job.shard:
        return f"shard {job.shard} of {one.name} is answered; run without --shard to score all"
    document = {
        "kind": "figure" if one.name.startswith("figure") else "table",
        "table": one.name,
        "title": f"{one.name.capitalize()}: {one.title}"
        if not rehearsal
        else f"{one.name.capitalize()}, rehearsed on {model}",
        "source": SOURCE,
        "command": _command(options),
        "model": model,
        "rehearsal": rehearsal,
        "limit": job.limit,
        "benchmarks": list(one.benchmarks),
        "left_out": left_out,
        **collect(job, one, rows, rehearsal=rehearsal, theirs=model == one.model),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{one.name}-{model.rpartition('/')[2]}"
    path.with_suffix(".json").write_text(to_json(document), "utf-8")
    page = paper_page(document)
    path.with_suffix(".md").write_text(page, "utf-8")
    return page


def to_json(document: Document) -> str:
    """Return a document as text, one row a line."""
    rows = ",\n".join(json.dumps(row) for row in document["rows"])
    rest = json.dumps({name: value for name, value in document.items() if name != "rows"}, indent=1)
    return f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n'


def collect(job: Job, one: Table, rows: Sequence[Row], *, rehearsal: bool, theirs: bool) -> Document:
    """Read store and scores of a finished job into `rows`, `setup`, and `attention` where it was measured.

    The paper's numbers stand next to ours where the model is `theirs`.
    """
    asked: dict[str, list[dict[str, Any]]] = {row.run.label: [] for row in rows}
    identities = {row.run.identity: row.run.label for row in rows}
    scores = {row.run.label: read_scores(job, row.run) for row in rows if not row.run.maps}
    wanted = {(score.task, score.doc_id) for found in scores.values() for score in found}
    videos: dict[tuple[str, int], str] = {}
    for record in Store(job.store):
        label = identities.get(MethodRun(**record["run"]).identity)
        key = record["task"], record["doc_id"]
        if label is not None and record["model"] == job.model and key in wanted:
            asked[label].append(record)
            videos[key] = record["video"]
    answered = [row for row in rows if not row.run.maps]
    vanilla = next(row.run.label for row in answered if row.run.method == "vanilla")
    by_row: dict[str, dict[str, Document]] = {row.run.label: {} for row in answered}
    for name in one.benchmarks:
        task = benchmarks()[name].rehearsal if rehearsal else benchmarks()[name].task
        found = verdicts({label: _of_task(values, task) for label, values in scores.items()}, videos)
        for row in answered:
            label, printed = row.run.label, row.scores if theirs else {}
            whole = score_document(found, benchmarks()[name], label, vanilla, printed.get(name))
            for group in GROUPS.get(name, ()):
                part = found.of_category(group)
                if len(part.clips):
                    whole[group] = score_document(part, benchmarks()[name], label, vanilla, printed.get(group))
            by_row[label][name] = whole
    maps = [record for row in rows if row.run.maps for record in asked[row.run.label]]
    answers = [record for row in answered for record in asked[row.run.label]]
    return {
        "setup": setup_document(answers),
        **({"attention": attention_document(maps)} if maps else {}),
        "rows": [row_document(row, asked[row.run.label], by_row[row.run.label]) for row in answered],
    }


def _of_task(scores: Sequence[Score], task: str) -> list[Score]:
    found = [score for score in scores if score.task == task or score.task.startswith(f"{task}_")]
    if not found:
        raise HarnessError(f"lmms-eval scored no question of {task}")
    return found


def _job(settings: Settings, options: Options, one: Table, model: str, rows: Sequence[Row], rehearsal: bool) -> Job:
    folder = options.work.resolve() / model.rpartition("/")[2]
    job = Job(
        model=model,
        runs=tuple(row.run for row in rows),
        tasks=tuple(benchmarks()[name].task for name in one.benchmarks),
        folder=folder,
        limit=options.limit,
        shard=options.shard,
        frames=one.frames,
        device=None if settings.device == "auto" else settings.device,
    )
    if not rehearsal:
        return job
    limit = options.limit or REHEARSAL_QUESTIONS
    include = folder / f"rehearsal-{limit}"
    write_rehearsal(include, limit)
    tasks = tuple(benchmarks()[name].rehearsal for name in one.benchmarks)
    return replace(
        job, tasks=tasks, include=include, limit=limit, frames=None, device=job.device or "cpu", offline=True, threads=1
    )


def _published_subject(one: Table) -> Subject:
    return Subject(shape_named(one.config), one.tokens, one.layout_frames, one.frames)


def _subject(settings: Settings, model: str, one: Table) -> Subject:
    """Measure an embedded model on a clip: its visual tokens decide which rows it can run."""
    backbone = load(model, settings)
    clip = make_clip(0, "heldout", frames=backbone.default_frames)
    grid = backbone.processor.video.grid(*clip.frames.shape[:3])
    prompt = backbone.processor.prompt("?", frames=len(clip.frames), grid=grid)
    layout = visual_layout(backbone.model.config, prompt["input_ids"], prompt.get("video_grid_thw"))
    shape = ModelShape.from_config(backbone.model.config.text_config)
    return Subject(shape, len(layout), layout.frames, len(clip.frames))


def _command(options: Options) -> str:
    parts = ["python -m sharp_demo reproduce", options.what]
    for name in ("model", "limit", "methods"):
        if value := getattr(options, name):
            parts.append(f"--{name} {value}")
    return " ".join(parts)
