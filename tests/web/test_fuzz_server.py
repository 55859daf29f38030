"""Damaged files and files made to hurt, sent to the running app as visitors send them: each is answered, and soon.

`tools/fuzz_video.py` sends the same and writes the table of docs/security.md. Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sharp_demo import strings
from tests.page.test_api import call, file_data, upload
from tests.serving import serving
from tests.video.clips import write_clip
from tests.video.test_fuzz import AIMED, HOSTILE, SOURCES, copies, write_source
from tests.video.test_refusals import assert_fit_for_users
from tests.web.watch import watching

CLIENTS = 3
ANSWER_S = 35
GROWTH_MB = 50
CHILD_MB = 2000
WARM_ROUNDS = 8  # what a server comes to hold in its first minutes is not what the files made it hold


@dataclass(frozen=True)
class Sent:
    """One file that was sent and how it was answered: with a result (`says` is empty) or with a message."""

    kind: str
    size: int
    says: str
    seconds: float


@dataclass
class Server:
    """A running app and what can be seen of it from outside."""

    address: str
    process: subprocess.Popen
    folder: Path
    health_s: list[float] = field(default_factory=list)

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)

    def child_peaks(self) -> list[float]:
        """Peak memory in MB of every decoding child so far."""
        return [float(line) for line in (self.folder / "peaks").read_text().split()]

    def send(self, kind: str, path: Path) -> Sent:
        """Upload a file, ask about it and check the answer; what is measured begins with the upload."""
        start = time.monotonic()
        inputs = [file_data(upload(self.address, path)), "What is it?", ["vanilla"], 1, "tokens", 4]
        last = call(self.address, [*inputs, "tiny-llava-onevision"]).strip().split("event: ")[-1]
        seconds = time.monotonic() - start
        event, data = last.split("\ndata: ", 1)
        says = ""
        if event == "complete":
            answer = json.loads(data)[0]
            assert answer["failed"] == []
            assert [result["method"] for result in answer["results"]] == ["vanilla"]
        else:
            assert event == "error"
            says = json.loads(data)["error"]
            assert_fit_for_users(says)
            assert not says.startswith(strings.INTERNAL.partition(";")[0]), says
        assert seconds < ANSWER_S
        return Sent(kind, path.stat().st_size, says, seconds)

    def send_all(self, files: Iterable[tuple[str, Path]], clients: int = CLIENTS) -> list[Sent]:
        """Send files by so many clients at once, in order."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda file: self.send(*file), files))

    def assert_whole(self, before_mb: float) -> None:
        """Assert that the app outlived what it was sent, and what it holds and its children took."""
        assert self.process.poll() is None
        assert self.resident_mb() - before_mb < GROWTH_MB
        assert max(self.child_peaks()) < CHILD_MB
        assert self.health_s
        assert np.quantile(self.health_s, 0.99) < 1.0


@contextmanager
def watched_app(folder: Path, rounds: int = 1) -> Iterator[Server]:
    """Run the app and ask for its health all the while; it has answered about a clip of every codec `rounds` times."""
    started: list[subprocess.Popen] = []
    program = ("-m", "tests.web.watched_app", str(folder / "peaks"))
    with serving(folder, program, started, SHARP_REQUESTS_PER_MINUTE="0") as address, watching(address) as took:
        server = Server(address, started[0], folder, took)
        warm = folder / "warm"
        warm.mkdir()
        whole = [(codec, write_clip(warm / f"{codec}-{name}", codec, frames=24)) for codec, name in SOURCES.items()]
        assert [sent.says for sent in server.send_all(rounds * whole)] == [""] * rounds * len(whole)
        yield server


def damaged(kind: str, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the damaged copies of test_fuzz.py, each in a file of its own; `kind` is of `SOURCES` or `AIMED`."""
    source = write_source(kind, folder)
    for number, data in enumerate(copies(kind, source.read_bytes(), count)):
        path = folder / f"{kind}-{number}" / source.name
        path.parent.mkdir()
        path.write_bytes(data)
        yield kind, path


def hostile(folder: Path, names: Iterable[str] = HOSTILE) -> Iterator[tuple[str, Path]]:
    """Yield the files made to hurt of test_fuzz.py."""
    for number, what in enumerate(names):
        name, write, _ = HOSTILE[what]
        path = folder / f"hostile-{number}" / name
        path.parent.mkdir()
        yield what, write(path)


def check_hostile(sent: Iterable[Sent]) -> None:
    """Assert that each was answered like the decoder judges it: with a result, or with a message."""
    for one in sent:
        assert (one.says == "") is (HOSTILE[one.kind][2] == "decoded"), one


QUICK = ("HLS playlist named .mp4", "100 video tracks", "no frame at all", "AV1")


@pytest.mark.timeout(180)
def test_the_running_app_outlives_a_sample(tmp_path):
    with watched_app(tmp_path) as server:
        before = server.resident_mb()
        kinds = {**dict.fromkeys(SOURCES, 4), **dict.fromkeys(AIMED, 2)}
        sent = [one for kind, count in kinds.items() for one in server.send_all(damaged(kind, count, tmp_path))]
        check_hostile(server.send_all(hostile(tmp_path, QUICK)))
        server.assert_whole(before)
    assert len(sent) == sum(kinds.values())
    assert {bool(one.says) for one in sent} == {True, False}, "some are answered, some refused"


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_running_app_outlives_two_hundred_of_each_kind(tmp_path):
    with watched_app(tmp_path, rounds=WARM_ROUNDS) as server:
        before = server.resident_mb()
        sent = [one for kind in (*SOURCES, *AIMED) for one in server.send_all(damaged(kind, 200, tmp_path))]
        check_hostile(server.send_all(hostile(tmp_path)))
        server.assert_whole(before)
    assert len(sent) == 200 * len((*SOURCES, *AIMED))
