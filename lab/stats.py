"""Confidence intervals by clip: questions of one clip are not independent, so clips are what is resampled.

McNemar's test stands next to them: exact, but it takes questions for independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

Interval = tuple[float, float]


def third_of_frames(frames: int) -> np.ndarray:
    """Third of the clip (0, 1, 2) in which each of its frames lies, by its middle, as `questions.third` has it; [F]."""
    return (2 * np.arange(frames) + 1) * 3 // (2 * frames)


class ClipBootstrap:
    """Resamples of the clips, the same for every method, so that differences are paired.

    Parameters
    ----------
    clips : [n] clip of each question (any labels). seed : of the resamples.
    """

    def __init__(self, clips: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> None:
        _, self._clip = np.unique(clips, return_inverse=True)
        self.clips = int(self._clip.max()) + 1
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(self.clips, np.full(self.clips, 1 / self.clips), size=resamples)  # [B, clips]
        self._sizes = self._per_clip(np.ones(len(clips)))

    def mean_interval(self, values: np.ndarray) -> Interval:
        """95 % percentile interval of the mean of values [n], one per question."""
        means = self._weights @ self._per_clip(values) / (self._weights @ self._sizes)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)

    def difference(self, values: np.ndarray, reference: np.ndarray) -> tuple[float, Interval]:
        """Mean of values - reference, paired by question, and its interval."""
        gaps = values - reference
        return float(gaps.mean()), self.mean_interval(gaps)

    def lower_bound(self, values: np.ndarray, reference: np.ndarray) -> float:
        """One-sided 95 % bound: the mean of values - reference, paired by question, is hardly lower."""
        means = self._weights @ self._per_clip(values - reference) / (self._weights @ self._sizes)
        return float(np.quantile(means, 1 - LEVEL))

    def _per_clip(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._clip, weights=values, minlength=self.clips)


@dataclass(frozen=True)
class McNemar:
    """Questions that only one of two methods answers rightly, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two columns of verdicts [n] on the same questions; exact, two-sided.

    Under the null hypothesis each question that one alone answers rightly falls to either with probability 1/2.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, least = only_first + only_second, min(only_first, only_second)
    log_terms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1))
    tail = sum(math.exp(term - n * math.log(2)) for term in log_terms)
    return McNemar(only_first, only_second, min(1.0, 2 * tail))
