"""Fixtures for the tests of page and web: a real server (python app.py, embedded checkpoint), real clips, Chromium."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ENDLESS = 20_000  # tokens of an answer: minutes of an `endless` model, on any machine
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def endless(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint that never ends an answer: what would end it is a placeholder, which none contains."""
    shutil.copytree(checkpoint, folder)
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    video = config["video_token_index"]
    words = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    for name, end in (
        ("generation_config.json", {"eos_token_id": video}),
        ("tokenizer_config.json", {"eos_token": words[video]}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **end}))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(
    folder: Path, program: tuple[str, ...] = ("app.py",), started: list | None = None, **variables: str
) -> Iterator[str]:
    """Run app.py with these SHARP_* settings on top of the usual ones; yield its base address.

    `program` are other arguments for Python; the process is appended to `started`.
    """
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "GRADIO_"))},
        "SHARP_PORT": str(port),
        "SHARP_THREADS": "1",
        "SHARP_MAX_QUESTION_CHARS": "200",
        "SHARP_TIMING_S": "0.2",
        "GRADIO_TEMP_DIR": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    log = folder / "app.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, *program], cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        if started is not None:
            started.append(process)
        try:
            wait_for(f"http://127.0.0.1:{port}/", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    """Base address of a running app."""
    with serving(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="session")
def talkative_server(tmp_path_factory, tiny_llava_folder: Path) -> Iterator[str]:
    """An app whose model never ends an answer, so that a run lasts as long as a test needs."""
    folder = tmp_path_factory.mktemp("talkative")
    model = endless(tiny_llava_folder, folder / "model")
    with serving(folder, SHARP_MODEL=str(model), SHARP_MAX_NEW_TOKENS=str(ENDLESS)) as address:
        yield address


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180  # next to other work, importing torch takes minutes
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"app.py did not come up:\n{log.read_text()}")


def write_clip(path: Path, pictures: list[np.ndarray], rate: int) -> Path:
    """Write uint8 pictures [height, width, 3] as H.264."""
    import av  # GPU tests, which load this module too, run where no decoder is installed

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def checkerboard(tmp_path_factory) -> Path:
    """A still 7 x 7 board, one cell per visual token of the embedded models; cell (0, 0) is white."""
    path = tmp_path_factory.mktemp("board") / "board.mp4"
    white = np.indices((7, 7)).sum(0) % 2 == 0
    picture = np.kron(np.where(white, 235, 20), np.ones((64, 64)))[..., None].repeat(3, -1).astype(np.uint8)
    return write_clip(path, [picture] * 16, rate=8)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Two seconds of H.264, 320 x 180: a red square moves right, then the background changes."""
    path = tmp_path_factory.mktemp("clip") / "moving.mp4"
    pictures = []
    for i in range(24):
        picture = np.full((180, 320, 3), (40, 60, 90) if i < 12 else (190, 170, 120), np.uint8)
        picture[70:120, 10 + i * 10 : 60 + i * 10] = (220, 40, 40)
        pictures.append(picture)
    return write_clip(path, pictures, rate=12)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of an installed Chromium."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    assert found, f"The browser tests need one of {', '.join(CHROMIUM)} on the PATH; on Debian: apt install chromium"
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of page and web, so that make test can keep them in one process."""
    for item in items:
        if {ROOT / "tests" / "page", ROOT / "tests" / "web"} & set(item.path.parents):
            item.add_marker(pytest.mark.page)
