"""Calls that the API refuses: one line each, by every way in, and no traceback in the log."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from sharp_demo import strings
from sharp_demo.web.calls import (
    DEEPEST,
    CallError,
    Calls,
    Parameter,
    check_envelope,
    check_path,
    check_value,
    parsed,
    route_of,
)
from sharp_demo.web.routes import Folders
from tests.page.test_api import file_data, upload
from tests.page.test_browser import browser, watched  # noqa: F401
from tests.serving import serving

NAMES = ("video", "question", "methods", "retention", "match", "frames", "model")
KINDS = ("file", "text", "names", "number", "name", "number", "name")
PARAMETERS = tuple(
    Parameter(name, kind, name in ("video", "question", "frames", "model"))
    for name, kind in zip(NAMES, KINDS, strict=True)
)
ODD = [
    ("video", file_data("/etc/passwd")),
    ("video", file_data("//host/x")),
    ("video", file_data("HTTP://host/x")),
    ("video", file_data("http(s)://host/x")),
    ("video", file_data("ftp://host/x")),
    ("video", file_data("file:///etc/passwd")),
    ("video", file_data("a\0b")),
    ("video", file_data("a" * 5000)),
    ("video", {"url": "http://host/x"}),
    ("video", {"path": "/etc/passwd"}),
    ("video", {"video": file_data("/etc/passwd")}),
    ("video", []),
    ("video", "clip.mp4"),
    ("question", ["What?"]),
    ("methods", None),
    ("methods", "vanilla"),
    ("methods", ["vanilla", ["sharp"]]),
    ("retention", "abc"),
    ("retention", None),
    ("retention", True),
    ("retention", [0.5]),
    ("retention", 10**400),
    ("match", None),
    ("match", 7),
    ("frames", "x"),
    ("frames", {}),
    ("model", ["a"]),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_an_odd_value_is_refused_by_one_line(name, value, tmp_path):
    parameter = next(one for one in PARAMETERS if one.name == name)
    with pytest.raises(CallError) as refused:
        check_value(parameter, value, [tmp_path])
    assert 10 < len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_files_of_the_allowed_folders_pass_while_they_are_there(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "a.mp4").touch()
    (folder / "link.mp4").symlink_to("/etc/passwd")
    check_path(str(folder / "a.mp4"), [folder])
    for path, says in (
        (folder / "gone.mp4", strings.UPLOAD_GONE),
        (folder, strings.UPLOAD_GONE),
        (folder / "link.mp4", strings.NOT_UPLOADED),
        (f"{folder}/../b.mp4", strings.NOT_UPLOADED),
    ):
        with pytest.raises(CallError, match=says.replace(".", r"\.")):
            check_path(str(path), [folder])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"data": NaN}',
        b'{"data": [-Infinity]}',
        b'{"data": [1e999]}',
        b'{"data": "\\ud800"}',
        b'{"data": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}",
        b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"data": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_plain_json_is_refused(body):
    with pytest.raises(CallError):
        parsed(body)


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {}},
        {"session_hash": 7},
        {"session_hash": "x" * 1000},
        {"session_hash": None},
        {"session_hash": "a<gradio-sep>b"},
        {"fn_index": "1"},
        {"fn_index": True},
        {"fn_index": 99},
        {"trigger_id": []},
        {"batched": True},
    ],
)
def test_what_stands_around_the_values_is_checked(change):
    call = {"data": [], "session_hash": "abc", "fn_index": 1, "trigger_id": None}
    check_envelope(call, {1: 0})
    with pytest.raises(CallError):
        check_envelope({**call, **change}, {1: 0})


def calls_for(folder: Path, **owners: str) -> Calls:
    """The checks of an app whose uploads lie in a folder, with events and their sessions."""
    folders = Folders({"uploads": folder}, {})
    return Calls(None, "compare", PARAMETERS, {}, [folder], folders, owners.get)  # type: ignore[arg-type]


def test_a_session_cancels_only_its_own_events(tmp_path):
    calls = calls_for(tmp_path, mine="me", yours="you")
    for event in ("mine", "over"):
        calls.check("cancel", {"session_hash": "me", "fn_index": 1, "event_id": event})
    for change in (
        {"event_id": "yours"},
        {"event_id": None},
        {"event_id": ["mine"]},
        {"session_hash": None},
        {"session_hash": "me<gradio-sep>"},
        {"fn_index": "1"},
        {"fn_index": True},
    ):
        with pytest.raises(CallError):
            calls.check("cancel", {"session_hash": "me", "fn_index": 1, "event_id": "mine", **change})
    calls.check("reset", {"event_id": "any"})
    with pytest.raises(CallError):
        calls.check("reset", {})


def test_files_are_known_by_name_and_read_by_path(tmp_path):
    call = calls_for(tmp_path).read(json.dumps({"data": [file_data("uploads/a/b.mp4"), "uploads/a/b.mp4"]}).encode())
    assert call["data"] == [file_data(f"{tmp_path}/a/b.mp4"), "uploads/a/b.mp4"]


def test_named_values(tmp_path):
    calls = calls_for(tmp_path)
    good = dict(zip(NAMES, [None, "What?", ["vanilla"], 0.5, "tokens", 0, None], strict=True))
    calls.check("call/v2/compare", dict(good))
    for odd in ({**good, "speed": 1}, {name: good[name] for name in NAMES[1:]}, {**good, "frames": "x"}):
        with pytest.raises(CallError):
            calls.check("call/v2/compare", odd)
    with pytest.raises(CallError, match="/compare"):
        calls.check("call/other", {"data": []})


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/gradio_api/call/v2/compare/", "call/v2/compare"),
        ("POST", "/gradio_api/queue/join", "queue/join"),
        ("GET", "/gradio_api/call/compare/abc", None),
        ("POST", "/gradio_api/upload", None),
        ("POST", "/call/compare", None),
    ],
)
def test_the_routes_that_take_calls(method, path, route):
    assert route_of({"type": "http", "method": method, "path": path, "root_path": ""}) == route


def post(server: str, route: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{server}/gradio_api/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.timeout(180)
def test_every_way_into_the_running_app(tmp_path, clip: Path):
    with serving(tmp_path, SHARP_REQUESTS_PER_MINUTE="0") as server:
        good = [file_data(upload(server, clip)), "What?", ["vanilla"], 0.5, "tokens", 2, None]
        with urllib.request.urlopen(f"{server}/config", timeout=30) as response:
            events = json.load(response)["dependencies"]
        index = next(one["id"] for one in events if one["api_name"] == "compare")
        assert post(server, "run/compare", {"data": good})[0] == 200
        for name, value in (*ODD[::5], ("match", "luck"), ("model", "nobody/knows"), ("retention", 2)):
            values = [value if one == name else known for one, known in zip(NAMES, good, strict=True)]
            for route, body in (
                ("call/compare", {"data": values}),
                ("run/compare", {"data": values}),
                ("api/compare", {"data": values}),
                ("call/v2/compare", dict(zip(NAMES, values, strict=True))),
            ):
                status, answer = post(server, route, body)
                if "event_id" not in answer:  # else the line comes with the event
                    assert status == 422, (route, value)
                    assert answer.get("detail") or answer["error"], (route, value)
            session = {"fn_index": index, "session_hash": "one"}
            assert post(server, "queue/join", {"data": values, **session})[0] == 200
            with urllib.request.urlopen(f"{server}/gradio_api/queue/data?session_hash=one", timeout=60) as response:
                told = [line for line in response.read().decode().splitlines() if "process_completed" in line][-1]
            assert json.loads(told.removeprefix("data: "))["output"]["error"], value
        client = Client(server, verbose=False)
        inputs = dict(zip(NAMES, [handle_file(str(clip)), *good[1:]], strict=True))
        with pytest.raises(AppError, match="old form"):
            client.predict(**{**inputs, "video": {"video": handle_file(str(clip))}}, api_name="/compare")
        assert client.predict(**inputs, api_name="/compare")["failed"] == []
    assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_the_example_clips_are_served_and_nothing_around_them(server):
    with urllib.request.urlopen(f"{server}/config", timeout=30) as response:
        listed = next(
            one["props"]["value"]
            for one in json.load(response)["components"]
            if one["props"].get("elem_id") == "examples"
        )
    with urllib.request.urlopen(f"{server}/{listed[0]['video']['url']}", timeout=30) as response:
        assert response.headers["Content-Type"] == "video/mp4"
    for path in ("/clips/../app.py", "/clips/%2e%2e/examples.py", "/clips//etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server}{path}", timeout=30)
