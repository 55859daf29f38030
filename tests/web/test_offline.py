"""Without any network but loopback the app starts and completes a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page.test_api import call, file_data, upload
from tests.serving import serving

ROOT = Path(__file__).resolve().parents[2]
# A network namespace of its own; as root of a user namespace where the tests do not run as root.
UNSHARE = ["unshare", "--net", *([] if hasattr(os, "getuid") and os.getuid() == 0 else ["--map-root-user"])]
# Where no namespace can be had: every attempt to reach another machine fails at once, in Python.
GUARD = """
import socket, sys
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("REACHED OUT", address, file=sys.stderr, flush=True)
        raise OSError(101, "Network is unreachable")
    return real(self, address)
socket.socket.connect = connect
import app
app.main()
"""


def namespaces_work() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_run_in_the_browser_with_nothing_but_loopback(tmp_path, chromium):
    if not namespaces_work():
        pytest.skip("this system lets nobody make a network namespace; the test with the guarded sockets stands in")
    script = [sys.executable, "tests/web/offline_run.py", str(tmp_path), chromium]
    done = subprocess.run([*UNSHARE, *script], cwd=ROOT, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(["done"] * 4)


@pytest.mark.timeout(180)
def test_the_server_asks_nobody_outside(tmp_path, clip):
    """From import to answer, with HF_HUB_OFFLINE unset: not one attempt to connect to another machine."""
    with serving(tmp_path, ("-c", GUARD), HF_HUB_OFFLINE="0") as server:
        path = upload(server, clip)
        stream = call(
            server, [file_data(path), "What?", ["vanilla", "sharp"], 0.5, "tokens", 4, "tiny-llava-onevision"]
        )
        assert "event: complete" in stream
    assert "REACHED OUT" not in (tmp_path / "app.log").read_text()
