"""Accuracy of pruned answers on synthetic clips: the same clips and questions for every method and retention.

An answer counts when the whole greedy reply is the expected sentence (`Question.correct`). Intervals are bootstrapped
by clip, differences are paired by question. Nothing here depends on the wall clock: the same arguments give the same
document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any, get_args

import numpy as np
import torch

from lab.accuracy.asking import Asked, Film
from lab.accuracy.variants import Subject, Variant
from lab.accuracy.worlds import KINDS_OF, World, open_world, shipped_kinds, world_of
from lab.provenance import provenance
from lab.stats import ClipBootstrap, third_of_frames
from lab.world.records import Split, SyntheticClip
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.view import TowerMerging, VideoShape
from sharp_demo.cost import ModelShape, paper_tflops
from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning.matching import Prompted, match_flops, match_ttft
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.records import Match
from sharp_demo.settings import Settings

RETENTIONS = (0.25, 0.2, 0.15, 0.1, 0.05, 0.02)
MATCHES = ("tokens", "flops")  # unless others are asked for
EVALUATED = ("heldout", "validation")
PER_CLIP = 5  # more clips say more than more questions about one clip
CLIPS_PER_SEED = 1_000_000
QUESTIONS_DRAW = 2  # with the clip's number, the seed of which of its questions are asked
THIRDS = ("early", "middle", "late")
MAX_JOBS = 4
ROUND = 6  # decimals in the document

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to evaluate. Raises InputError (or MethodError, for a variant) when a value is out of range."""

    variants: tuple[Variant, ...]
    retentions: tuple[float, ...] = RETENTIONS
    matches: tuple[str, ...] = MATCHES
    questions: int = 400
    seed: int = 0
    split: Split = "heldout"
    kinds: tuple[str, ...] = ()  # none: those the model's card says it was shipped for, else all
    per_clip: int = PER_CLIP
    world: str = ""  # none: the one the model was trained on

    def __post_init__(self) -> None:
        if not self.variants or not self.retentions or not self.matches:
            raise InputError("nothing to evaluate: name at least one method, one retention and one match")
        for retention in self.retentions:
            if not 0 < retention <= 1:
                raise InputError(f"the retention is {retention:g}; it must be above 0 and at most 1")
        if len(set(self.retentions)) < len(self.retentions):
            raise InputError("a retention is named twice")
        for what, value, low in (("questions", self.questions, 1), ("seed", self.seed, 0)):
            if value < low:
                raise InputError(f"{what} is {value}; it must be at least {low}")
        worlds = (self.world,) if self.world else tuple(KINDS_OF)
        for what, values, known in (
            ("match", self.matches, get_args(Match)),
            ("split", (self.split,), EVALUATED),
            ("world", worlds, tuple(KINDS_OF)),
            ("kind", self.kinds, [kind for world in worlds for kind in KINDS_OF.get(world, ())]),
        ):
            for one in values:
                if one not in known:
                    raise InputError(f"there is no {what} {one!r}; there are {', '.join(known)}")

    def for_model(self, backbone: Backbone) -> Plan:
        """This plan with world and kinds of question settled: where it names none, those of the model's card."""
        world = self.world or world_of(backbone.folder)
        return replace(self, world=world, kinds=self.kinds or shipped_kinds(backbone.folder, world))


@dataclass(frozen=True)
class Row:
    """One line of the results: a variant at the retention that was asked for, and the method that ran."""

    variant: Variant
    asked: float
    match: str
    method: Method
    visual_per_layer: tuple[int, ...]

    @property
    def run(self) -> tuple[str, tuple[int, ...]]:
        """Rows with the same run are measured once."""
        return self.variant.name, self.visual_per_layer


@dataclass
class Tally:
    """What one run measured, question by question."""

    right: list[bool] = field(default_factory=list)
    evidence_kept: list[float] = field(default_factory=list)  # share of the evidence tokens; NaN where none is named
    evidence_merged: list[float] = field(default_factory=list)  # and of those averaged into a token that is kept
    thirds: list[list[float]] = field(default_factory=list)  # share of the kept tokens in each third of the clip
    visual: list[list[int]] = field(default_factory=list)  # visual tokens that entered each layer
    mlp: list[list[int]] = field(default_factory=list)  # and its MLP


Runs = dict[tuple[str, tuple[int, ...]], Row]
Tallies = dict[tuple[str, tuple[int, ...]], Tally]


