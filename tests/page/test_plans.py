"""What the ablation runs, and how it compares selections: no browser, no model."""

from __future__ import annotations

import pytest

from sharp_demo.errors import MethodError
from sharp_demo.page.tabs.ablate import ON, ablation_request, common, plan_of
from sharp_demo.page.tabs.sweep import STEPS, sweep_request
from sharp_demo.pruning.registry import make_method
from sharp_demo.records import MethodSpec, Request
from tests.views.handmade import make_result

REQUEST = Request("a.mp4", "?", (MethodSpec("vanilla", label="Vanilla"), MethodSpec("sharp", label="ShaRP")))


@pytest.mark.parametrize(("plan", "count"), [("one", 6), ("paper", 6), ("all", 8), ("both", 16)])
def test_plans_begin_with_everything_on_and_repeat_nothing(plan, count):
    settings = plan_of(plan)
    assert settings[0] == ON
    assert len({tuple(setting.items()) for setting in settings}) == len(settings) == count
    request = ablation_request(REQUEST, plan, {"penalty": 0.3, "segm": False})
    assert [spec.name for spec in request.methods] == ["vanilla", *["sharp"] * count]
    assert len({spec.title for spec in request.methods}) == count + 1
    for spec, setting in zip(request.methods[1:], settings, strict=True):
        method = make_method(spec.name, 0.2, spec.options)
        assert {name: getattr(method, name) for name in ON} == setting
        assert method.penalty == 0.3


def test_one_off_at_a_time_changes_one_switch_each():
    _, *singles, none = plan_of("one")
    assert [sum(setting[name] != ON[name] for name in ON) for setting in singles] == [1, 1, 1, 1]
    assert not any(none[name] for name in ("segm", "posc", "regd"))


def test_common_is_the_share_of_kept_tokens_both_kept():
    one = make_result(kept=[[0, 1], [2], [], []])
    other = make_result(kept=[[1, 5], [2, 3], [4], []])
    assert common(one, other) == 2 / 3
    assert common(one, one) == 1


def test_a_sweep_holds_vanilla_once_and_every_step_below_100():
    request = sweep_request(REQUEST, STEPS["coarse"])
    assert [(spec.name, spec.retention) for spec in request.methods] == [
        ("vanilla", None),
        *(("sharp", step) for step in (0.5, 0.2, 0.1, 0.05, 0.02)),
    ]
    assert len({spec.title for spec in request.methods}) == len(request.methods)
    with pytest.raises(MethodError, match="at least one method that prunes"):
        sweep_request(Request("a.mp4", "?", (MethodSpec("vanilla"),)), STEPS["coarse"])
