"""The figures of a result, each a function of what was measured."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import transformers

from sharp_demo import __version__, strings
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.view import WHOLE
from sharp_demo.cost import ModelShape, exact_tflops, paper_tflops, tower_tflops
from sharp_demo.engine.generation import SETUP, Answer, Prefilled, TimedPrefill
from sharp_demo.engine.job import Job, reads_tower
from sharp_demo.engine.stages import Shared
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Role, Run
from sharp_demo.records import Latency, Layout, Memory, Result, Stage, Tflops, TokenCounts

ONCE = "once"  # `part_of` of a stage that stands next to the figures, in none of them


def build_result(job: Job, run: Run, start: Prefilled, answer: Answer, length: int) -> Result:
    """Return what a job's method did, not timed in rounds yet; `length` is the prompt's, in tokens."""
    backbone, model, method, shared = job.loaded.backbone, job.loaded.backbone.model, job.method, job.shared
    kept, role = kept_by_frame(run, shared.layout)
    tower_paper, tower_exact = seen_tflops(job)
    return Result(
        method=method.name,
        label=job.label,
        config=config_of(method),
        status="stopped" if answer.stopped else "done",
        answer=backbone.processor.decode(answer.ids),
        answer_tokens=len(answer.ids),
        first_token_prob=_finite(start.probability),
        tokens=token_counts(run, length, shared.whole),
        visual_per_layer=list(run.visual_per_layer),
        left_before=run.left_before.tolist(),
        kv_per_layer=[rows - (length - shared.layout.tokens) for rows in start.kv_rows],
        layout=shared.layout,
        kept=kept,
        role=role,
        merged_into=merged_pairs(run),
        scores={name: [_finite(value) for value in values.tolist()] for name, values in run.scores.items()},
        segments=[list(segment) for segment in run.segments],
        latency_ms=latency_of(job, start.timed, answer),
        tflops=replace(
            prefill_tflops(job.loaded.shape, method, run, length), tower_paper=tower_paper, tower_exact=tower_exact
        ),
        memory=Memory(start.kv_bytes, start.timed.peak_bytes, start.timed.added_bytes),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention_backend=backbone.info.attention_backend,
        seed=job.request.seed,
        versions=versions(),
        model=backbone.name,
        notes=[*_thin_notes(shared), *filter(None, [_view_note(shared), backbone.info.note])],
        encoded_frames=shared.features.encoded,
        own_vision=shared.view != WHOLE,
        trace={name: values.tolist() for name, values in run.trace.items()},
    )


def latency_of(job: Job, timed: TimedPrefill, answer: Answer) -> Latency:
    """Return what a job's method took to answer.

    `decode_video` and `vision` were measured once for all methods; the stage `vision_scores`, reading the tower's
    attention, is paid by the methods that choose by it.
    """
    shared, signals = job.shared, job.shared.features.signals
    reading = signals.ms if signals is not None and reads_tower(job.method) else 0.0
    once, before = timed.setup_ms, shared.clip.ms + shared.vision_ms + reading
    return Latency(
        decode_video=shared.clip.ms,
        vision=shared.vision_ms,
        bias_setup=once,
        before_prefill=before,
        prefill=timed.warm_ms,
        first_token=before + timed.warm_ms,
        decode=answer.ms,
        decode_per_token=answer.ms / answer.steps if answer.steps else None,
        total=before + timed.warm_ms + answer.ms,
        stages={
            "decode_video": Stage(shared.clip.ms, shared=True),
            "vision": Stage(shared.vision_ms, shared=shared.view == WHOLE),
            **({"vision_scores": Stage(reading, shared=False)} if reading else {}),
            **({SETUP: Stage(once, shared=False, part_of=ONCE)} if once else {}),
            **_prefill_stages(timed),
            "decode": Stage(answer.ms, shared=False),
        },
    )


def timed_result(result: Result, rounds: Sequence[TimedPrefill]) -> Result:
    """Return a result with the figures of its timing rounds in place of its answer's own prefill.

    The (lower) median round counts, stages and all; of the memory the largest.
    """
    if not rounds:
        return result
    answered = result.latency_ms
    median = sorted(rounds, key=lambda one: one.warm_ms)[(len(rounds) - 1) // 2]
    own = {name: stage for name, stage in answered.stages.items() if stage.part_of != "prefill"}
    latency = replace(
        answered,
        prefill=median.warm_ms,
        first_token=answered.before_prefill + median.warm_ms,
        total=answered.before_prefill + median.warm_ms + answered.decode,
        stages={**own, **_prefill_stages(median)},
        rounds=[one.warm_ms for one in rounds],
        cpu_rounds=[one.cpu_ms for one in rounds if one.cpu_ms is not None],
    )
    memory = replace(
        result.memory,
        peak_bytes=max((one.peak_bytes for one in rounds if one.peak_bytes is not None), default=None),
        added_bytes=max((one.added_bytes for one in rounds if one.added_bytes is not None), default=None),
    )
    return replace(result, latency_ms=latency, memory=memory)


def _prefill_stages(timed: TimedPrefill) -> dict[str, Stage]:
    inner = {name: ms for name, ms in timed.stages.items() if name != SETUP}
    parts = {**inner, "forward": timed.warm_ms - sum(inner.values())}
    return {name: Stage(ms, shared=False, part_of="prefill") for name, ms in parts.items()}


def prefill_tflops(shape: ModelShape, method: Method, run: Run, length: int) -> Tflops:
    """Return the TFLOPs of one prefill that `run` describes, and of the set-up that its first use paid."""
    assert run.layout is not None
    n, prefix = len(run.layout), int(run.layout.index[0])
    text = length - n
    achieved = run.visual_per_layer
    extra: Counter[str] = Counter()  # of all parts together
    options: dict[str, Any] = {}  # of the part that masks segments, if there is one
    for part in method.fitted(shape.layers).parts:
        own = config_of(part)
        if part.active:
            macs = part.overhead_macs(shape, n, text, prefix, frames=run.layout.frames, achieved=achieved)
            extra.update(macs)
        if "segm_layers" in own:
            options = own
    setup = extra.pop(SETUP, 0)
    masked = [layer for layer in options.get("segm_layers", ()) if options["segm"] and layer < options["layer"]]
    return Tflops(
        paper=paper_tflops(shape, achieved, run.mlp_per_layer),
        exact=exact_tflops(
            shape,
            achieved,
            text,
            mlp_per_layer=run.mlp_per_layer,
            prefix_tokens=prefix,
            segments=run.segment_tokens,
            masked_layers=masked,
            prefix_visible=options.get("sys_visible", True),
            extra_macs=sum(extra.values()),
        ),
        setup=2e-12 * setup,
    )


def seen_tflops(job: Job) -> tuple[float, float]:
    """Return the TFLOPs of the vision tower over the frames that it encoded, as the papers count and exact."""
    config, layout = job.loaded.backbone.model.config, job.shared.layout
    tower = family_of(config).tower_shape(config.to_dict(), layout.rows * layout.cols)
    return tower_tflops(tower, job.shared.features.encoded, job.shared.view.merging)


def config_of(method: Method) -> dict[str, Any]:
    """Return every hyperparameter in force, JSON-ready."""
    values = {option.name: getattr(method, option.name) for option in fields(method)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def token_counts(run: Run, length: int, visual: int) -> TokenCounts:
    """Count the tokens of the prompt, of the `visual` tokens of the whole video those kept, and their layers' mean."""
    kept = len(run.kept)
    return TokenCounts(
        prompt=length,
        visual=visual,
        kept=kept,
        retention=kept / visual,
        layer_mean=sum(run.visual_per_layer) / len(run.visual_per_layer) / visual,
    )


