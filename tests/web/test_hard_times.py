"""The running app where the system is short of something: temporary disk, home, open files, the model's own folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sharp_demo import strings
from sharp_demo.logs import NO_FILES
from tests.page.test_api import call, file_data, upload
from tests.page.test_faults import health
from tests.serving import serving
from tests.video.clips import write_clip

pytestmark = pytest.mark.timeout(240)
QUIET = {"SHARP_REQUESTS_PER_MINUTE": "0", "SHARP_MIN_FREE_MB": "0"}


def ask(server: str, video: str, model: str = "tiny-llava-onevision") -> tuple[str, dict]:
    """Ask for a comparison; return how its stream ended, and what it said."""
    told = call(server, [file_data(video), "What?", ["vanilla", "sharp"], 0.5, "tokens", 4, model])
    event, data = told.strip().split("event: ")[-1].split("\ndata: ", 1)
    said = json.loads(data)
    return event, said[0] if isinstance(said, list) else said


def assert_answers(server: str, video: str) -> None:
    event, said = ask(server, video)
    assert (event, len(said["results"]), said["failed"]) == ("complete", 2, [])
    assert health(server)[1]["status"] == "ok"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs, where this user may mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full(folder: Path) -> Path:
    """Write a file until the disk is full, and return it."""
    fill = folder / "fill"
    with fill.open("wb", buffering=0) as sink, suppress(OSError):
        while sink.write(bytes(4096)):
            pass
    return fill


def assert_quiet(folder: Path) -> None:
    log = (folder / "app.log").read_text()
    assert "Traceback" not in log, log[-3000:]


def test_a_full_temporary_disk_is_said_and_survived(tmp_path):
    """Uploads, decoding and the page's files share a small disk, which fills up and is emptied again."""
    clip = write_clip(tmp_path / "clip.mp4", frames=8)
    with mounted(tmp_path / "small", "size=2m") as small:
        settings = {"TMPDIR": str(small), "GRADIO_TEMP_DIR": str(small / "cache")}
        with serving(tmp_path, **QUIET, **settings) as server:
            video = upload(server, clip)
            assert_answers(server, video)
            fill = full(small)
            with pytest.raises(urllib.error.HTTPError) as refused:
                upload(server, write_clip(tmp_path / "other.mp4", frames=20))
            assert (refused.value.code, refused.value.read().decode()) == (507, strings.NO_ROOM)
            event, said = ask(server, video)
            assert event == "error" or len(said["results"]) == 2, "what is still in memory may be answered"
            event, said = ask(server, "clips/" + next(Path("assets/clips").glob("*.mp4")).name)
            assert event == "error"
            assert "cannot be decoded now" in said["error"]
            fill.unlink()
            assert_answers(server, upload(server, write_clip(tmp_path / "third.mp4", frames=12)))
            assert_answers(server, video)
        assert_quiet(tmp_path)


@dataclass(frozen=True)
class Poor:
    """A running app that may open 64 files and write nothing at home, whose model is a folder that can be deleted."""

    address: str
    model: Path
    folder: Path
    video: str


@pytest.fixture(scope="module")
def poor(tmp_path_factory, tiny_llava_folder: Path) -> Iterator[Poor]:
    folder = tmp_path_factory.mktemp("poor")
    model = Path(shutil.copytree(tiny_llava_folder, folder / "mine"))
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); import app; app.main()"
    with mounted(folder / "home", "ro,size=1m") as home:
        settings = {"HOME": str(home), "HF_HOME": "", "XDG_CACHE_HOME": "", "SHARP_MODEL": str(model)}
        with serving(folder, ("-c", limited), **QUIET, **settings) as address:
            yield Poor(address, model, folder, upload(address, write_clip(folder / "clip.mp4", frames=8)))


def test_a_run_needs_neither_a_home_nor_more_than_64_files(poor: Poor):
    assert ask(poor.address, poor.video, "mine")[0] == "complete"
    assert_quiet(poor.folder)


def test_running_out_of_files_is_survived(poor: Poor):
    """Connections that only stand there use up all descriptors; when they go, everybody is served again."""
    address = urlsplit(poor.address)
    with ExitStack() as idle:
        for _ in range(80):
            idle.enter_context(socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5))
    other = upload(poor.address, write_clip(poor.folder / "other.mp4", frames=12))
    assert ask(poor.address, other, "mine")[0] == "complete"
    assert (poor.folder / "app.log").read_text().count(NO_FILES) == 1
    assert_quiet(poor.folder)


def test_a_model_whose_folder_is_deleted_goes_on_until_another_takes_its_place(poor: Poor):
    assert ask(poor.address, poor.video, "mine")[0] == "complete"
    shutil.rmtree(poor.model)
    assert ask(poor.address, poor.video, "mine")[0] == "complete"
    assert_answers(poor.address, poor.video)
    event, said = ask(poor.address, poor.video, "mine")
    assert event == "error"
    assert "mine" in said["error"]
    assert str(poor.folder) not in said["error"]
    assert_answers(poor.address, poor.video)
    assert_quiet(poor.folder)
