"""What of Gradio is open, and what the server tells of its folders."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Response
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sharp_demo import strings
from sharp_demo.web.routes import Folders, HiddenFolders, OpenRoutes
from tests.page.test_browser import ask, browser, run, watched
from tests.page.test_browser import upload as choose
from tests.serving import ROOT, serving

__all__ = ["browser", "watched"]  # fixtures

pytestmark = pytest.mark.timeout(180)
SHUT = [
    ("POST", "process_recording"),  # runs ffmpeg on what it is sent
    ("POST", "component_server"),
    ("POST", "stream/abc/close"),
    ("POST", "vibe-code"),
    ("POST", "run-history/connect"),
    ("POST", "nothing"),
    ("GET", "deep_link?session_hash=abc"),  # writes files
    ("GET", "dev/reload"),
    ("GET", "proxy=https://example.org"),
    ("GET", "file=https://example.org/x"),  # fetches it
    ("GET", "file=HTTP://8.8.8.8/x"),
    ("GET", "file=//example.org/x"),
    ("GET", "custom_component/1/client/component/index.js"),
    ("GET", "call/compare/nobody"),
]


def guarded() -> TestClient:
    """An app that answers everything, behind the guard; "me" is the one session and event that it knows."""
    routes = [Route("/{rest:path}", lambda request: PlainTextResponse("open"), methods=["GET", "POST", "PUT"])]
    guard = Middleware(OpenRoutes, known_session="me".__eq__, known_event="me".__eq__)
    return TestClient(Starlette(routes=routes, middleware=[guard]))


def test_what_the_page_does_not_use_does_not_exist():
    client = guarded()
    for method, route in SHUT:
        answer = client.request(method, f"/gradio_api/{route}")
        assert (answer.status_code, list(answer.json())) == (404, ["detail"]), route
    assert client.put("/gradio_api/upload").text == "open", "which methods a route takes is for Gradio to say"
    assert client.post("/login").status_code == 404
    for method, route in (
        ("POST", "queue/join"),
        ("POST", "call/v2/compare/"),
        ("POST", "cancel"),
        ("GET", "info"),
        ("GET", "heartbeat/abc"),
        ("GET", "file=uploads/a.mp4"),
        ("GET", "call/compare/me"),
        ("GET", "queue/data?session_hash=me"),
    ):
        assert client.request(method, f"/gradio_api/{route}").text == "open", route
    lost = client.get("/gradio_api/queue/data?session_hash=you").text
    assert json.loads(lost.removeprefix("data: ")) == {
        "msg": "unexpected_error",
        "message": strings.NO_SESSION,
        "success": False,
        "session_not_found": True,
    }


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(
        {"uploads": tmp_path / "my files", "clips": tmp_path / "assets/clips"}, {"assets": tmp_path / "assets"}
    )


def test_folders_leave_by_name(folders: Folders, tmp_path: Path):
    for said, expected in (
        (f'{{"path": "{tmp_path}/my files/a.mp4"}}', '{"path": "uploads/a.mp4"}'),
        (f"/gradio_api/file={tmp_path}/my%20files/a.mp4", "/gradio_api/file=uploads/a.mp4"),
        (f"{tmp_path}/assets/clips/a.mp4 {tmp_path}/assets/models", "clips/a.mp4 assets/models"),
        (f"{tmp_path}/my files{tmp_path}/my files", "uploadsuploads"),
        (f"{tmp_path}/assets2/x", f"{tmp_path}/assets2/x"),
        (f"remote{tmp_path}/assets/x", f"remote{tmp_path}/assets/x"),
        ("", ""),
    ):
        assert folders.hide(said.encode()).decode() == expected


def test_only_open_folders_are_found_by_name(folders: Folders, tmp_path: Path):
    assert folders.local("uploads/a/b.mp4") == f"{tmp_path}/my files/a/b.mp4"
    for path in ("assets/models", "uploads", "/etc/passwd", "", "other/a"):
        assert folders.local(path) == path


def test_answers_and_files_by_name(folders: Folders, tmp_path: Path):
    secret = f"{tmp_path}/my files/a.mp4"

    def answer(request):
        path = request.path_params["rest"]
        return PlainTextResponse(secret, media_type="video/mp4") if path == "video" else JSONResponse([secret, path])

    routes = [Route("/{rest:path}", answer)]
    client = TestClient(Starlette(routes=routes, middleware=[Middleware(HiddenFolders, folders=folders)]))
    assert client.get("/a").json() == ["uploads/a.mp4", "a"]
    assert client.get("/video").text == secret, "bytes are left alone"
    asked = client.get("/gradio_api/file=uploads/a%20b.mp4").json()
    assert asked[1] == f"gradio_api/file={tmp_path}/my files/a b.mp4"


# -- the running app -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory, tiny_llava_folder: Path) -> Iterator[tuple[str, Path]]:
    """The address of an app whose model is a local folder, and where its log is."""
    folder = tmp_path_factory.mktemp("told")
    with serving(folder, SHARP_MODEL=str(tiny_llava_folder), SHARP_REQUESTS_PER_MINUTE="0") as address:
        yield address, folder


def paths_of(folder: Path, model: Path) -> tuple[str, ...]:
    """What no answer may hold."""
    return (*tuple(f"{one}/" for one in (ROOT, Path.home(), folder, model.parent)), str(model))


def test_a_hostile_caller_finds_the_routes_shut(told, clip: Path):
    address, folder = told
    for method, route in SHUT:
        body = b"{}" if method == "POST" else None
        request = urllib.request.Request(f"{address}/gradio_api/{route}", body, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 404
        assert list(json.load(refused.value)) == ["detail"]
    for route, body in (
        ("cancel", b"{}"),
        ("cancel", b"["),
        ("cancel", b'{"session_hash": ["a"], "fn_index": 1, "event_id": "b"}'),
        ("reset", b"null"),
        ("reset", b'{"event_id": 7}'),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/{route}", body), timeout=30)
        assert refused.value.code == 422
        assert isinstance(json.load(refused.value)["detail"], str)
    edge = b'--edge\r\nContent-Disposition: form-data; name="files"\r\n\r\nno file\r\n--edge--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=edge"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", edge, form), timeout=30)
    assert (refused.value.code, refused.value.read().decode()) == (400, strings.NO_FILE)
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=nobody", timeout=30) as stream:
        assert strings.NO_SESSION in stream.read().decode()
    log = (folder / "app.log").read_text()
    assert "Traceback" not in log
    assert "Error" not in log


@pytest.mark.browser
def test_nothing_that_is_told_holds_a_path(watched, told, tiny_llava_folder: Path, clip: Path):
    """Every text that a page gets: opened, an example chosen, a clip uploaded, run, its files fetched."""
    address, folder = told
    texts: dict[str, str] = {}

    def keep(response: Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.url.startswith(address) and kind.startswith(("text/html", "text/event", "application/json")):
            try:
                texts[response.url] = texts.get(response.url, "") + response.text()
            except Exception as error:  # a stream that goes on, or a page that has moved on
                unread.append(str(error))

    unread: list[str] = []
    page = watched.page
    page.on("requestfinished", lambda request: keep(request.response()))
    watched.open(address)
    choose(page, clip)
    ask(page, "What?")
    assert run(page) == "done"
    page.locator("#examples button").first.click()
    page.wait_for_function("document.querySelector('#clip video')?.currentSrc.includes('=clips/')")
    page.wait_for_function("document.querySelector('#clip video').readyState > 0")
    assert run(page) == "done"
    for wanted in ("queue/data", "upload"):
        deadline = time.monotonic() + 30  # the stream of a run ends a moment after the run
        while not any(wanted in url for url in texts):
            assert time.monotonic() < deadline, (wanted, sorted(texts), unread)
            page.wait_for_timeout(200)
    watched.assert_clean()
    for path in ("/config", "/gradio_api/info"):
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
            texts[path] = answer.read().decode()
    for url, text in texts.items():
        for path in paths_of(folder, tiny_llava_folder):
            assert path not in text, url
