"""What the server refuses before Gradio sees it: each rule alone, and all of them in the running app."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from gradio.utils import get_upload_folder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sharp_demo import settings as settings_module
from sharp_demo import strings
from sharp_demo.engine.condition import Condition
from sharp_demo.settings import Settings
from sharp_demo.web import server as guards_module
from sharp_demo.web.health import Health
from sharp_demo.web.server import (
    MAX_BODY,
    OPEN_UPLOADS,
    BodyLimit,
    RateLimit,
    SecurityHeaders,
    TrustedHosts,
    client_of,
    guards,
    host_name,
    is_trusted,
    is_upload,
)
from sharp_demo.web.uploads import YOUNG_S, Ages, UploadFolder
from tests.page.test_api import call, file_data, upload
from tests.serving import serving
from tests.video.clips import write_clip


def app_of(*middleware: Middleware) -> TestClient:
    """A server behind some middleware that answers with what reached it."""

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/gradio_api/upload")]
    return TestClient(Starlette(routes=routes, middleware=list(middleware)), base_url="http://127.0.0.1")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Localhost:7860", "localhost"),
        ("[::1]:7860", "::1"),
        ("demo.example.org.", "demo.example.org"),
        ("10.0.0.1", "10.0.0.1"),
        ("", ""),
    ],
)
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("localhost", True),
        ("app.localhost:7860", True),
        ("127.0.0.1:7860", True),
        ("[::1]:7860", True),
        ("192.168.1.5", True),
        ("demo.example.org", True),
        ("a.wild.example", True),
        ("wild.example", False),
        ("evil.example", False),
        ("demo.example.org.evil.example", False),
        ("notlocalhost", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_trusted_names(host, trusted):
    assert is_trusted(host, {"demo.example.org", "*.wild.example"}) is trusted


def test_foreign_hosts_are_refused_forwarded_ones_too():
    client = app_of(Middleware(TrustedHosts, names={"demo.example.org"}))
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "demo.example.org:443"}).status_code == 200
    for headers in ({"Host": "evil.example"}, {"X-Forwarded-Host": "evil.example"}):
        refused = client.get("/", headers=headers)
        assert refused.status_code == 400
        assert refused.text == strings.foreign_host("evil.example")
    assert app_of(Middleware(TrustedHosts, names=None)).get("/", headers={"Host": "evil.example"}).status_code == 200


def test_names_and_framing_follow_the_deployment(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    local = Settings(allowed_hosts="Demo.example.org, other.example")
    assert local.host_names == {"127.0.0.1", "demo.example.org", "other.example"}
    assert local.framing == "'self'"
    assert Settings(allowed_hosts="*").host_names is None
    assert Settings(frame_ancestors="https://a.example; script-src *").framing == "https://a.example script-src *"
    monkeypatch.setenv("SPACE_ID", "someone/demo")
    assert Settings().host_names is None
    assert (Settings().proxies, local.proxies) == (1, 0)
    assert Settings(host="127.0.0.1", allowed_hosts="a.example").host_names == {"127.0.0.1", "a.example"}
    assert "https://huggingface.co" in Settings().framing


def test_a_server_leaves_itself_a_core(monkeypatch):
    for cores, threads in ((1, 1), (2, 1), (16, 15)):
        monkeypatch.setattr(settings_module, "usable_cores", lambda cores=cores: cores)
        assert Settings().for_serving().threads == threads
    assert Settings(threads=3).for_serving().threads == 3


def test_uploads_are_kept_apart_from_other_apps(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "is put back after the test")
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    settings_module.use_own_upload_folder()
    assert Path(get_upload_folder()).parent == tmp_path
    assert Path(get_upload_folder()).name.startswith("sharp-demo")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/elsewhere")
    settings_module.use_own_upload_folder()
    assert get_upload_folder() == "/elsewhere"


# -- rates -----------------------------------------------------------------------------------------------------------


def test_a_client_may_send_so_many_requests_a_minute():
    now = [0.0]
    limit = RateLimit(app=None, per_minute=6, proxies=0, clock=lambda: now[0])
    assert [limit.take("a") for _ in range(6)] == [0.0] * 6
    assert limit.take("a") == pytest.approx(10)
    assert limit.take("b") == 0, "another client is not affected"
    now[0] = 9
    assert limit.take("a") == pytest.approx(1)
    now[0] = 10
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(10)
    now[0] = 1000
    assert [limit.take("a") > 0 for _ in range(7)] == [False] * 6 + [True], "saved up to one minute's worth"


def test_clients_are_forgotten_the_oldest_first(monkeypatch):
    monkeypatch.setattr("sharp_demo.web.server.KNOWN_CLIENTS", 2)
    limit = RateLimit(app=None, per_minute=1, proxies=0, clock=lambda: 0.0)
    assert [limit.take(client) for client in "abc"] == [0, 0, 0]
    assert limit.take("b") > 0
    assert limit.take("a") == 0


def test_too_many_requests_get_429_and_reading_is_free():
    client = app_of(Middleware(RateLimit, per_minute=2, proxies=0))
    assert [client.post("/").status_code for _ in range(3)] == [200, 200, 429]
    refused = client.post("/")
    assert int(refused.headers["Retry-After"]) in (30, 29)
    assert "2 a minute" in refused.json()["detail"]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        (0, "1.1.1.1", "9.9.9.9"),
        (1, "1.1.1.1", "1.1.1.1"),
        (1, "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        (2, "6.6.6.6, 1.1.1.1, 10.0.0.1", "1.1.1.1"),
        (2, "1.1.1.1", "9.9.9.9"),
        (1, "", "9.9.9.9"),
    ],
)
def test_the_client_is_whom_our_own_proxies_saw(proxies, forwarded, client):
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    assert client_of({"type": "http", "headers": headers, "client": ("9.9.9.9", 1)}, proxies) == client


# -- bodies and disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> UploadFolder:
    return UploadFolder(tmp_path / "cache", quota=3000, min_free=0)


def held(folder: UploadFolder, name: str, size: int, age: float) -> Path:
    path = folder.path / name / "clip.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_bodies_have_a_known_and_limited_length(folder):
    client = app_of(Middleware(BodyLimit, upload_bytes=1000, folder=folder))
    assert client.post("/", content=b"x" * 10).text == "10"
    assert client.post("/").status_code == 200
    assert client.post("/", content=iter([b"x"])).status_code == 411
    assert client.post("/", content=bytes(MAX_BODY + 1)).status_code == 413
    big = client.post("/gradio_api/upload", content=bytes(2_100_000))
    assert (big.status_code, big.text) == (413, strings.too_large(1000 + (1 << 20)))


def test_an_upload_that_finds_no_room_is_refused_and_others_go_on(folder):
    client = app_of(Middleware(BodyLimit, upload_bytes=10_000, folder=folder))
    refused = client.post("/gradio_api/upload", content=bytes(3001))
    assert (refused.status_code, refused.text) == (507, strings.NO_ROOM)
    for _ in range(5):
        assert client.post("/gradio_api/upload", content=bytes(2000)).text == "2000", "reservations are given back"


@pytest.mark.parametrize(
    "path", ["/gradio_api/call/upload", "/gradio_api/run/upload", "/upload", "/x/gradio_api/upload"]
)
def test_only_the_upload_route_takes_large_bodies(folder, path):
    client = app_of(Middleware(BodyLimit, upload_bytes=10 * MAX_BODY, folder=folder))
    refused = client.post(path, content=bytes(MAX_BODY + 1))
    assert (refused.status_code, refused.json()["detail"]) == (413, strings.too_large(MAX_BODY))


def test_the_upload_route_is_known_below_a_proxys_root_path(folder):
    scope = {"type": "http", "method": "POST", "root_path": "/demo", "path": "/demo/gradio_api/upload"}
    assert is_upload(scope)
    assert not is_upload({**scope, "path": "/demo/gradio_api/call/upload"})


class Client:
    """Sends an upload message by message through `BodyLimit`, as a slow or silent client would."""

    def __init__(self, limit: BodyLimit, announced: int, address: str = "9.9.9.9") -> None:
        self.limit, self.announced, self.address = limit, announced, address
        self.status: list[int] = []

    async def run(self, *pieces: bytes, then_silent: bool = False) -> int | None:
        waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if waiting and not then_silent:
            waiting[-1]["more_body"] = False

        async def receive():
            if waiting:
                return waiting.pop(0)
            return await anyio.sleep_forever()

        async def send(message):
            if message["type"] == "http.response.start":
                self.status.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/gradio_api/upload",
            "client": (self.address, 1),
            "headers": [(b"content-length", str(self.announced).encode())],
        }
        await self.limit(scope, receive, send)
        return self.status[0] if self.status else None


def limited(folder: UploadFolder, silence_s: float = 60.0) -> BodyLimit:
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await PlainTextResponse("ok")(scope, receive, send)

    return BodyLimit(app, upload_bytes=100_000, folder=folder, silence_s=silence_s)


def test_announced_bytes_lock_nobody_out_and_silence_ends(folder):
    limit, statuses = limited(folder, silence_s=0.3), []

    async def visit() -> None:
        async with anyio.create_task_group() as tasks:
            silent = [Client(limit, 3000, f"10.0.0.{i}") for i in range(30)]
            for client in silent:
                tasks.start_soon(lambda client=client: client.run(b"-", then_silent=True))
            await anyio.sleep(0.05)
            statuses.append(await Client(limit, 2000).run(bytes(2000)))
        statuses.append({status for client in silent for status in client.status})

    anyio.run(visit)
    assert statuses == [200, {408}]
    assert folder.reserve(3000) is None, "all reservations are given back"


def test_one_client_has_a_few_uploads_open_at_once(folder, monkeypatch):
    """One more is refused while all others are at work, and takes the place of the one that is silent longest."""
    monkeypatch.setattr(guards_module, "YIELD_S", 0.5)
    limit, late = limited(folder), []
    silent = [Client(limit, 10) for _ in range(OPEN_UPLOADS)]

    async def visit() -> None:
        async with anyio.create_task_group() as tasks:
            for client in silent:
                tasks.start_soon(lambda client=client: client.run(b"-", then_silent=True))
            await anyio.sleep(0.01)
            late.append(await Client(limit, 10).run(bytes(10)))
            late.append(await Client(limit, 10, "1.1.1.1").run(bytes(10)))
            await anyio.sleep(0.6)
            late.append(await Client(limit, 10).run(bytes(10)))
            late.append(await Client(limit, 10).run(bytes(10)))
            await anyio.sleep(0.01)
            late.append([client.status for client in silent])
            tasks.cancel_scope.cancel()

    anyio.run(visit)
    assert late == [429, 200, 200, 200, [[408], *[[]] * (OPEN_UPLOADS - 1)]]
    assert anyio.run(Client(limit, 10).run, bytes(10)) == 200


def test_an_upload_stops_when_the_room_ends_on_its_way(folder):
    limit = limited(folder)
    assert anyio.run(Client(limit, 50_000).run, bytes(1000), bytes(1000), bytes(2000)) == 507
    assert folder.refuses
    assert anyio.run(Client(limit, 2000).run, bytes(2000)) == 200
    assert not folder.refuses


def test_old_files_go_first_and_young_ones_stay(folder):
    oldest, older = held(folder, "a", 1000, YOUNG_S + 100), held(folder, "b", 1000, YOUNG_S + 50)
    young = held(folder, "c", 900, 10)
    assert folder.reserve(1000) is None
    assert (oldest.exists(), older.exists(), young.exists()) == (False, True, True)
    assert folder.reserve(1100) is None, "the first reservation still counts"
    assert (older.exists(), young.exists()) == (False, True)
    assert folder.reserve(1) == strings.NO_ROOM
    folder.release(1000)
    assert folder.reserve(1) is None


def test_files_that_are_asked_about_stay_however_old_they_are(folder):
    waiting, idle = held(folder, "a", 1000, YOUNG_S + 200), held(folder, "b", 1000, YOUNG_S + 100)
    folder.in_use = lambda: {
        Path("/written/another/way") / waiting.relative_to(folder.path),
        Path("\0"),
        Path("x" * 5000),
    }
    assert folder.reserve(2000) is None
    assert (waiting.exists(), idle.exists()) == (True, False)
    assert folder.reserve(1) == strings.NO_ROOM
    folder.in_use = frozenset
    assert folder.reserve(1) is None
    assert not waiting.exists()


def test_a_clock_that_jumps_makes_no_file_old(folder, monkeypatch):
    """The wall clock is set forward by a day, and back by two; a steady one says that ten seconds have passed."""
    steady, now = [0.0], time.time()
    folder.ages = Ages(lambda: steady[0])
    assert folder.reserve(1) is None
    file = held(folder, "a", 2500, 0)
    for jump in (86_400, -86_400):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda jump=jump: now + jump)
            steady[0] += 5
            assert folder.reserve(1000) == strings.NO_ROOM
            folder.tidy(3600)
            assert file.exists()
    steady[0] += 3601
    folder.tidy(3600)
    assert not file.exists()
    assert folder.path.exists()


def test_a_full_disk_is_noticed_before_the_upload(folder, monkeypatch):
    monkeypatch.setattr(folder, "free", lambda: 5000)
    folder.min_free = 4500
    assert folder.reserve(500) is None
    assert folder.reserve(1) == strings.NO_ROOM


def test_links_are_neither_counted_nor_followed(folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(bytes(5000))
    os.utime(precious, (0, 0))
    folder.path.mkdir()
    (folder.path / "link").symlink_to(precious)
    assert folder.reserve(3000) is None
    assert precious.exists()


# -- health ----------------------------------------------------------------------------------------------------------


class FakeEngine:
    def __init__(self) -> None:
        self.condition = Condition("some-model", "ready")


def test_health_is_green_degraded_or_red(folder):
    engine, settings = FakeEngine(), Settings(run_timeout_s=10, min_free_mb=0)
    health = Health(engine, settings, folder, waiting=lambda: 3)
    client = TestClient(health_app(health))
    green = client.get("/healthz")
    assert green.status_code == 200
    assert green.headers["Cache-Control"] == "no-store"
    report = green.json()
    assert report["status"] == "ok"
    assert report["model"] == {"name": "some-model", "state": "ready"}
    assert report["queue"] == {"waiting": 3, "size": 20}
    assert report["disk"]["free_mb"] > 0

    engine.condition.running, engine.condition.heard = True, time.monotonic() - 69
    assert client.get("/healthz").status_code == 200
    engine.condition.heard -= 2
    stuck = client.get("/healthz")
    assert (stuck.status_code, stuck.json()["status"]) == (503, "failed")
    assert "silent" in stuck.json()["problem"]
    engine.condition.state = "loading"  # a download of gigabytes is no reason for a restart
    assert client.get("/healthz").status_code == 200
    engine.condition.state = "ready"
    engine.condition.running = False
    assert client.get("/healthz").status_code == 200

    engine.condition.lost = "the device is gone"
    assert client.get("/healthz").status_code == 503
    engine.condition.lost = ""
    assert folder.reserve(folder.quota + 1) == strings.NO_ROOM
    full = client.get("/healthz")
    assert (full.status_code, full.json()["status"]) == (200, "degraded")
    assert "no room" in full.json()["problem"]
    assert folder.reserve(1) is None
    assert client.get("/healthz").json()["status"] == "ok"
    health.settings = Settings(min_free_mb=1e12)
    low = client.get("/healthz")
    assert (low.status_code, low.json()["status"]) == (200, "degraded")


def health_app(health: Health):
    return Starlette(routes=[health.route()])


# -- the running app -------------------------------------------------------------------------------------------------


def ask(server: str, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request with headers exactly as given; return status, headers and body."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def test_the_running_app_believes_no_forwarded_address(tmp_path):
    with serving(tmp_path, SHARP_REQUESTS_PER_MINUTE="5") as address:
        told = [ask(address, "POST", "/gradio_api/nothing", X_Forwarded_For=f"10.0.0.{i}")[0] for i in range(12)]
        assert told.count(429) >= 6, "every one of them came from the same peer"


@pytest.mark.parametrize("origin", ["http://localhost:1", "http://127.0.0.1:1", "http://evil.example", "null"])
def test_no_page_of_another_origin_reads_the_running_app(server, origin):
    for path in ("/", "/config", "/gradio_api/info"):
        status, _, body = ask(server, "GET", path, Origin=origin)
        assert (status, json.loads(body)) == (403, {"detail": strings.FOREIGN_ORIGIN})
    _, headers, _ = ask(server, "GET", "/config", Origin=server)
    assert headers.get("access-control-allow-origin") == server


def test_health_of_the_running_app(server):
    status, _, body = ask(server, "GET", "/healthz")
    report = json.loads(body)
    assert (status, report["status"]) == (200, "ok")
    assert report["queue"] == {"waiting": 0, "size": 20}


def test_every_answer_carries_the_security_headers(server):
    for path in ("/", "/healthz", "/gradio_api/file=/etc/passwd", "/nowhere"):
        _, headers, _ = ask(server, "GET", path)
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


def test_the_running_app_refuses_foreign_names(server):
    for headers in ({"Host": "evil.example"}, {"X_Forwarded_Host": "evil.example"}):
        status, _, body = ask(server, "GET", "/", **headers)
        assert (status, body.decode()) == (400, strings.foreign_host("evil.example"))
    assert ask(server, "GET", "/", Host="localhost:1234")[0] == 200


@pytest.mark.timeout(180)
def test_limits_of_the_running_app(tmp_path, clip):
    """A deployment with its own names, framing, rates and disk: one server for what the settings change."""
    variables = {
        "SHARP_ALLOWED_HOSTS": "demo.example",
        "SHARP_FRAME_ANCESTORS": "https://stage.example",
        "SHARP_REQUESTS_PER_MINUTE": "5",
        "SHARP_MIN_FREE_MB": "1e12",
    }
    with serving(tmp_path, **variables) as server:
        status, headers, body = ask(server, "GET", "/healthz", Host="demo.example")
        assert status == 200
        assert json.loads(body)["status"] == "degraded"
        assert headers["content-security-policy"].endswith("frame-ancestors https://stage.example")
        refused = upload_status(server, clip)
        assert refused == (507, strings.NO_ROOM)
        statuses = [upload_status(server, clip)[0] for _ in range(6)]
        assert 429 in statuses
        assert ask(server, "GET", "/healthz")[0] == 200


SLOW_TOKENS = "import time, sharp_demo.engine.generation as e; step = e.decode_step; e.end_tokens = lambda *a: set(); "
SLOW_TOKENS += "import sharp_demo.web.uploads as u; u.YOUNG_S = 1; "
SLOW_TOKENS += "e.decode_step = lambda *a: time.sleep(0.1) or step(*a); import app; app.main()"


@pytest.mark.timeout(180)
def test_the_clip_of_a_run_that_goes_on_is_not_deleted_for_another(tmp_path):
    """The first clip is old enough, after a second, and the quota holds one; nothing else could go."""
    clip, other = write_clip(tmp_path / "clip.mp4"), tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes()[::-1])
    quota = (clip.stat().st_size + 1000) / 1e6
    with (
        serving(tmp_path, ("-c", SLOW_TOKENS), SHARP_UPLOAD_QUOTA_MB=str(quota)) as server,
        ThreadPoolExecutor() as pool,
    ):
        named = upload(server, clip)
        first = tmp_path / "cache" / Path(named).relative_to("uploads")
        time.sleep(1.1)
        inputs = [file_data(named), "What?", ["vanilla"], 1, "tokens", 4, "tiny-llava-onevision"]
        answer = pool.submit(call, server, inputs)
        while not json.loads(ask(server, "GET", "/healthz")[2])["running"]:
            time.sleep(0.05)
        assert upload_status(server, other) == (507, strings.NO_ROOM)
        assert first.exists()
        assert "event: complete" in answer.result()
        assert upload_status(server, other)[0] == 200
        assert not first.exists()


def upload_status(server: str, path: Path) -> tuple[int, str]:
    try:
        upload(server, path)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    return 200, ""


def test_the_order_of_the_guards(folder):
    """Headers on every refusal; hosts before origins before counting; a foreign page uses up nobody's budget."""
    client = app_of(*guards(Settings(requests_per_minute=1), folder))
    foreign = client.post("/", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert "content-security-policy" in foreign.headers
    assert client.post("/").status_code == 200
    assert client.post("/").status_code == 429
    assert SecurityHeaders(None, "'none'").headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")
