"""What the modes' tables say, event by event, without a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sharp_demo import strings
from sharp_demo.page.tabs.ablate import AblateView, ablation_request
from sharp_demo.page.tabs.sweep import SweepView, sweep_request
from sharp_demo.records import Done, MethodDone, MethodFailed, MethodSpec, Request
from tests.views.handmade import make_result

REQUEST = Request("clip.mp4", "q", (MethodSpec("vanilla", {}, "Vanilla"), MethodSpec("sharp", {}, "ShaRP")))
CALLBACKS: Any = SimpleNamespace(store_sprite=lambda board, session: None)
FULL = MethodFailed("Vanilla", "out_of_memory", "Too many frames.")


def ablation() -> AblateView:
    return AblateView(ablation_request(REQUEST, "one", {}), CALLBACKS, "page")


def answers(view: AblateView) -> dict[str, dict[str, str]]:
    return {row[0]["text"]: row[5] for row in view.table()["rows"]}


def cells(view: SweepView) -> list[str]:
    return [cell["text"] for cell in view.table()["rows"][0][1:]]


def test_without_vanilla_no_answer_of_an_ablation_is_the_same():
    view = ablation()
    view.apply(FULL)
    view.apply(MethodDone("All on", make_result(label="All on")))
    shown = answers(view)
    assert (shown["Vanilla"]["text"], shown["Vanilla"]["title"]) == (strings.FAILED, "Too many frames.")
    assert (shown["All on"]["text"], shown["All on"]["kind"]) == ("A red circle.", "open")
    assert shown["PosC + RegD"]["text"] == "…", "it is still to come"


def test_a_stopped_ablation_says_what_was_stopped_and_what_never_ran():
    view = ablation()
    view.apply(MethodDone("Vanilla", make_result("vanilla")))
    view.apply(MethodDone("All on", make_result(label="All on", status="stopped")))
    view.apply(Done((), ()))
    shown = answers(view)
    assert shown["Vanilla"]["kind"] == "same"
    assert shown["All on"]["text"] == strings.STOPPED
    assert shown["PosC + RegD"]["text"] == strings.NOT_RUN_CELL


def test_a_sweep_says_what_failed_was_stopped_or_never_ran():
    view = SweepView(sweep_request(REQUEST, (1.0, 0.5, 0.2, 0.1)))
    view.apply(MethodDone("Vanilla", make_result("vanilla")))
    view.apply(MethodFailed("ShaRP at 50 %", "internal", "Something broke."))
    view.apply(MethodDone("ShaRP at 20 %", make_result(label="ShaRP at 20 %", status="stopped")))
    assert cells(view) == ["✓", strings.FAILED, strings.STOPPED, "…"]
    view.apply(Done((), ()))
    assert cells(view) == ["✓", strings.FAILED, strings.STOPPED, strings.NOT_RUN_CELL]


def test_a_sweep_without_vanilla_has_answers_and_no_verdict():
    view = SweepView(sweep_request(REQUEST, (1.0, 0.5)))
    view.apply(FULL)
    view.apply(MethodDone("ShaRP at 50 %", make_result(label="ShaRP at 50 %")))
    view.apply(Done((), ()))
    assert cells(view) == [strings.FAILED, "A red circle."]
    assert view.table()["rows"][0][0]["note"] == strings.NO_VERDICT


@pytest.mark.parametrize("status", ["done", "stopped"])
def test_the_walk_tells_a_stopped_answer_as_stopped(status):
    text = strings.walk_end(make_result(status=status), make_result("vanilla"), same=True)
    assert ("Stopped while it was answering" in text) == (status == "stopped")
    assert ("says the same" in text) == (status == "done")
