"""Many clients at once: no lost job, no crossed result, a full queue says so, and the server stays awake."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.serving import serving
from tests.video.clips import write_clip
from tests.web.watch import watching

pytestmark = pytest.mark.timeout(900)
EXACT = ("fastv", "sharp", "feather", "divprune", "random", "uniform")  # keep what their retention says, in one step
PAIRS = list(itertools.permutations(EXACT, 2))


def own_clip(folder: Path, number: int) -> Path:
    """A clip like no other client's."""
    rng = np.random.default_rng(number)
    pictures = [rng.integers(0, 255, (96, 128, 3)).astype(np.uint8) for _ in range(4)]
    return write_clip(folder / f"client-{number}.mp4", "h264", pictures, fps=2)


def retention_of(number: int) -> float:
    return round(0.1 + 0.02 * number, 2)


def methods_of(number: int) -> list[str]:
    """A pair like no other client's."""
    return list(PAIRS[number])


def ask(client: Client, clip: Path, number: int) -> dict:
    return client.predict(
        video=handle_file(str(clip)),
        question=f"What is on clip {number}?",
        methods=methods_of(number),
        retention=retention_of(number),
        match="tokens",
        frames=4,
        model="tiny-llava-onevision",
        api_name="/compare",
    )


@pytest.fixture(scope="module")
def wide_server(tmp_path_factory) -> Iterator[str]:
    """A server whose queue holds everybody of the largest test."""
    folder = tmp_path_factory.mktemp("wide")
    with serving(folder, SHARP_QUEUE_SIZE="40", SHARP_REQUESTS_PER_MINUTE="0") as address:
        yield address


@pytest.mark.parametrize("count", [8, pytest.param(24, marks=pytest.mark.full)])
def test_everybody_gets_the_answer_to_the_own_question(count, wide_server, tmp_path):
    clips = [own_clip(tmp_path, number) for number in range(count)]
    clients = [
        Client(wide_server, verbose=False, download_files=tmp_path / f"downloads-{number}") for number in range(count)
    ]
    start = threading.Barrier(count)

    def job(number: int) -> dict:
        start.wait()
        return ask(clients[number], clips[number], number)

    with watching(wide_server) as took, ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(job, range(count)))
    assert len(took) > 5
    assert np.quantile(took, 0.99) < 1.0, f"/healthz: p99 {np.quantile(took, 0.99):.2f} s of {len(took)}"

    for number, answer in enumerate(answers):
        assert answer["request"]["video"] == clips[number].name
        assert answer["request"]["question"] == f"What is on clip {number}?"
        assert answer["failed"] == []
        assert [result["method"] for result in answer["results"]] == methods_of(number)
        for result in answer["results"]:
            kept = sum(map(len, result["kept"]))
            assert kept == result["tokens"]["kept"] == round(retention_of(number) * result["tokens"]["visual"])
    for number in range(count):
        alone = ask(clients[number], clips[number], number)
        for result, again in zip(answers[number]["results"], alone["results"], strict=True):
            for field in ("method", "answer", "kept", "scores"):
                assert result[field] == again[field], (number, field)
    seen = {str([(result["scores"], result["kept"]) for result in answer["results"]]) for answer in answers}
    assert len(seen) == count, "every clip has scores and tokens of its own, so a crossed result would show"


def test_who_finds_the_queue_full_is_told_so_and_the_others_are_served(tmp_path):
    slow = "import time, sharp_demo.engine.generation as e; step = e.decode_step; "
    slow += "e.decode_step = lambda *a: time.sleep(0.1) or step(*a); import app; app.main()"
    clip = own_clip(tmp_path, 0)
    with serving(tmp_path, ("-c", slow), SHARP_QUEUE_SIZE="2") as server:
        clients = [Client(server, verbose=False, download_files=tmp_path / "downloads") for _ in range(8)]
        ask(clients[0], clip, 0)  # loads the model
        start = threading.Barrier(8)

        def job(client: Client) -> str:
            start.wait()
            try:
                return "done" if len(ask(client, clip, 0)["results"]) == 2 else "incomplete"
            except AppError as error:
                return str(error)
            except Exception as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(job, clients))
        full = [end for end in ends if "ueue is full" in end]
        assert sorted(set(ends) - {"done"}) == sorted(set(full)), ends
        assert len(full) >= 1
        assert ends.count("done") == 8 - len(full) >= 3, "one runs, two wait"
        assert len(ask(clients[0], clip, 0)["results"]) == 2
