"""Stop, the queue, attention and files as the page handles them for one open page."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.errors import VideoError
from sharp_demo.page.board import Board
from sharp_demo.page.build import clip_text
from sharp_demo.page.inputs import Values
from sharp_demo.page.runs import CHECKS, Controls, Mode, Updates
from sharp_demo.page.tabs.compare import Compare, Finished
from sharp_demo.page.tabs.parts import status_line
from sharp_demo.records import Request
from sharp_demo.views.overlay import make_sprite
from sharp_demo.web.visits import TWICE_S, Visits
from tests.page.test_faults import compare  # noqa: F401
from tests.views.handmade import make_result


@pytest.fixture
def plain(compare: Compare) -> Mode:  # noqa: F811
    """A mode with no outputs but its status line."""

    class Plain(Mode):
        name = "plain"

        def __init__(self) -> None:
            with gr.Blocks():
                self.controls, self.status, self.outputs = Controls.create("Run"), status_line(""), []

        def request(self, values: Values) -> Request:
            return compare.request(values)

        def results(self, board: Board) -> Updates:
            return {}

    return Plain()


def test_visits_are_bounded_and_forgotten():
    visits = Visits(capacity=2)
    visits.of("a").files.add(Path("x"))
    visits.of("b")
    assert visits.of("a").files == {Path("x")}
    visits.of("c")
    assert not visits.of("b").files
    assert visits.forget("c") == []
    assert visits.forget(None) == []


def test_stop_before_the_run_began_is_not_lost_and_is_left_alone(compare: Compare):  # noqa: F811
    stop = compare.controls.stop
    updates = compare.runs.run(compare, {}, "page")
    assert next(updates)[stop].interactive
    stopping = compare.runs.stop("page")
    assert (stopping.value, stopping.interactive) == (strings.STOPPING, False)
    *going, last = updates
    assert all(stop not in update for update in going)
    assert last[compare.status]["phase"] == "stopped"
    assert not last[stop].interactive


def test_stop_on_an_idle_page_stays_off(compare: Compare):  # noqa: F811
    assert not compare.runs.stop("page").interactive
    last = list(compare.runs.run(compare, {}, "page"))[-1]
    assert last[compare.status]["phase"] == "done", "it does not stop the next run"
    assert not compare.runs.stop("page").interactive


def test_a_mode_says_that_the_time_limit_ended_it(compare: Compare, plain: Mode, monkeypatch):  # noqa: F811
    runs = compare.runs
    monkeypatch.setattr(runs, "settings", runs.settings.model_copy(update={"run_timeout_s": 1e-9}))
    last = list(runs.run(plain, {}, "page"))[-1][plain.status]
    assert (last["phase"], last["message"]) == ("stopped", strings.timed_out(1e-9))


def test_a_waiting_page_is_told_how_many_are_ahead(compare: Compare, plain: Mode, monkeypatch):  # noqa: F811
    monkeypatch.setattr(compare.runs, "waiting", lambda: 3)
    monkeypatch.setattr(compare.runs.inputs, "query", lambda values, mode: f"mode={mode}")
    for mode in (compare, plain):
        (updates,) = compare.runs.begin(mode, {}, mode.name)
        shown = updates[mode.status]
        assert shown["message"] == "Waiting for the model … 3 ahead of you."
        assert (shown["phase"], shown["query"]) == ("waiting", f"mode={mode.name}")
        assert compare.runs.visits.of(mode.name).waiting
    assert strings.queued(0) == strings.QUEUED


def test_a_second_press_at_once_begins_nothing(compare: Compare, plain: Mode, monkeypatch):  # noqa: F811
    monkeypatch.setattr(compare.runs.inputs, "query", lambda values, mode: "")
    assert len(list(compare.runs.begin(plain, {}, "page"))) == 1
    with pytest.raises(Error) as said:
        list(compare.runs.begin(plain, {}, "page"))
    assert not said.value.visible
    assert len(list(compare.runs.begin(plain, {}, "other"))) == 1
    compare.runs.visits.of("page").pressed -= TWICE_S
    assert len(list(compare.runs.begin(plain, {}, "page"))) == 1, "a run that was lost locks nobody out"


def test_only_a_page_that_still_waits_is_told_that_its_run_was_refused(compare: Compare):  # noqa: F811
    updates = compare.runs.refused(compare, {"phase": "waiting"}, "page")
    board = updates[compare.status]
    assert (board["phase"], board["message"]) == ("error", strings.REFUSED)
    assert updates[compare.controls.run].interactive
    assert compare.runs.refused(compare, {"phase": "error"}, "page") == {compare.status: gr.skip()}


def finished(compare: Compare, **over: Any) -> Finished:  # noqa: F811
    sprite = make_sprite(np.zeros((4, 24, 24, 3), np.uint8))
    return Finished(compare.request({}), (make_result(**over),), sprite)


def test_attention_uses_the_runs_penalty_and_gives_its_button_back(compare: Compare, monkeypatch):  # noqa: F811
    asked = []

    def fail(request, penalty):
        asked.append(penalty)
        raise RuntimeError("a secret in /etc")

    monkeypatch.setattr(compare.runs.engine, "attention", fail)
    compare.runs.finished.put("page", "", finished(compare, config={"penalty": 0.25}))
    updates = compare.attention(SimpleNamespace(session_hash="page"))
    assert not next(updates)[compare.by_layer].interactive
    assert next(updates)[compare.by_layer].interactive
    with pytest.raises(Error) as said:
        next(updates)
    assert said.value.message == strings.INTERNAL
    assert asked == [0.25]


def test_every_file_made_for_a_page_goes_when_it_is_wiped(compare: Compare):  # noqa: F811
    runs = compare.runs
    uploads = [runs.cache / name / "clip.mp4" for name in ("first", "second", "others")]
    for upload in uploads:
        upload.parent.mkdir(parents=True)
        upload.write_bytes(b"x")
    for upload, session in zip(uploads, ("page", "page", "other"), strict=True):
        clip_text(runs, str(upload), session)
    list(runs.run(compare, {}, "page"))
    caller: Any = SimpleNamespace(session_hash="page")
    compare.save_json(caller)
    compare.save_report(caller)
    made = {path.name for path in runs.visits.of("page").files}
    assert made == {"clip.mp4", "frames.jpg", "comparison.json", "comparison.html"}
    runs.forget("page")
    assert [path for path in runs.cache.rglob("*") if path.is_file()] == [uploads[2]]
    with pytest.raises(Error) as said:
        compare.save_json(caller)
    assert said.value.message == strings.NO_RUN


def test_equal_uploads_of_two_pages_are_one_file_that_stays_for_the_other(compare: Compare):  # noqa: F811
    runs = compare.runs
    upload = runs.cache / "digest" / "clip.mp4"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"x")
    for session in ("page", "other"):
        clip_text(runs, str(upload), session)
    runs.forget("page")
    assert upload.is_file()
    runs.forget("other")
    assert not upload.exists()


def test_nothing_outside_the_cache_is_deleted(compare: Compare, tmp_path: Path):  # noqa: F811
    precious = tmp_path / "precious.mp4"
    precious.write_bytes(b"x")
    compare.runs.visits.of("page").files.update({precious, compare.runs.cache / ".." / precious.name})
    compare.runs.forget("page")
    assert precious.is_file()


def test_a_few_uploads_are_looked_at_at_once(compare: Compare, monkeypatch):  # noqa: F811
    runs, lock, now, most = compare.runs, threading.Lock(), [0], [0]

    def probe(path):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        raise VideoError("not_video", "no video")

    monkeypatch.setattr(runs.engine, "probe", probe)
    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(lambda i: clip_text(runs, f"{i}.mp4", f"page {i}"), range(12)))
    assert (most[0], set(said)) == (CHECKS, {"No video."})
    monkeypatch.setattr("sharp_demo.page.build.CHECK_WAIT_S", 0.01)
    for _ in range(CHECKS):
        runs.checks.acquire()
    assert clip_text(runs, "late.mp4", "late") == strings.CHECK_BUSY


def test_a_row_of_charts_that_comes_into_view_between_two_runs_stays_as_it_is(compare: Compare):  # noqa: F811
    """Each row draws its own charts, whatever number the page sends, and only of a run that has ended."""
    for row in compare.rows:
        assert compare.charts_in(row)(SimpleNamespace(session_hash="page")) == (gr.skip(), gr.skip())
