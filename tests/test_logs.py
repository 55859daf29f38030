"""Logs: the run's id on every line made for it, one line per run, no visitor's words."""

from __future__ import annotations

import io
import json
import logging
import threading
from dataclasses import replace

import pytest

from sharp_demo.errors import InternalError, VideoError
from sharp_demo.logs import NO_FILES, RUN, TEXT, JsonLines, OutOfFiles, RunLine, Tag, tagged
from sharp_demo.records import Decoded, Done, Encoded, Event, MethodDone, MethodFailed, MethodSpec, Request, Started
from tests.page.test_board import model
from tests.views.handmade import make_result

REQUEST = Request("/cache/holiday.mp4", "Who is this?", (MethodSpec("vanilla"), MethodSpec("sharp")))


@pytest.fixture(params=["json", "text"])
def lines(request):
    """What a logger wrote, line by line."""
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.addFilter(Tag())
    handler.setFormatter(JsonLines() if request.param == "json" else logging.Formatter(TEXT))
    logger = logging.getLogger("sharp_demo")
    level, logger.level = logger.level, logging.INFO
    logger.addHandler(handler)
    yield lambda: sink.getvalue().splitlines()
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_run_stands_on_what_is_logged_while_its_events_are_made(lines):
    log = logging.getLogger("sharp_demo.somewhere")

    def events():
        log.info("first")
        yield 1
        log.info("second")
        yield 2

    stream = tagged(events(), "abc123")
    got = [next(stream)]
    log.info("between")
    # Gradio takes each step in whatever thread is free.
    thread = threading.Thread(target=lambda: got.append(next(stream)))
    thread.start()
    thread.join()
    assert got == [1, 2]
    assert next(stream, None) is None
    assert RUN.get() == ""
    written = lines()
    assert len(written) == 3
    assert ["abc123" in line for line in written] == [True, False, True]


EVENTS: list[Event] = [
    Started(REQUEST, model(), ("vanilla", "sharp")),
    Decoded(None, (0.0,), {}, 12.34),
    Encoded(make_result().layout, 60, 5.0, False, 4),
    MethodDone("vanilla", make_result("vanilla")),
    MethodFailed("sharp", "out_of_memory", "too much"),
]


def written_line(sink, events: list[Event], error: Exception | None = None) -> str:
    line = RunLine("abc123", REQUEST)
    for event in events:
        line.take(event)
    if error is not None:
        line.fail(error)
    line.write()
    return sink()[-1]


def test_a_run_is_one_line_with_outcome_times_and_no_words_of_the_visitor(lines):
    timed = make_result("vanilla", label="vanilla")
    plain = replace(timed, latency_ms=replace(timed.latency_ms, prefill=99.0, rounds=[]))
    line = written_line(lines, [*EVENTS, MethodDone("vanilla", plain), Done((timed,), ())])
    assert len(lines()) == 1
    for part in ("abc123", "done", "tiny", "12.3", "out_of_memory", "prefill_ms"):
        assert part in line
    for private in ("holiday", "Who is this", "A red circle"):
        assert private not in line
    if line.startswith("{"):
        data = json.loads(line)
        assert data["outcome"] == "done"
        expected = {"status": "done", "kept": 60, "prefill_ms": 20.0, "total_ms": 42.0, "rounds": 3}
        assert data["methods"]["vanilla"] == expected
        assert data["methods"]["sharp"] == {"status": "out_of_memory"}


@pytest.mark.parametrize(
    ("events", "error", "outcome"),
    [
        (EVENTS, None, "left"),
        ([*EVENTS, Done((make_result(status="stopped"),), ())], None, "stopped"),
        ([Done((), ())], None, "stopped"),
        ([one for one in EVENTS if not isinstance(one, MethodFailed)] + [Done((), ())], None, "stopped"),
        ([*EVENTS, Done((), (MethodFailed("sharp", "device_lost", "gone"),))], None, "failed"),
        ([], VideoError("too_long", "plays 200 s"), "refused"),
        (EVENTS, InternalError("ours"), "failed"),
        (EVENTS, RuntimeError("ours"), "failed"),
    ],
)
def test_outcomes(events, error, outcome, lines):
    assert f'outcome="{outcome}"' in (line := written_line(lines, events, error)) or f'"outcome": "{outcome}"' in line


def test_tracebacks_are_part_of_the_json(lines):
    try:
        raise ValueError("details")
    except ValueError:
        logging.getLogger("sharp_demo.x").exception("failed")
    text = "\n".join(lines())
    assert "ValueError: details" in text
    if text.startswith("{"):
        assert len(lines()) == 1
        assert "Traceback" in json.loads(text)["traceback"]


def test_a_process_out_of_file_descriptors_says_so_once_a_minute():
    now = [0.0]
    few = OutOfFiles(lambda: now[0])

    def record(message: str) -> logging.LogRecord:
        error = OSError(24, "Too many open files")
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), (OSError, error, None))

    first = record("socket.accept() out of system resource\nsocket: <socket>")
    assert few.filter(first)
    assert (first.getMessage(), first.exc_info) == (NO_FILES, None)
    assert not any(few.filter(record("socket.accept() out of system resource")) for _ in range(100))
    assert few.filter(other := record("Task was destroyed"))
    assert other.exc_info
    now[0] = 61
    assert few.filter(record("socket.accept() out of system resource"))
