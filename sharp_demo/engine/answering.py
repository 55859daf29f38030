"""Runs one method: its answer as events, its result, and what happens when it fails."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass

import torch

from sharp_demo import strings
from sharp_demo.backbones.features import model_inputs
from sharp_demo.engine.condition import DEVICE_LOST
from sharp_demo.engine.faults import free_memory, is_device_lost, is_out_of_memory
from sharp_demo.engine.figures import build_result, config_of
from sharp_demo.engine.generation import Answer, timed_prefill
from sharp_demo.engine.job import Job
from sharp_demo.engine.stages import Shared
from sharp_demo.errors import InputError
from sharp_demo.records import Event, MethodDone, MethodFailed, MethodStarted, Progress, Result, Text

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True)
class Answered:
    """A method's answer, and the job that gave it: fitted to the model, on the frames that memory allowed."""

    job: Job
    result: Result


def run_job(job: Job) -> Generator[Event, None, Answered | MethodFailed]:
    """Run a method; when it runs out of memory, once more with half the frames, which its result then says."""
    outcome = yield from _attempt(job, job.shared.stride)
    if _ran_out(outcome):
        free_memory()
        if len(job.shared.clip.frames) > 1 and not job.stop.is_set():
            yield Progress("retry", strings.less_frames(job.label))
            outcome = yield from _attempt(job, 2 * job.shared.stride)
            if _ran_out(outcome):
                free_memory()
    yield MethodDone(job.label, outcome.result) if isinstance(outcome, Answered) else outcome
    return outcome


def _ran_out(outcome: Answered | MethodFailed) -> bool:
    return isinstance(outcome, MethodFailed) and outcome.kind == OUT_OF_MEMORY


def _attempt(job: Job, stride: int) -> Generator[Event, None, Answered | MethodFailed]:
    """Run a method once, on every `stride`-th frame."""
    label = job.label
    if job.condition.lost:
        return MethodFailed(label, "device_lost", DEVICE_LOST)
    try:
        fitted = job.with_stride(stride).fitted()
        yield MethodStarted(label, fitted.method.name, config_of(fitted.method))
        return Answered(fitted, (yield from _answer(fitted)))
    except InputError as error:
        return MethodFailed(label, "refused", str(error))
    except Exception as error:
        if is_out_of_memory(error):
            log.warning("%s ran out of memory: %s", label, str(error))  # the error itself holds on to tensors
            return MethodFailed(label, OUT_OF_MEMORY, _memory_message(job.shared))
        log.exception("%s failed", label)
        if is_device_lost(error):
            job.condition.lost = DEVICE_LOST
            return MethodFailed(label, "device_lost", DEVICE_LOST)
        return MethodFailed(label, "internal", f"{label} failed for a reason that is our fault; the log has it")


@torch.inference_mode()
def _answer(job: Job) -> Generator[Event, None, Result]:
    """Prefill and decode with the job's method."""
    loaded, processor, model = job.loaded, job.loaded.backbone.processor, job.loaded.backbone.model
    inputs = model_inputs(job.shared.prompt, job.shared.features)
    answer = Answer()
    with job.attached(model, processor, loaded.bias_cache) as run:
        start = timed_prefill(model, inputs, run)
        for ids in answer.decode(model, processor.tokenizer, start, job.request.max_new_tokens, job.stop):
            yield Text(job.label, processor.decode(ids))
        return build_result(job, run, start, answer, length=inputs["input_ids"].shape[1])


def _memory_message(shared: Shared) -> str:
    layout = shared.layout
    return (
        f"the device ran out of memory at {layout.frames} x {layout.rows * layout.cols} = {layout.tokens} visual "
        "tokens: use fewer frames"
    )
