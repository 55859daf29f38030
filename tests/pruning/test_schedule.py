"""Token schedules against hand-counted cases and the published ratios of Feather."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharp_demo.errors import MethodError
from sharp_demo.pruning.feather import feather_paper_schedule, grid_tokens
from sharp_demo.pruning.registry import method_schedule
from sharp_demo.pruning.schedule import budget, visual_per_layer


@pytest.mark.parametrize(
    ("retention", "n", "kept"), [(0.25, 6272, 1568), (0.2, 6272, 1254), (0.15, 6272, 941), (0.1, 6272, 627)]
)
def test_budget_rounds_to_the_nearest_token(retention: float, n: int, kept: int) -> None:
    assert budget(retention, n) == kept


@given(st.floats(1e-6, 1.0), st.integers(1, 20_000))
def test_budget_stays_between_one_and_all(retention: float, n: int) -> None:
    assert 1 <= budget(retention, n) <= n
    assert abs(budget(retention, n) - retention * n) <= 0.5 or budget(retention, n) == 1


def test_visual_per_layer_prunes_from_the_stage_on() -> None:
    assert visual_per_layer(4, 10, []) == [10, 10, 10, 10]
    assert visual_per_layer(4, 10, [(1, 3)]) == [10, 3, 3, 3]
    assert visual_per_layer(5, 10, [(0, 8), (2, 4), (4, 1)]) == [8, 8, 4, 4, 1]
    assert visual_per_layer(2, 10, [(1, 3), (7, 2)]) == [10, 3]


@pytest.mark.parametrize("stages", [[(2, 3), (1, 2)], [(1, 3), (1, 2)], [(1, 3), (2, 4)], [(1, 11)]])
def test_stages_must_ascend_and_only_drop(stages: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="ascend in layer and never add"):
        visual_per_layer(4, 10, stages)


@pytest.mark.parametrize(("stride", "tokens"), [(3, 800), (4, 512), (5, 288), (6, 288), (7, 128)])
def test_grid_size_on_14_by_14_frames(stride: int, tokens: int) -> None:
    assert grid_tokens(32, 14, 14, stride) == tokens


def test_feather_paper_mode_keeps_what_the_paper_reports() -> None:
    """27 x 27 image tokens, R = 0.7 removed, stride 3: 37.8 % and 3.4 % kept, 64 % fewer FLOPs on Llama-2-7B."""
    stages = feather_paper_schedule(0.3, 729, grid_tokens(1, 27, 27, 3), layers=(8, 16))
    assert stages[0][1] / 729 == pytest.approx(0.378, abs=1e-3)
    assert stages[1][1] / 729 == pytest.approx(0.034, abs=1 / 729)
    cost = {n: 4 * n * 4096**2 + 2 * n**2 * 4096 + 2 * n * 4096 * 11008 for _, n in [(0, 729), *stages]}
    kept = 8 * cost[729] + 8 * cost[stages[0][1]] + 16 * cost[stages[1][1]]
    assert 1 - kept / (32 * cost[729]) == pytest.approx(0.64, abs=0.005)


def test_named_schedules() -> None:
    assert method_schedule("vanilla", 0.2, 100) == []
    assert method_schedule("fastv", 0.2, 100) == [(2, 20)]
    assert method_schedule("sharp", 0.2, 100) == [(1, 20)]
    assert method_schedule("sharp", 0.2, 100, options={"layer": 18}) == [(18, 20)]
    assert method_schedule("feather", 0.3, 900, 28, {"paper_mode": True}) == [(7, 340), (14, 30)]
    with pytest.raises(MethodError, match="no method named 'fastw'; the methods are vanilla, fastv"):
        method_schedule("fastw", 0.2, 100)
