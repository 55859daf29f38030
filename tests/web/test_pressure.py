"""A greedy client among others, Stop at random moments, two runs of one session: nobody waits long, nothing stays."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from sharp_demo.strings import many_waiting
from sharp_demo.web.queue import LastPlaces
from tests.page.test_api import file_data, upload
from tests.page.test_faults import health, run_lines
from tests.serving import serving
from tests.video.clips import numbered, write_clip
from tests.web.test_calls import post
from tests.web.test_leaving import PROGRAM, Slow

pytestmark = pytest.mark.timeout(900)


# -- a greedy client -------------------------------------------------------------------------------------------------


def test_the_last_places_are_for_who_has_none():
    async def admitted(*_: Any) -> None:
        pass

    places = LastPlaces(admitted, lambda proxies: ["a"] * 5 + ["b"], 8, 0)
    assert places.kept_from("a") == 5
    assert places.kept_from("b") == 1
    assert places.kept_from("c") == 0
    places.waiting = lambda proxies: ["a"] * 5
    assert places.kept_from("a") == 0, "there is still room for all"
    places.waiting = lambda proxies: ["a"] * 8
    assert places.kept_from("a") == 0, "a full queue is refused as that"


def test_a_greedy_client_neither_locks_three_others_out_nor_makes_them_wait_for_more_than_the_queue(tmp_path, measured):
    """It asks as often as it can and never stops; the others ask once each, and all of them are answered."""
    size = 12  # the last three are kept
    (tmp_path / "steps").touch()
    limits = {"SHARP_QUEUE_SIZE": str(size), "SHARP_MAX_NEW_TOKENS": "2", "SHARP_REQUESTS_PER_MINUTE": "0"}
    program = ("-c", PROGRAM, str(tmp_path / "steps"))
    with serving(tmp_path, program, **limits, SHARP_LOG="json", SHARP_PROXIES="1") as address:
        server = Slow(address, tmp_path, write_clip(tmp_path / "clip.mp4"))
        inputs, over, refused = server.inputs(["vanilla"]), time.monotonic() + 60, []
        server.listen(server.post(inputs, X_Forwarded_For="10.0.0.1"))  # loads the model
        asked = len(run_lines(tmp_path))

        def greedy() -> list[str]:
            events = []
            while time.monotonic() < over:
                try:
                    events.append(server.post(inputs, X_Forwarded_For="10.0.0.1"))
                except urllib.error.HTTPError as error:
                    refused.append((error.code, json.load(error)["detail"]))
                    time.sleep(0.05)
            return events

        def ordinary(number: int) -> tuple[float, str]:
            start = time.monotonic()
            own = [*inputs[:3], round(0.5 + 0.1 * number, 1), *inputs[4:]]
            told = server.listen(server.post(own, X_Forwarded_For=f"10.0.0.{number}"))
            return time.monotonic() - start, told

        with ThreadPoolExecutor() as pool:
            stream = pool.submit(greedy)
            server.wait(lambda: bool(refused))
            waits = list(pool.map(ordinary, (2, 3, 4)))
            over = 0.0
            for told in pool.map(server.listen, stream.result()):
                assert "event: complete" in told, "what was let in is answered too"
        assert all("event: complete" in told for _, told in waits)
        assert refused[0][0] == 429
        assert {code for code, _ in refused} <= {429, 503}, "the others have taken the last places: it is full"
        assert refused[0][1] in {many_waiting(own) for own in range(1, size)}
        lines = run_lines(tmp_path)[asked:]
        slowest = max(line["seconds"] for line in lines)
        bound = (size + 1) * slowest + 2
        assert max(wait for wait, _ in waits) < bound
    measured("wait next to a greedy client", f"{max(wait for wait, _ in waits):.1f} s", f"{bound:.1f} s")


# -- Stop ------------------------------------------------------------------------------------------------------------


@dataclass
class PageClient:
    """Presses a page's buttons as its script does, by the events' indices."""

    server: str
    session: str
    events: dict[str, int] = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        with urllib.request.urlopen(f"{self.server}/config", timeout=30) as answer:
            config = json.load(answer)
        parts = {one["id"]: one["props"] for one in config["components"]}
        ids = {props.get("elem_id"): one for one, props in parts.items()}
        events = config["dependencies"]

        def pressed(button: str) -> dict[str, Any]:
            return next(one for one in events if [ids[button], "click"] in one["targets"])

        begin = pressed("run")
        stream = next(one for one in events if one.get("trigger_after") == begin["id"])
        self.events = {"begin": begin["id"], "run": stream["id"], "stop": pressed("stop")["id"]}
        self.names = [parts[one].get("elem_id") for one in stream["inputs"]]
        self.values = [parts[one].get("value") for one in stream["inputs"]]

    def ask(self, clip: str, methods: list[str]) -> str:
        """Press Run for a clip of the server and return the run's event."""
        self.predict("begin", self.filled(clip, methods))
        return self.join(clip, methods)

    def join(self, clip: str, methods: list[str]) -> str:
        """Ask for the run behind the button and return its event."""
        return self.post("queue/join", "run", self.filled(clip, methods))["event_id"]

    def filled(self, clip: str, methods: list[str]) -> list[Any]:
        given = {"clip": file_data(clip), "question": "What?", "methods": methods, "max-new": 4}
        return [given.get(name, value) for name, value in zip(self.names, self.values, strict=True)]

    def predict(self, event: str, data: list[Any]) -> None:
        self.post("run/predict", event, data)

    def post(self, route: str, event: str, data: list[Any]) -> dict[str, Any]:
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session, "trigger_id": None}
        status, answer = post(self.server, route, body)
        assert status == 200, answer
        return answer

    def listen(self, events: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Return the messages of a session's events until all of them have ended."""
        told: dict[str, list[dict[str, Any]]] = {event: [] for event in events}
        left = set(events)
        with urllib.request.urlopen(
            f"{self.server}/gradio_api/queue/data?session_hash={self.session}", timeout=120
        ) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    message = json.loads(line.removeprefix(b"data: "))
                    told.get(message.get("event_id"), []).append(message)
                    if message["msg"] == "process_completed":
                        left.discard(message["event_id"])
                        if not left:
                            return told
        raise AssertionError(f"the stream ended before {left}")


@dataclass(frozen=True)
class Stoppable:
    """A running app, its process and where its log and files lie."""

    address: str
    process: Popen
    folder: Path


def children(process: Popen) -> list[str]:
    """The processes that a server has started and that are still there (Linux)."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory) -> Iterator[Stoppable]:
    """An app whose temporary files have a folder of their own."""
    folder, started = tmp_path_factory.mktemp("stoppable"), []
    (folder / "tmp").mkdir()
    settings = {"SHARP_LOG": "json", "SHARP_REQUESTS_PER_MINUTE": "0", "TMPDIR": str(folder / "tmp")}
    with serving(folder, started=started, **settings) as address:
        yield Stoppable(address, started[0], folder)


@pytest.mark.parametrize("presses", [10, pytest.param(200, marks=pytest.mark.full)])
def test_stop_at_random_moments_leaves_nothing(presses, stoppable, tmp_path):
    """Stop reaches a run that waits, decodes, encodes, prefills, answers or has just ended."""
    server, process, folder = stoppable.address, stoppable.process, stoppable.folder
    rng = random.Random(14)
    clips = [
        write_clip(tmp_path / f"{number}.mp4", frames=[numbered(number * 8 + i) for i in range(8)])
        for number in range(9)  # more than the server remembers, so that most are decoded again
    ]
    uploaded = [upload(server, clip) for clip in clips]
    page = PageClient(server, "stopper")
    methods = ["vanilla", "fastv", "sharp"]
    took = []
    for clip in uploaded[:2]:  # the first loads the model
        start = time.monotonic()
        page.listen([page.ask(clip, methods)])
        took.append(time.monotonic() - start)
    held = set((folder / "cache").rglob("*.*"))
    resting = [len(children(process)), len(list((folder / "tmp").iterdir()))]  # a decoder waits for the next clip
    before = len(run_lines(folder))
    with ThreadPoolExecutor() as pool:
        for _ in range(presses):
            event = page.ask(rng.choice(uploaded), methods)
            told = pool.submit(page.listen, [event])
            time.sleep(rng.uniform(0, took[1]))
            page.predict("stop", [])
            last = told.result()[event][-1]
            assert last["success"], last
            assert not last["output"].get("error")
    lines = run_lines(folder)[before:]
    assert len(lines) == presses
    assert {line["outcome"] for line in lines} <= {"stopped", "done"}
    assert any(line["outcome"] == "stopped" for line in lines)
    report = health(server)[1]
    assert (report["status"], report["running"], report["queue"]["waiting"]) == ("ok", False, 0)
    whole = page.listen([page.ask(uploaded[0], methods)])
    assert [one for messages in whole.values() for one in messages][-1]["success"]
    assert run_lines(folder)[-1]["outcome"] == "done"
    assert [len(children(process)), len(list((folder / "tmp").iterdir()))] == resting
    assert resting[0] <= 1
    new = set((folder / "cache").rglob("*.*")) - held
    assert {path.name for path in new} <= {"frames.jpg"}
    assert len(new) <= len(clips)
    assert "Traceback" not in (folder / "app.log").read_text()


def test_two_runs_of_one_session_both_end_with_their_own_answer(stoppable, tmp_path):
    """A script that shares a session, or a page that asks again: the second waits for the first."""
    server, before = stoppable.address, len(run_lines(stoppable.folder))
    clips = [upload(server, write_clip(tmp_path / f"{n}.mp4", frames=[numbered(n)] * 4)) for n in (1, 2)]
    page = PageClient(server, "twice")
    events = [page.join(clip, methods) for clip, methods in zip(clips, (["vanilla"], ["sharp", "fastv"]), strict=True)]
    told = page.listen(events)
    assert all(told[event][-1]["success"] for event in events)
    lines = run_lines(stoppable.folder)[before:]
    assert [list(line["methods"]) for line in lines] == [["Vanilla"], ["ShaRP", "FastV"]]
    assert {line["outcome"] for line in lines} == {"done"}
