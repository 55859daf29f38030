"""Before which layer each token left, by hand and against the counts of the result."""

import numpy as np
import pytest
from handmade import make_result

from sharp_demo.views.survival import LEFT, NEVER, left_before


def result(per_layer: list[int], kept: list[int], **over):
    """Four frames of one row and two columns: 8 tokens."""
    by_frame = [[slot % 2 for slot in kept if slot // 2 == frame] for frame in range(4)]
    roles = [["kept"] * len(frame) for frame in by_frame]
    return make_result(frames=4, rows=1, cols=2, keep=1, visual_per_layer=per_layer, kept=by_frame, role=roles, **over)


def test_without_a_drop_everybody_stays():
    assert left_before(result([8, 8], list(range(8)))).tolist() == [NEVER] * 8


@pytest.mark.parametrize(("per_layer", "layer"), [([3, 3, 3], 0), ([8, 8, 3], 2)])
def test_with_one_drop_all_that_are_gone_left_there(per_layer, layer):
    kept = [1, 4, 7]
    left = left_before(result(per_layer, kept))
    assert left.tolist() == [NEVER if slot in kept else layer for slot in range(8)]


def test_with_two_drops_those_without_a_score_left_first():
    scores = {"raw": [None, 1.0, None, 0.5, 0.2, None, None, None]}
    left = left_before(result([8, 3, 3, 1], [1], scores=scores))
    assert left.tolist() == [1, NEVER, 1, 3, 3, 1, 1, 1]


@pytest.mark.parametrize(
    ("per_layer", "scores"),
    [([8, 3, 1], {}), ([8, 3, 1], {"raw": [1.0] * 8}), ([8, 4, 2, 1], {"raw": [None, 1.0, *[None] * 6]})],
)
def test_what_the_result_does_not_tell_is_not_guessed(per_layer, scores):
    assert left_before(result(per_layer, [1], scores=scores)) is None


def test_a_result_that_names_the_layers_is_believed_if_its_counts_agree():
    named = [1, 9, 1, 2, 1, 1, 3, 1]
    told = result([8, 3, 2, 1], [1], scores={}, trace={LEFT: named})
    assert left_before(told).tolist() == [1, NEVER, 1, 2, 1, 1, 3, 1]
    assert left_before(result([8, 4, 2, 1], [1], scores={}, trace={LEFT: named})) is None


def test_counts_are_those_of_the_result():
    one = result([8, 8, 3], [1, 4, 7])
    left = left_before(one)
    assert [int(np.sum(left > layer)) for layer in range(3)] == one.visual_per_layer
