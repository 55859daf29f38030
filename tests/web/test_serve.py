"""How the server ends: told to, with nothing of its visitors left, and when its port is taken, with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.page.test_api import call, file_data, upload
from tests.serving import ROOT, serving
from tests.video.clips import write_clip


def test_sigterm_ends_runs_and_removes_uploads(tmp_path: Path, tiny_llava_folder: Path) -> None:
    started: list[subprocess.Popen] = []
    with serving(tmp_path, started=started, SHARP_MODEL=str(tiny_llava_folder)) as address:
        path = upload(address, write_clip(tmp_path / "clip.mp4", frames=8))
        call(address, [file_data(path), "What?", ["vanilla"], 0.5, "tokens", 4, tiny_llava_folder.name])
        assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
        (process,) = started
        decoders = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in decoders):
        assert time.monotonic() < deadline, "a decoder that waited is left behind"
        time.sleep(0.05)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def children(pid: int) -> list[int]:
    """The decoders that wait; a server keeps one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if found := (task / "children").read_text().split():
                return [int(one) for one in found]
        time.sleep(0.05)
    raise AssertionError("no decoder waits")


def test_a_port_in_use_is_one_line_with_exit_code_2(server: str) -> None:
    port = server.rpartition(":")[2]
    environment = {**os.environ, "SHARP_PORT": port, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: cannot listen on port {port}")
    assert "SHARP_PORT" in done.stderr
    assert "Traceback" not in done.stderr