def kept_by_frame(run: Run, layout: Layout) -> tuple[list[list[int]], list[list[str]]]:
    """Return per frame the row-major indices of its kept tokens, and the roles for which they were kept."""
    per_frame = layout.rows * layout.cols
    kept: list[list[int]] = [[] for _ in range(layout.frames)]
    role: list[list[str]] = [[] for _ in range(layout.frames)]
    for slot, why in zip(run.kept.tolist(), run.role.tolist(), strict=True):
        kept[slot // per_frame].append(slot % per_frame)
        role[slot // per_frame].append(Role(why).label)
    return kept, role


def merged_pairs(run: Run) -> list[list[int]]:
    """Return [from_slot, to_slot] of every token that was averaged into another."""
    slots = (run.merged_into >= 0).nonzero().squeeze(1)
    return torch.stack((slots, run.merged_into[slots]), 1).tolist()


def versions() -> dict[str, str]:
    """Return what the figures were made with."""
    return {
        "sharp_demo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _finite(value: float) -> float | None:
    """Return a score as JSON can hold it: None where its token was gone (NaN) or half precision overflowed."""
    return value if math.isfinite(value) else None


def _thin_notes(shared: Shared) -> list[str]:
    return [f"Memory ran out: this answer saw only {len(shared.clip.frames)} frames."] if shared.stride > 1 else []


def _view_note(shared: Shared) -> str:
    """Say what a method with a view of its own did not share with the others."""
    view, layout = shared.view, shared.layout
    if view.merging is not None:
        return strings.own_tower(view.merging.share)
    if view.cells is not None:
        return strings.own_cells(layout.rows, layout.cols)
    return strings.own_frames(len(shared.clip.frames)) if view.frames is not None else ""
