"""Stop, the queue, attention and files as the page's callbacks handle them for one open page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.page.callbacks import Callbacks, Finished
from sharp_demo.page.tabs.kiosk import wipe_files
from sharp_demo.page.tabs.parts import Collected, stream
from sharp_demo.views.overlay import make_sprite
from sharp_demo.web.visits import Visits
from tests.page.test_faults import CALLER, callbacks  # noqa: F401
from tests.views.handmade import make_result

SKIP = {"__type__": "update"}


class Plain(Collected):
    """A view with no outputs but its status."""

    def outputs(self) -> list[Any]:
        return []

    def idle(self) -> list[Any]:
        return []


def test_visits_are_bounded_and_forgotten():
    visits = Visits(capacity=2)
    visits.of("a").files.add(Path("x"))
    visits.of("b")
    assert visits.of("a").files == {Path("x")}
    visits.of("c")
    assert not visits.of("b").files
    assert visits.forget("c") == []
    assert visits.forget(None) == []


def test_stop_before_the_run_began_is_not_lost_and_is_left_alone(callbacks: Callbacks):  # noqa: F811
    updates = callbacks.run(CALLER)
    assert next(updates)[-2].interactive
    stopping = callbacks.stop(CALLER)
    assert (stopping.value, stopping.interactive) == (strings.STOPPING, False)
    *going, last = updates
    assert all(outputs[-2] == SKIP for outputs in going)
    assert last[0]["phase"] == "stopped"
    assert not last[-2].interactive


def test_stop_on_an_idle_page_stays_off(callbacks: Callbacks):  # noqa: F811
    assert not callbacks.stop(CALLER).interactive
    assert list(callbacks.run(CALLER))[-1][0]["phase"] == "done", "it does not stop the next run"
    assert not callbacks.stop(CALLER).interactive


def test_a_mode_says_that_the_time_limit_ended_it(callbacks: Callbacks, monkeypatch):  # noqa: F811
    monkeypatch.setattr(callbacks, "settings", callbacks.settings.model_copy(update={"run_timeout_s": 1e-9}))
    caller: Any = CALLER
    last = list(stream(callbacks, callbacks.request_of(()), Plain(total=2), caller))[-1]
    assert (last[0]["phase"], last[0]["message"]) == ("stopped", strings.timed_out(1e-9))


def test_a_waiting_page_is_told_how_many_are_ahead(callbacks: Callbacks, monkeypatch):  # noqa: F811
    monkeypatch.setattr(callbacks, "waiting", lambda: 3)
    monkeypatch.setattr("sharp_demo.page.callbacks.query_of", lambda *_: "")
    (outputs,) = callbacks.begin(CALLER)
    assert outputs[0]["message"] == "Waiting for the model … 3 ahead of you."
    assert strings.queued(0) == strings.QUEUED


def test_only_a_page_that_still_waits_is_told_that_its_run_was_refused(callbacks: Callbacks):  # noqa: F811
    caller: Any = CALLER
    board, run, *_ = callbacks.refused({"phase": "waiting"}, caller)
    assert (board["phase"], board["message"], run.interactive) == ("error", strings.REFUSED, True)
    assert callbacks.refused({"phase": "error"}, caller) == [SKIP] * 4


def finished(callbacks: Callbacks, **over: Any) -> Finished:  # noqa: F811
    sprite = make_sprite(np.zeros((4, 24, 24, 3), np.uint8))
    return Finished(callbacks.request_of(()), (make_result(**over),), sprite)


def test_attention_uses_the_runs_penalty_and_gives_its_button_back(callbacks: Callbacks, monkeypatch):  # noqa: F811
    asked = []

    def fail(request, penalty):
        asked.append(penalty)
        raise RuntimeError("a secret in /etc")

    monkeypatch.setattr(callbacks.engine, "attention", fail)
    updates = callbacks.attention(finished(callbacks, config={"penalty": 0.25}))
    assert not next(updates)[-1].interactive
    assert next(updates)[-1].interactive
    with pytest.raises(Error) as said:
        next(updates)
    assert said.value.message == strings.INTERNAL
    assert asked == [0.25]


def test_every_file_made_for_a_page_goes_when_it_is_wiped(callbacks: Callbacks):  # noqa: F811
    caller, other = SimpleNamespace(session_hash="page"), SimpleNamespace(session_hash="other")
    uploads = [callbacks.cache / name / "clip.mp4" for name in ("first", "second", "others")]
    for upload in uploads:
        upload.parent.mkdir(parents=True)
        upload.write_bytes(b"x")
    for upload, who in zip(uploads, (caller, caller, other), strict=True):
        callbacks.check_upload(str(upload), who)
    list(callbacks.run(caller))
    callbacks.save_json(finished(callbacks), caller)
    callbacks.save_report(finished(callbacks), caller)
    made = callbacks.visits.forget("page")
    assert {path.name for path in made} == {"clip.mp4", "frames.jpg", "comparison.json", "comparison.html"}
    wipe_files(list(map(str, made)), callbacks.cache)
    assert [path for path in callbacks.cache.rglob("*") if path.is_file()] == [uploads[2]]
