"""How cost grows with the video: the same measurement at several lengths, and fitted exponents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lab.speed.prefill import PrefillPlan, Progress, measure_prefill
from lab.speed.subject import Subject
from lab.tables.scale import MEASURES, Document, Point, series


def measure_scale(
    subject: Subject,
    plan: PrefillPlan,
    frames: Sequence[int],
    progress: Progress = lambda line: None,
    measure: Callable[..., Document] = measure_prefill,
) -> Document:
    """Measure the plan at each number of layout frames; `fits` holds the exponent of every measure and case.

    The plain model is left out.
    """
    runs = []
    for count in frames:
        at = replace(plan, tokens=count * subject.per_frame, plain=False)
        runs.append(measure(subject, at, lambda line, count=count: progress(f"{count} frames, {line}")))
    return {"kind": "scale", "frames": list(frames), "runs": runs, "fits": fits(runs)}


def fits(runs: Sequence[Document]) -> dict[str, dict[str, float | None]]:
    """Exponent of n in every measure and case, over all lengths; None with fewer than three."""
    return {name: {case: exponent(points) for case, points in series(runs, name).items()} for name in MEASURES}


def exponent(points: Sequence[Point]) -> float | None:
    """Slope of log(value) over log(n), least squares; None with fewer than three points."""
    if len(points) < 3:
        return None
    n, value = (np.log([point[axis] for point in points]) for axis in (0, 1))
    return float(np.polyfit(n, value, 1)[0])