def evaluate(
    model: str, settings: Settings, plan: Plan, *, jobs: int = 1, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Evaluate one model; a JSON-ready document with `setup`, `questions` and `results`.

    `jobs` processes share the clips; the document does not depend on it. Raises InputError for what cannot be run.
    """
    backbone = load(model, settings)
    plan = plan.for_model(backbone)
    clips = choose_clips(backbone, plan)
    with one_thread(backbone):
        rows, unreachable = lay_out(backbone, clips[0], plan)
        tallies = measure_in_parallel(backbone, settings, clips, rows, jobs, progress)
        return document(backbone, plan, clips, rows, unreachable, tallies)


# -- what is asked ---------------------------------------------------------------------------------------------------


def choose_clips(backbone: Backbone, plan: Plan, world: World | None = None) -> list[SyntheticClip]:
    """Clips of the plan's split from its seed on, with `per_clip` questions each, at the model's resolution.

    world : the plan's, where it is open already.

    A clip has one question of each kind it allows; which of the kinds are asked is drawn for each clip, so that
    a kind with many possible questions is asked no more often than one with few.
    """
    plan = plan.for_model(backbone)
    world = world or open_world(plan.world)
    video = backbone.processor.video
    size = video.resized(backbone.default_frames, world.side, world.side)[0]
    clips: list[SyntheticClip] = []
    missing, number = plan.questions, plan.seed * CLIPS_PER_SEED
    while missing > 0:
        clip = world.clip(number, plan.split, size, backbone.default_frames)
        usable = sorted((one for one in clip.questions if one.kind in plan.kinds), key=lambda one: one.kind)
        drawn = np.random.default_rng((number, QUESTIONS_DRAW)).permutation(len(usable))
        chosen = [usable[i] for i in drawn[: min(plan.per_clip, missing)]]
        if chosen:
            clips.append(replace(clip, questions=tuple(chosen)))
        missing, number = missing - len(chosen), number + 1
    return clips


def lay_out(backbone: Backbone, clip: SyntheticClip, plan: Plan) -> tuple[list[Row], list[dict[str, Any]]]:
    """Every row of the results, and the (variant, retention) pairs that a method refuses: too low for it, or too dear.

    Each row runs once on `clip`, since some methods refuse only when they see the video's frames.
    """
    film = Film(backbone, clip.frames, BiasCache())
    asked_first = Asked(film, clip.questions[0].text)
    n, frames = len(asked_first.layout), asked_first.layout.frames
    shape = ModelShape.from_config(backbone.model.config.text_config)
    prompt = prompted(backbone, asked_first.layout)
    rows: list[Row] = []
    unreachable: list[dict[str, Any]] = []
    for match in plan.matches:
        for variant in plan.variants:
            variant.build(0.99).fitted(shape.layers).check(shape.layers)  # an option this model cannot have
            for asked in plan.retentions if variant.group != "reference" else (1.0,):
                try:
                    method = matched(variant.build(asked).fitted(shape.layers), match, prompt)
                    asked_first.prefill(method)  # checks it too
                except MethodError as error:
                    unreachable.append({"method": variant.name, "retention": asked, "match": match, "why": str(error)})
                    continue
                counts = tuple(method.visual_per_layer(shape.layers, n, frames))
                rows.append(Row(variant, asked, match, method, counts))
    return rows, unreachable


def visual_tokens(backbone: Backbone, clip: SyntheticClip) -> int:
    """Visual tokens of a clip; all clips of a plan have as many."""
    return len(Asked(Film(backbone, clip.frames, BiasCache()), clip.questions[0].text).layout)


def prompted(backbone: Backbone, layout: VisualLayout) -> Prompted:
    """What the costs of a clip are counted from: as if no two of its frames were equal, so that all clips agree."""
    config = backbone.model.config
    tower = partial(family_of(config).tower_shape, config.to_dict())
    video = VideoShape(layout.frames, layout.rows, layout.cols, backbone.processor.video.resizable)
    text, prefix = layout.length - len(layout), int(layout.index[0])
    return Prompted(ModelShape.from_config(config.text_config), tower, video, layout.frames, text, prefix)


def matched(method: Method, match: str, prompt: Prompted) -> Method:
    """The method at the retention asked for, or at the one that costs what FastV (K=2) costs there."""
    if match == "ttft":
        return match_ttft(method, prompt)
    return method if match == "tokens" else match_flops(method, prompt.shape, prompt.video.tokens, prompt.video.frames)


# -- measuring -------------------------------------------------------------------------------------------------------


def measure_in_parallel(
    backbone: Backbone, settings: Settings, clips: Sequence[SyntheticClip], rows: Sequence[Row], jobs: int,
    progress: Progress,
) -> Tallies:  # fmt: skip
    """`measure` over interleaved shares of the clips; this process takes the first share and reports on it."""
    runs: Runs = {row.run: row for row in reversed(rows)}
    jobs = max(1, min(jobs, len(clips)))
    if jobs == 1:
        return measure(backbone, clips, runs, progress)
    with ProcessPoolExecutor(jobs - 1, mp_context=get_context("spawn")) as pool:
        shares = [
            pool.submit(_measure_share, backbone.name, settings, clips[start::jobs], runs) for start in range(1, jobs)
        ]
        parts = [measure(backbone, clips[::jobs], runs, progress), *(share.result() for share in shares)]
    return _interleave(parts, clips)


def _measure_share(model: str, settings: Settings, clips: Sequence[SyntheticClip], runs: Runs) -> Tallies:
    backbone = load(model, settings)
    with one_thread(backbone):
        return measure(backbone, clips, runs, _end_with_parent)


def _end_with_parent(done: int, total: int) -> None:
    """Called at every clip: nobody waits for the rest when the process that shares out the clips was killed."""
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("the process that asked for this share has ended")


def _interleave(parts: Sequence[Tallies], clips: Sequence[SyntheticClip]) -> Tallies:
    """Undo the shares: clip i was measured by part i modulo their number."""
    whole = {run: Tally() for run in parts[0]}
    at = [0] * len(parts)
    for i, clip in enumerate(clips):
        part, count = i % len(parts), len(clip.questions)
        span = slice(at[part], at[part] + count)
        at[part] += count
        for run, tally in whole.items():
            for name in vars(tally):
                getattr(tally, name).extend(getattr(parts[part][run], name)[span])
    return whole


def measure(
    backbone: Backbone, clips: Sequence[SyntheticClip], runs: Runs, progress: Progress = lambda done, total: None
) -> Tallies:
    """Ask every question of every clip with every run."""
    bias_cache = BiasCache()
    tallies: Tallies = {run: Tally() for run in runs}
    for done, clip in enumerate(clips):
        progress(done, len(clips))
        film = Film(backbone, clip.frames, bias_cache)
        for question in clip.questions:
            whole, subject = Asked(film, question.text), Subject(clip, question)
            merged: dict[TowerMerging, Asked] = {}
            for run, row in runs.items():
                merging = row.method.view(prompted(backbone, whole.layout).video).merging
                if merging is not None and merging not in merged:
                    merged[merging] = Asked(film.merged(merging), question.text)
                _ask(whole if merging is None else merged[merging], subject, row, tallies[run])
    progress(len(clips), len(clips))
    return tallies


def _ask(asked: Asked, subject: Subject, row: Row, tally: Tally) -> None:
    layout, evidence = asked.layout, subject.evidence(asked.layout)
    method = replace(row.method, **subject.knowledge(row.variant, layout))
    right, run = asked.is_right(method, subject.question)
    kept = run.kept.cpu().numpy()
    third = third_of_frames(layout.frames)[kept // (layout.rows * layout.cols)]
    tally.right.append(right)
    own, merged = evidence_left(evidence, run)
    tally.evidence_kept.append(own)
    tally.evidence_merged.append(merged)
    tally.visual.append(list(run.visual_per_layer))
    tally.mlp.append(list(run.mlp_per_layer))
    tally.thirds.append((np.bincount(third, minlength=3) / len(kept)).tolist())


def evidence_left(evidence: Sequence[int], run: Run) -> tuple[float, float]:
    """Shares of the evidence tokens that are kept, and that were averaged into one that is; NaN where none is named."""
    if not evidence:
        return float("nan"), float("nan")
    kept = np.isin(evidence, run.kept.cpu().numpy())
    merged = run.merged_into.cpu().numpy()[list(evidence)] >= 0
    return float(kept.mean()), float((merged & ~kept).mean())


@contextmanager
def one_thread(backbone: Backbone) -> Iterator[None]:
    """One torch thread on a CPU: small matrices gain nothing from more, and sums must not depend on the machine."""
    before = torch.get_num_threads()
    if backbone.model.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_jobs(settings: Settings) -> int:
    """Processes to share clips between: the cores this process may use, at most four; one on an accelerator."""
    if settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available()):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_JOBS, cores)


# -- the document ----------------------------------------------------------------------------------------------------


def document(
    backbone: Backbone, plan: Plan, clips: Sequence[SyntheticClip], rows: Sequence[Row],
    unreachable: list[dict[str, Any]], tallies: Tallies,
) -> dict[str, Any]:  # fmt: skip
    """The JSON document: `results` has one entry per variant, retention and match.

    `kept` and `tflops_ratio` are what was achieved, as means over the questions: some methods' counts depend on
    the clip.
    """
    asked = [(clip, question) for clip in clips for question in clip.questions]
    bootstrap = ClipBootstrap(np.array([clip.seed for clip, _ in asked]), seed=plan.seed)
    kinds = np.array([question.kind for _, question in asked])
    positions = np.array([question.position for _, question in asked])
    shape, n = ModelShape.from_config(backbone.model.config.text_config), visual_tokens(backbone, clips[0])
    results = []
    for row in rows:
        tally = tallies[row.run]
        right, kept = np.array(tally.right, float), [layers[-1] for layers in tally.visual]
        costs = [paper_tflops(shape, layers, mlp) for layers, mlp in zip(tally.visual, tally.mlp, strict=True)]
        results.append(
            {
                "model": backbone.name,
                "method": row.variant.name,
                "label": row.variant.label,
                "group": row.variant.group,
                "options": dict(row.variant.options),
                "retention": row.asked,
                "match": row.match,
                "kept": round(float(np.mean(kept))),
                "kept_share": _rounded(np.mean(kept) / n),
                "tflops_ratio": _rounded(np.mean(costs) / paper_tflops(shape, [n] * shape.layers)),
                "n": len(right),
                "accuracy": _rounded(right.mean()),
                "ci95": [_rounded(bound) for bound in bootstrap.mean_interval(right)],
                "by_kind": _means(right, kinds),
                "by_position": _means(right, positions),
                "evidence_kept": _nanmean(tally.evidence_kept),
                "evidence_merged": _nanmean(tally.evidence_merged),
                "kept_by_third": [_rounded(share) for share in np.mean(tally.thirds, 0)],
                "versus": _versus(row, rows, tallies, bootstrap),
                "right": "".join(str(int(value)) for value in tally.right),
            }
        )
    return {
        "setup": setup_of(backbone, plan),
        "questions": {
            "n": len(asked),
            "clips": len(clips),
            "by_kind": {kind: int((kinds == kind).sum()) for kind in sorted(set(kinds))},
            "by_position": {name: int((positions == name).sum()) for name in sorted(set(positions))},
            "asked": [[clip.seed, question.kind, question.position] for clip, question in asked],
        },
        "results": results,
        "unreachable": unreachable,
    }


def setup_of(backbone: Backbone, plan: Plan) -> dict[str, Any]:
    """What the document was made with."""
    plan = plan.for_model(backbone)
    return {
        "world": plan.world,
        "split": plan.split,
        "seed": plan.seed,
        "retentions": list(plan.retentions),
        "matches": list(plan.matches),
        "methods": [variant.name for variant in plan.variants],
        "questions": plan.questions,
        "per_clip": plan.per_clip,
        "kinds": list(plan.kinds),
        **provenance(backbone),
    }


def _versus(row: Row, rows: Sequence[Row], tallies: Tallies, bootstrap: ClipBootstrap) -> dict[str, Any]:
    """Paired differences in accuracy to vanilla, to random selection at the same cut, and to the best other method."""
    peers = [one for one in rows if one.match == row.match and one.asked == row.asked and one is not row]
    vanilla = [one for one in rows if one.match == row.match and one.variant.group == "reference" and one is not row]
    cut = getattr(row.method, "layer", None)
    random = [one for one in peers if one.variant.method == "random" and getattr(one.method, "layer", None) == cut]
    methods = [one for one in peers if one.variant.group == "method" and one.variant.method != row.variant.method]
    best = max(methods, key=lambda one: np.mean(tallies[one.run].right), default=None)
    right = np.array(tallies[row.run].right, float)
    found = {}
    for name, other in (("vanilla", _first(vanilla)), ("random", _first(random)), ("best", best)):
        if other is not None and row.variant.group != "reference":
            difference, interval = bootstrap.difference(right, np.array(tallies[other.run].right))
            found[name] = {
                "method": other.variant.name,
                "difference": _rounded(difference),
                "ci95": [_rounded(bound) for bound in interval],
            }
    return found


def _first(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


def _means(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    return {str(group): _rounded(values[groups == group].mean()) for group in sorted(set(groups))}


def _nanmean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return _rounded(np.mean(known)) if known else None


def _rounded(value: Any) -> float:
    return round(float(value), ROUND)
