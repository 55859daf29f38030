"""Faults as a visitor, and a supervisor, sees them."""

from __future__ import annotations

import errno
import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import pytest
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.engine import Engine, stages
from sharp_demo.engine.condition import DEVICE_LOST
from sharp_demo.errors import EXIT_DEVICE_LOST
from sharp_demo.page import runs as runs_module
from sharp_demo.page.api import Api
from sharp_demo.page.runs import Controls, Runs
from sharp_demo.page.tabs.compare import Compare
from sharp_demo.records import MethodSpec, Request
from sharp_demo.settings import Settings
from tests.page.test_api import call, file_data, upload
from tests.serving import serving


@pytest.fixture
def compare(cpu_settings: Settings, tiny_llava_folder: Path, clip: Path, tmp_path: Path, monkeypatch) -> Compare:
    """The comparison on a tiny model; it asks about the clip, whatever its inputs are."""
    settings = cpu_settings.model_copy(update={"model": str(tiny_llava_folder)})
    runs = Runs(Engine(settings), settings, tmp_path / "cache", clip.parent)
    with gr.Blocks():
        compare = Compare(runs, Controls.create("Run"))
    request = Request(
        str(clip), "What moves?", (MethodSpec("vanilla"), MethodSpec("sharp")), frames=4, max_new_tokens=3
    )
    monkeypatch.setattr(runs.inputs, "request", lambda values: request)
    return compare


def run(compare: Compare) -> tuple[dict, str]:
    """Run to the end; return the board as it was shown last, and what was raised."""
    shown, said = {}, ""
    try:
        for updates in compare.runs.run(compare, {}, "page"):
            shown = updates[compare.status]
    except Error as error:
        said = error.message
    return shown, said


def assert_whole(compare: Compare) -> None:
    shown, said = run(compare)
    assert (shown["phase"], said) == ("done", "")
    assert [column["status"] for column in shown["columns"]] == ["done", "done"]


def test_a_fault_of_ours_names_the_run_and_not_the_fault(compare, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("a secret in /etc")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "encode_video", fail)
        shown, said = run(compare)
    assert shown["phase"] == "error"
    assert shown["message"] == said
    assert "secret" not in said
    number = said.split("(run ")[1][:8]
    assert said == strings.internal(number)
    assert number in caplog.text
    assert "a secret in /etc" in caplog.text, "the log has the details"
    assert_whole(compare)


def test_a_disk_that_fills_up_during_a_run_is_said(compare, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "save_bytes_to_cache", full)
        shown, said = run(compare)
    assert (shown["phase"], said) == ("error", strings.NO_DISK)
    assert_whole(compare)


def test_a_run_that_takes_too_long_is_stopped_and_says_so(compare, monkeypatch, caplog):
    with monkeypatch.context() as patch, caplog.at_level("INFO", "sharp_demo.logs"):
        patch.setattr(compare.runs, "settings", compare.runs.settings.model_copy(update={"run_timeout_s": 1e-9}))
        shown, said = run(compare)
    assert (shown["phase"], shown["message"], said) == ("stopped", strings.timed_out(1e-9), "")
    assert 'outcome="timed out"' in caplog.text
    assert_whole(compare)


def test_the_api_tells_as_much_and_no_more(compare, clip, monkeypatch):
    inputs = (str(clip), "What moves?", ["vanilla"], 0.5, "tokens", 4, None)

    def fail(*args, **kwargs):
        raise RuntimeError("a secret in /etc")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "encode_video", fail)
        with pytest.raises(Error) as failed:
            list(Api(compare.runs).compare(*inputs))
    assert failed.value.message.startswith("Something broke on our side")
    assert "secret" not in failed.value.message
    assert len(list(Api(compare.runs).compare(*inputs))[-1]["results"]) == 1


def health(server: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"{server}/healthz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.timeout(180)
def test_a_lost_device_turns_health_red_and_ends_the_process(tmp_path, clip):
    lost = "import sharp_demo.engine.generation as generation, sharp_demo.engine.runs as runs\n"
    lost += "def fail(*args): raise RuntimeError('CUDA error: device-side assert triggered')\n"
    lost += "generation.prefill, runs.warm_up = fail, lambda backbone: None\nimport app\napp.main()"
    started: list = []
    with serving(tmp_path, ("-c", lost), started) as server:
        assert health(server)[0] == 200
        path = upload(server, clip)
        answer = call(
            server, [file_data(path), "What?", ["vanilla", "sharp"], 0.5, "tokens", 4, "tiny-llava-onevision"]
        )
        data = json.loads(answer.strip().split("data: ")[-1])[0]
        assert [(one["kind"], one["message"]) for one in data["failed"]] == [("device_lost", DEVICE_LOST)] * 2
        status, report = health(server)
        assert (status, report["status"], report["problem"]) == (503, "failed", DEVICE_LOST)
        assert started[0].wait(30) == EXIT_DEVICE_LOST


@pytest.mark.timeout(180)
def test_a_client_that_hangs_up_frees_the_model_within_a_token(tmp_path, clip):
    """Without that, the run would go on for 64 tokens of three methods, 0.1 s each."""
    slow = "import time, sharp_demo.engine.generation as e; step = e.decode_step; e.end_tokens = lambda *a: set(); "
    slow += "e.decode_step = lambda *a: time.sleep(0.1) or step(*a); import app; app.main()"
    with serving(tmp_path, ("-c", slow), SHARP_LOG="json") as server:
        path = upload(server, clip)
        body = json.dumps(
            {
                "data": [
                    file_data(path),
                    "What?",
                    ["vanilla", "fastv", "sharp"],
                    0.5,
                    "tokens",
                    4,
                    "tiny-llava-onevision",
                ]
            }
        )
        request = urllib.request.Request(
            f"{server}/gradio_api/call/compare", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
        connection.request("GET", f"/gradio_api/call/compare/{event}")
        stream = connection.getresponse()
        while not health(server)[1]["running"]:
            time.sleep(0.05)
        stream.read(200)
        stream.close()
        connection.close()
        left = time.monotonic()
        while health(server)[1]["running"]:
            time.sleep(0.05)
        assert time.monotonic() - left < 5
        last = run_lines(tmp_path)[-1]
        assert last["outcome"] == "left"
        assert len(last["methods"]) < 3
        done = call(server, [file_data(path), "What?", ["sharp"], 0.5, "tokens", 2, "tiny-llava-onevision"])
        assert "event: complete" in done
        assert run_lines(tmp_path)[-1]["outcome"] == "done"


def run_lines(folder: Path) -> list[dict]:
    """The lines of ended runs in the server's log, when the last one is there."""
    time.sleep(0.5)
    lines = [json.loads(line) for line in (folder / "app.log").read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if "outcome" in line]
