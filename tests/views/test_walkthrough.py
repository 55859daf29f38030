"""The figures of a walk through ShaRP, on a hand-made trace."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import make_result

from sharp_demo.views.walkthrough import FATES, change_of, heat_of, steps_of, top, walk_of

TRACE = {
    "cosines": [0.95, 0.5],
    "registers": [0, 1, 5],
    "prefiltered": [2],
    "absorbed": [[1, 0]],
    "filled": [4],
    "repaired": [],
}


@pytest.fixture
def result():
    """Three frames of two tokens; raw attention prefers slots 3, 4 and 5."""
    scores = {"raw": [1, 2, 3, 6, 7, 8], "bias": [0] * 6, "debiased": [8, 7, 1, 2, 3, 6]}
    return make_result(
        frames=3, rows=1, cols=2, keep=3, trace=TRACE, scores=scores, segments=[[0, 2], [2, 3]], config={"tau_seg": 0.9}
    )


def names(picture: np.ndarray) -> list[str]:
    return [FATES[code] for code in picture]


def test_figures_of_a_walk(result):
    walk = walk_of(result)
    assert walk.by_raw == {3, 4, 5}
    assert walk.visible == (10 + 3) / 21, "4 and 2 tokens in two segments, 6 in all"
    assert (walk.late_frames, walk.late_raw, walk.late) == (1 / 3, 2 / 3, 1 / 3)
    assert walk.pivots == {0}


def test_pictures_show_each_step(result):
    walk = walk_of(result)
    steps = dict(steps_of(walk, 6))
    assert names(steps["registers"]) == ["register", "register", "other", "other", "other", "register"]
    assert names(steps["prefilter"])[2] == "prefiltered"
    assert names(steps["dedup"])[:2] == ["pivot", "absorbed"]
    assert names(steps["fill"]) == ["pivot", "gone", "gone", "gone", "filled", "register"]
    assert names(change_of(walk, 6)) == ["added", "added", "other", "removed", "removed", "register"]


def test_equal_scores_go_to_the_lower_slot_and_unscored_ones_last():
    assert top([1.0, 3.0, 3.0, None], 2) == {1, 2}
    assert top([2.0, 2.0, 2.0, None], 2) == {0, 1}


def test_heat_spans_its_range():
    levels, low, high = heat_of([0.0, 0.5, 1.0, None])
    assert (levels[0], levels[3]) == (0, 0)
    assert 0 <= low < 0.1
    assert levels[2] == 255
    assert 0.9 < high <= 1
