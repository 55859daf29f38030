"""Times the prefills of methods that have answered, interleaved in rounds."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch

from sharp_demo.backbones.features import model_inputs
from sharp_demo.engine.answering import Answered
from sharp_demo.engine.condition import DEVICE_LOST
from sharp_demo.engine.faults import free_memory, is_device_lost, is_out_of_memory
from sharp_demo.engine.figures import timed_result
from sharp_demo.engine.generation import Stop, TimedPrefill, timed_prefill
from sharp_demo.engine.job import Job
from sharp_demo.engine.timing import speedup_of, timing_rounds
from sharp_demo.records import Event, Result, Timing

log = logging.getLogger(__name__)


def time_answers(
    answered: Sequence[Answered], budget_s: float, stop: Stop
) -> Generator[Event, None, tuple[Result, ...]]:
    """Time the prefills of all whole answers in rounds, for `budget_s` seconds; return the results with their times.

    Their answers were the warm-up. A stop, or a failure that the answers did not meet, ends the rounds: the whole
    ones count, and the answers stand.
    """
    whole = [one for one in answered if one.result.status == "done"]
    samples: dict[str, list[TimedPrefill]] = {one.job.label: [] for one in whole}
    if whole and budget_s > 0 and not stop.is_set():
        yield from _measure(whole, samples, budget_s, stop)
    rounds = min(map(len, samples.values()), default=0)
    timed = [timed_result(one.result, samples.get(one.job.label, [])[:rounds]) for one in answered]
    baseline = next((one for one in timed if one.method == "vanilla"), None)
    if baseline is None:
        return tuple(timed)
    return tuple(one if one.method == "vanilla" else replace(one, speedup=speedup_of(one, baseline)) for one in timed)


def _measure(
    whole: Sequence[Answered], samples: dict[str, list[TimedPrefill]], budget_s: float, stop: Stop
) -> Generator[Event, None, None]:
    """Fill in `samples` round by round."""
    for number, one in timing_rounds(whole, budget_s):
        yield Timing(number, budget_s)
        if stop.is_set():
            return
        try:
            samples[one.job.label].append(_time(one.job))
        except Exception as error:
            log.exception("%s failed while it was timed", one.job.label)
            if is_device_lost(error):
                one.job.condition.lost = DEVICE_LOST
            elif is_out_of_memory(error):
                free_memory()
            return


@torch.inference_mode()
def _time(job: Job) -> TimedPrefill:
    """Prefill once; nothing of it is kept, so that the next one's peak is its own."""
    model = job.loaded.backbone.model
    inputs = model_inputs(job.shared.prompt, job.shared.features)
    with job.attached(model, job.loaded.backbone.processor, job.loaded.bias_cache) as run:
        return timed_prefill(model, inputs, run).timed
