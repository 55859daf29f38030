"""Who is served when, and what a run costs whose client has gone: the steps that the model still makes are counted."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.page.test_api import call, file_data, upload
from tests.page.test_browser import browser, give_file
from tests.page.test_faults import health, run_lines
from tests.serving import ROOT, serving
from tests.video.clips import write_clip

__all__ = ["browser"]  # a fixture

pytestmark = pytest.mark.timeout(240)
STEP_S, TOKENS, LISTEN_S = 0.15, 16, 3.0
LIMITS = {"SHARP_LOG": "json", "SHARP_QUEUE_SIZE": "30", "SHARP_MAX_NEW_TOKENS": str(TOKENS)}
# Answers that never end by themselves; every step is slow and leaves the time at which it began.
PROGRAM = f"""
import sys, time
import sharp_demo.engine.generation as e
step, log = e.decode_step, open(sys.argv[1], "a", buffering=1)
def slow(*inputs):
    print(time.time(), file=log)
    time.sleep({STEP_S})
    return step(*inputs)
e.decode_step, e.end_tokens = slow, lambda *inputs: set()
import sharp_demo.page.runs as r
r.LISTEN_S = {LISTEN_S}
import app
app.main()
"""
CLIENT = """
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
job = client.submit(handle_file(sys.argv[2]), "What?", ["vanilla", "fastv", "sharp"], 0.5, "tokens", 4,
                    "tiny-llava-onevision", api_name="/compare")
job.result()
"""


@dataclass
class Slow:
    """A running app with slow steps, and a clip."""

    address: str
    folder: Path
    clip: Path

    def steps(self) -> list[float]:
        """When each step of the model began, in seconds since the epoch."""
        return [float(line) for line in (self.folder / "steps").read_text().split()]

    def inputs(self, methods: list[str], retention: float = 0.5) -> list:
        path = upload(self.address, self.clip)
        return [file_data(path), "What?", methods, retention, "tokens", 4, "tiny-llava-onevision"]

    def post(self, inputs: list, **headers: str) -> str:
        """Ask for a comparison and return its event's id; nobody listens yet."""
        request = urllib.request.Request(
            f"{self.address}/gradio_api/call/compare",
            json.dumps({"data": inputs}).encode(),
            {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["event_id"]

    def listen(self, event: str) -> str:
        """Return the event's whole stream."""
        with urllib.request.urlopen(f"{self.address}/gradio_api/call/compare/{event}", timeout=200) as stream:
            return stream.read().decode()

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)

    def assert_released(self, left: float, steps: int = 2) -> None:
        """Assert that the model made at most so many steps after the client had left, and serves the next one."""
        self.wait(lambda: not health(self.address)[1]["running"])
        late = [round(began - left, 2) for began in self.steps() if began > left]
        assert len(late) <= steps, late
        assert run_lines(self.folder)[-1]["outcome"] == "left"
        made = len(self.steps())
        assert "event: complete" in call(self.address, self.inputs(["vanilla"]))
        assert len(self.steps()) > made


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Iterator[Slow]:
    folder = tmp_path_factory.mktemp("slow")
    program = ("-c", PROGRAM, str(folder / "steps"))
    (folder / "steps").touch()
    with serving(folder, program, **LIMITS, SHARP_REQUESTS_PER_MINUTE="0") as address:
        server = Slow(address, folder, write_clip(folder / "clip.mp4"))
        call(address, server.inputs(["vanilla"]))  # loads the model
        yield server


def begun(slow: Slow, before: int) -> None:
    """Wait until a run that began after so many steps has made a few of its own."""
    slow.wait(lambda: len(slow.steps()) >= before + 3)


def test_a_closed_stream(slow):
    before, event = len(slow.steps()), slow.post(slow.inputs(["vanilla", "fastv", "sharp"]))
    connection = http.client.HTTPConnection(urlsplit(slow.address).netloc, timeout=60)
    connection.request("GET", f"/gradio_api/call/compare/{event}")
    stream = connection.getresponse()
    stream.read(50)
    begun(slow, before)
    stream.close()
    connection.close()
    slow.assert_released(time.time())


def test_a_killed_client(slow):
    before = len(slow.steps())
    client = subprocess.Popen([sys.executable, "-c", CLIENT, slow.address, str(slow.clip)], cwd=ROOT)
    begun(slow, before)
    client.kill()
    client.wait()
    slow.assert_released(time.time())


@pytest.mark.browser
def test_a_closed_tab(slow, browser):
    page = browser.new_page()
    page.goto(slow.address)
    give_file(page, slow.clip)
    page.locator("#question textarea").fill("What?")
    before = len(slow.steps())
    page.wait_for_function("document.querySelector('#clip video')")
    page.locator("#run").click()
    begun(slow, before)
    page.close()
    slow.assert_released(time.time())


def test_a_client_that_never_listens(slow):
    """Nothing of a connection tells that nobody is there: the run is ended when its messages stay unread."""
    before = len(slow.steps())
    event = slow.post(slow.inputs(["vanilla", "fastv", "sharp"]))
    begun(slow, before)
    slow.assert_released(slow.steps()[before] + LISTEN_S)
    answer = json.loads(slow.listen(event).strip().split("data: ")[-1])[0]
    assert answer["results"][-1]["status"] == "stopped", "what there is can still be read"
    assert len(answer["results"]) < 3


def test_who_asks_first_is_served_first(slow):
    """Requests of three clients, in the order they came, told apart by their retentions."""
    asked = [round(0.1 + 0.05 * number, 2) for number in range(6)]
    done = len(run_lines(slow.folder))
    with ThreadPoolExecutor(len(asked)) as pool:
        answers: list[Future] = []
        for number, retention in enumerate(asked):
            event = slow.post(slow.inputs(["vanilla"], retention), X_Forwarded_For=f"10.0.0.{number % 3}")
            answers.append(pool.submit(slow.listen, event))
        assert all("event: complete" in answer.result() for answer in answers)
    served = [line["asked"]["retention"] for line in run_lines(slow.folder)[done:]]
    assert served == asked


def test_one_clients_many_requests_leave_room_for_another(tmp_path):
    """Who asks too often is refused beyond the own budget; who comes then waits for what was let in, and no longer."""
    (tmp_path / "steps").touch()
    program = ("-c", PROGRAM, str(tmp_path / "steps"))
    with serving(tmp_path, program, **LIMITS, SHARP_PROXIES="1", SHARP_REQUESTS_PER_MINUTE="4") as address:
        server = Slow(address, tmp_path, write_clip(tmp_path / "clip.mp4"))
        inputs = server.inputs(["vanilla"])  # uses up none of the two budgets below
        let_in, refused = [], []
        for number in range(12):
            try:
                inputs[3] = round(0.1 + 0.01 * number, 2)
                let_in.append((inputs[3], server.post(inputs, X_Forwarded_For="10.0.0.1")))
            except urllib.error.HTTPError as error:
                refused.append(error.code)
        assert [retention for retention, _ in let_in] == [0.1, 0.11, 0.12, 0.13]
        assert set(refused) == {429}
        inputs[3] = 0.9
        let_in.append((0.9, server.post(inputs, X_Forwarded_For="10.0.0.2")))
        with ThreadPoolExecutor() as pool:
            assert all("event: complete" in text for text in pool.map(server.listen, [event for _, event in let_in]))
        served = [line["asked"]["retention"] for line in run_lines(tmp_path)]
        assert served == [0.1, 0.11, 0.12, 0.13, 0.9]
