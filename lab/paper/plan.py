"""What a table takes: its rows as runs, its benchmarks as tasks, and the GPU hours and disk before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lab.paper.runs import MethodRun, checked
from sharp_demo.cost import ModelShape, exact_tflops, shape_named
from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning.matching import match_flops
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import make_method

HERE = Path(__file__).parent
TEXT_TOKENS = 150  # of a question with its options and the task's instructions
ANSWER_TOKENS = 3  # a letter, perhaps a bracket, and the end
RECORD_BYTES = 1500  # of one answer in the store
# The paper's own time (Table 4): vanilla's prefill of 6,272 visual tokens on an A40. Everything else follows from it.
PAPER_CONFIG, PAPER_TOKENS, PAPER_TEXT, PAPER_PREFILL_S = "table4", 6272, 40, 1.1816


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as lmms-eval has it; `questions` may be `assumed`, `gigabytes` unknown."""

    title: str
    task: str
    rehearsal: str
    hub: str
    questions: int
    assumed: bool
    gigabytes: float | None
    mean_of_categories: bool


@dataclass(frozen=True)
class Row:
    """One row of a table: the run, and what the paper prints of it, in percent and milliseconds."""

    run: MethodRun
    printed_retention: str = ""
    tflops: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    prefill_ms: float | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes
    ----------
    name, title, model, config : its name here, its heading, the checkpoint of the hub and its configuration.
    frames, layout_frames, tokens : sampled frames, frames of the layout, visual tokens. benchmarks : in its order.
    """

    name: str
    title: str
    model: str
    config: str
    frames: int
    layout_frames: int
    tokens: int
    benchmarks: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Gpu:
    """What an estimate knows of a GPU: exact TFLOPs a second of a prefill, and bytes a second of its memory."""

    name: str
    tflops: float
    bandwidth: float


@dataclass(frozen=True)
class Estimate:
    """GPU hours by benchmark, and gigabytes; `unknown` names the benchmarks whose size is not in `disk_gb`."""

    hours: Mapping[str, float]
    disk_gb: float
    unknown: tuple[str, ...]


@cache
def benchmarks() -> dict[str, Benchmark]:
    return {name: Benchmark(**one) for name, one in json.loads((HERE / "benchmarks.json").read_text("utf-8")).items()}


def table_names() -> tuple[str, ...]:
    return tuple(_stored()["tables"])


def table(name: str) -> Table:
    """Return a table of the paper. Raises InputError that lists them."""
    stored = _stored()["tables"]
    if name not in stored:
        raise InputError(f"the paper has no {name!r} here; there are {', '.join(stored)}")
    values = dict(stored[name])
    rows = tuple(_row(dict(row)) for row in values.pop("rows"))
    if values.pop("maps", False):
        rows = (*rows, Row(MethodRun("attention", "vanilla", maps=True)))
    return Table(name=name, rows=rows, benchmarks=tuple(values.pop("benchmarks")), **values)


@cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((HERE / "paper.json").read_text("utf-8"))
    return stored


def _row(values: dict[str, Any]) -> Row:
    names = ("label", "method", "retention", "match", "options")
    run = MethodRun(**{name: values.pop(name) for name in names if name in values})
    return Row(run, **values)


def with_methods(one: Table, methods: Sequence[str]) -> Table:
    """Return the table with rows of further methods, each at the cost of every row of FastV."""
    budgets = [row.run for row in one.rows if row.run.method == "fastv"]
    if methods and not budgets:
        raise InputError(f"{one.name} has no rows of equal cost to add methods to; table1 and table2 have")
    added = [
        Row(MethodRun(f"{method}-{round(100 * budget.retention)}", method, budget.retention, "flops"))
        for method in methods
        for budget in budgets
    ]
    rows = (*one.rows, *added)
    checked(row.run for row in rows)
    return replace(one, rows=rows)


def fitting(rows: Sequence[Row], shape: ModelShape, tokens: int, frames: int) -> tuple[list[Row], dict[str, str]]:
    """Part the rows into those that a model of this shape can run, and the reasons of the others by label."""
    usable, refused = [], {}
    for row in rows:
        try:
            method_of(row.run, shape, tokens, frames).check(shape.layers)
        except MethodError as error:
            refused[row.run.label] = str(error)
        else:
            usable.append(row)
    return usable, refused


def method_of(run: MethodRun, shape: ModelShape, tokens: int, frames: int) -> Method:
    """Return the method as the engine runs it on that many visual tokens."""
    method = make_method(run.method, run.retention, dict(run.options)).fitted(shape.layers)
    return match_flops(method, shape, tokens, frames) if run.match == "flops" else method


def gpus() -> tuple[Gpu, ...]:
    """Return the A40 at the speed that the paper's Table 4 tells, and an H100 (SXM) at the same share of its peak.

    Peaks of dense bfloat16 and memory bandwidths are the data sheets': 149.7 and 989.4 TFLOP/s, 696 and 3,350 GB/s.
    """
    shape = shape_named(table(PAPER_CONFIG).config)
    speed = exact_tflops(shape, [PAPER_TOKENS] * shape.layers, PAPER_TEXT) / PAPER_PREFILL_S
    return Gpu("A40", speed, 696e9), Gpu("H100", speed * 989.4 / 149.7, 3350e9)


def estimate(one: Table, gpu: Gpu, tower_tflops: float, weight_bytes: float, limit: int | None = None) -> Estimate:
    """Estimate a table: one tower pass a question at most, a prefill and a short answer for every row.

    Parameters
    ----------
    tower_tflops : exact TFLOPs of the vision tower for one video. weight_bytes : of the checkpoint, read once for every
    answer token. limit : questions of each benchmark; None: all.

    Reading the videos, which the processor does, is not in it.
    """
    shape = shape_named(one.config)
    prefills = 0.0
    for row in one.rows:
        method = method_of(row.run, shape, one.tokens, one.layout_frames)
        counts = method.visual_per_layer(shape.layers, one.tokens, one.layout_frames)
        prefills += exact_tflops(shape, counts, TEXT_TOKENS, mlp_per_layer=method.mlp_per_layer(counts))
    seconds = (tower_tflops + prefills) / gpu.tflops + len(one.rows) * ANSWER_TOKENS * weight_bytes / gpu.bandwidth
    hours, disk, unknown = {}, weight_bytes / 1e9, []
    for name in one.benchmarks:
        known = benchmarks()[name]
        asked = known.questions if limit is None else min(limit, known.questions)
        hours[known.title] = asked * seconds / 3600
        disk += asked * len(one.rows) * RECORD_BYTES / 1e9 + (known.gigabytes or 0.0)
        if known.gigabytes is None:
            unknown.append(known.title)
    return Estimate(hours, disk, tuple(unknown))
