"""Intervals by clip against cases whose answer is known."""

import numpy as np
import pytest

from lab.stats import ClipBootstrap, mcnemar, third_of_frames
from lab.world.questions import third
from lab.world.records import INTERVALS


def clips(count: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(count), each)


@pytest.mark.parametrize("frames", [4, 8, 16, 32])
def test_a_frame_lies_in_the_third_of_its_middle(frames: int) -> None:
    thirds = third_of_frames(frames)
    for frame in range(frames):
        assert thirds[frame] / 3 <= (frame + 0.5) / frames < (thirds[frame] + 1) / 3
    names = ("early", "middle", "late")
    if frames == INTERVALS:  # as the questions' evidence is placed
        assert [names[i] for i in thirds] == [third((frame, frame)) for frame in range(frames)]


def answers(count: int, share: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_interval_holds_the_mean_and_is_reproducible(share: float) -> None:
    values = answers(200, share)
    low, high = ClipBootstrap(clips(40, 5), seed=3).mean_interval(values)
    assert low < values.mean() < high
    assert (low, high) == ClipBootstrap(clips(40, 5), seed=3).mean_interval(values)


def test_interval_narrows_with_clips_as_the_root_of_their_number() -> None:
    widths = []
    for count in (25, 100, 400):
        low, high = ClipBootstrap(clips(count, 4)).mean_interval(answers(4 * count, 0.5))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.25)


def test_interval_matches_the_binomial_one_where_questions_are_independent() -> None:
    values = answers(400, 0.3)
    low, high = ClipBootstrap(clips(400, 1)).mean_interval(values)
    share = values.mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.1)


def test_questions_that_agree_within_a_clip_count_as_one() -> None:
    per_clip = answers(40, 0.5)
    low, high = ClipBootstrap(clips(40, 1)).mean_interval(per_clip)
    copied_low, copied_high = ClipBootstrap(clips(40, 10)).mean_interval(np.repeat(per_clip, 10))
    assert (copied_low, copied_high) == pytest.approx((low, high))


def test_clips_weigh_as_many_questions_as_they_have() -> None:
    labels, values = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 1.0, 0.0])
    assert ClipBootstrap(labels).mean_interval(values) == (0.0, 1.0)  # some resamples hold one of the clips only
    difference, _ = ClipBootstrap(labels).difference(values, np.zeros(4))
    assert difference == 0.75


def test_paired_difference() -> None:
    values, labels = answers(200, 0.6), clips(50, 4)
    bootstrap = ClipBootstrap(labels)
    assert bootstrap.difference(values, values) == (0.0, (0.0, 0.0))
    worse = values.copy()
    worse[::20] = 0
    difference, (low, high) = bootstrap.difference(values, worse)
    assert difference == pytest.approx(values.mean() - worse.mean())
    assert low <= difference <= high
    # Pairing: the same two, unpaired, could differ by far more.
    a, b = bootstrap.mean_interval(values), bootstrap.mean_interval(worse)
    assert high - low < (a[1] - a[0] + b[1] - b[0]) / 3
    backwards, (other_low, other_high) = bootstrap.difference(worse, values)
    assert (backwards, other_low, other_high) == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_mcnemar_counts_what_only_one_has_right() -> None:
    """Six discordant questions, all to one side: 2 / 2^6; evenly shared ones, and none, say nothing."""
    both = np.ones(4, bool)
    first, second = np.r_[both, np.ones(6, bool)], np.r_[both, np.zeros(6, bool)]
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (6, 0)
    assert found.p == pytest.approx(2 / 64)
    assert mcnemar(second, first).p == pytest.approx(2 / 64)
    uneven = mcnemar(np.r_[np.ones(9, bool), np.zeros(1, bool)], np.r_[np.zeros(9, bool), np.ones(1, bool)])
    assert uneven.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, ~first).p <= 1
    assert mcnemar(both, both).p == 1
    many = np.arange(20_000) % 2 == 0
    assert mcnemar(many, ~many).p == pytest.approx(1)


def test_the_lower_bound_is_one_sided_and_paired() -> None:
    rng = np.random.default_rng(0)
    reference = (rng.random(300) < 0.6).astype(float)
    bootstrap = ClipBootstrap(clips(100, 3))
    assert bootstrap.lower_bound(reference, reference) == 0.0
    worse = reference * (rng.random(300) < 0.9)
    gap, (low, high) = bootstrap.difference(worse, reference)
    assert low < bootstrap.lower_bound(worse, reference) < gap < high
