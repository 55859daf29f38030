"""Fair comparisons of times: interleaved rounds within a budget, and ratios within a round.

A round measures every case once; every other round runs backwards, so that a machine that slowly gets busier or hotter
treats all alike. What disturbs a round disturbs both sides of its ratios. Knows nothing of models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from sharp_demo.records import Ratio, Result, Speedup

T = TypeVar("T")

MAX_SPREAD = 0.25  # of the ratios, interquartile range over median: above it a ratio is not a figure
FEW = 3  # rounds below which their own spread says nothing
MOST_ROUNDS = 25  # more would only make a visitor wait


def round_order(cases: Sequence[T], number: int) -> list[T]:
    """Return the cases forwards in even rounds, backwards in odd ones."""
    return list(cases) if number % 2 == 0 else list(reversed(cases))


def timing_rounds(
    cases: Sequence[T],
    budget_s: float = math.inf,
    most: int = MOST_ROUNDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, T]]:
    """Yield (round, case) to be measured, one after another: at least one round, then as many as the budget holds.

    A round begins only if one as long as the longest so far ends within `budget_s` seconds. Time is what passes
    between the yields, by `clock`.
    """
    began, longest = clock(), 0.0
    for number in range(most):
        start = clock()
        if number and start - began + longest > budget_s:
            return
        for case in round_order(cases, number):
            yield number, case
        longest = max(longest, clock() - start)


def spread(samples: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return float((high - low) / middle) if middle else 0.0


def paired_ratio(reference: Sequence[float], samples: Sequence[float], least: int = 1) -> Ratio:
    """Return the median of the ratios reference / sample of the same round, with their range.

    Refused with fewer than `least` rounds, or when the ratios spread by more than `MAX_SPREAD`.
    """
    if len(reference) != len(samples):
        raise ValueError(f"{len(reference)} reference samples and {len(samples)} others are not pairs")
    count = len(samples)
    if count < least:
        return Ratio(None, rounds=count, refused=f"{count} round{'s' * (count != 1)}, at least {least} are needed")
    ratios = np.asarray(reference, float) / np.asarray(samples, float)
    low, high, wide = float(ratios.min()), float(ratios.max()), spread(ratios.tolist())
    if wide > MAX_SPREAD:
        return Ratio(None, low, high, count, f"spread {wide:.0%}")
    return Ratio(float(np.median(ratios)), low, high, count)


def speedup_of(result: Result, baseline: Result) -> Speedup | None:
    """Return what a result's method gained over vanilla's result of the same rounds.

    None where the two are not comparable: one was not timed, or saw fewer frames because memory was short. Fewer
    than `FEW` rounds cannot tell by their spread whether the machine was busy; processor time can.
    """
    own, other = result.latency_ms, baseline.latency_ms
    if not own.rounds or len(own.rounds) != len(other.rounds) or result.tokens.visual != baseline.tokens.visual:
        return None
    before = other.before_prefill, own.before_prefill
    prefill, cpu = paired_ratio(other.rounds, own.rounds), None
    first = _first_tokens(*before, other.rounds, own.rounds)
    if own.cpu_rounds and other.cpu_rounds:
        cpu = paired_ratio(other.cpu_rounds, own.cpu_rounds)
        if prefill.rounds < FEW:
            first = _confirmed(first, _first_tokens(*before, other.cpu_rounds, own.cpu_rounds))
            prefill = _confirmed(prefill, cpu)
    return Speedup(prefill, cpu, first, ceiling=other.first_token / max(own.before_prefill, 1e-9))


def _confirmed(ratio: Ratio, cpu: Ratio) -> Ratio:
    """Return the ratio, refused unless the one in processor time is within `MAX_SPREAD` of it."""
    if ratio.value and cpu.value and abs(ratio.value / cpu.value - 1) <= MAX_SPREAD:
        return ratio
    ends = [end for one in (ratio, cpu) for end in (one.low, one.high) if end is not None]
    return Ratio(None, min(ends), max(ends), ratio.rounds, "wall clock and processor time disagree")


def _first_tokens(before: float, own_before: float, reference: Sequence[float], samples: Sequence[float]) -> Ratio:
    """Return the ratio of times to the first token, from what came before the prefills and the rounds of both."""
    return paired_ratio([before + ms for ms in reference], [own_before + ms for ms in samples])
