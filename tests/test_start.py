"""Starting: a command imports only what it needs, and a server shows its page before it imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from sharp_demo.engine import background
from sharp_demo.engine.background import BackgroundEngine, surely_no_gpu
from sharp_demo.engine.condition import NOT_BUILT
from sharp_demo.errors import DeviceLostError
from sharp_demo.records import Done, Event, MethodSpec, Progress, Request
from sharp_demo.settings import Settings
from tests.video.clips import write_clip

ROOT = Path(__file__).resolve().parent.parent

MODEL = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")
PAGE = ("gradio", "plotly", "pandas", "fastapi", "starlette", "uvicorn")
LIGHT = (*MODEL, *PAGE, "pydantic_settings", "jinja2", "PIL", "av", "cv2", "decord")


def imported(code: str, names: tuple[str, ...], *arguments: str) -> set[str]:
    """Return which of `names` a fresh Python imports while it runs `code`, which must end well."""
    program = (
        f"import sys, json\n{code}\n"
        f"sys.stdout.flush(); print(json.dumps(sorted(set({names!r}) & sys.modules.keys())), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


COMMAND = "from sharp_demo.cli import main\nassert main(sys.argv[1:]) == 0"


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "compare --help",
        "bench prefill --help",
        "evaluate --help",
        "methods",
        "flops",
        "flops --method holitom --match flops",
        "flops --reference",
    ],
)
def test_what_needs_no_model_imports_none(arguments: str) -> None:
    assert imported(COMMAND, LIGHT, *arguments.split()) == set()


def test_compare_imports_nothing_of_the_page(tmp_path: Path, tiny_llava_folder: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=8)
    arguments = ["compare", str(clip), "What?", "--model", str(tiny_llava_folder), "--frames", "4"]
    decoders = ("av", "cv2", "decord")  # only the child has them
    assert imported(COMMAND, (*PAGE, *decoders), *arguments, "--max-new-tokens", "2") == set()


def test_the_page_is_built_before_torch_is_imported() -> None:
    code = (
        "import app\n"
        "from sharp_demo.settings import read_settings\n"
        "from sharp_demo.engine.background import BackgroundEngine\n"
        "from sharp_demo.page.build import build_ui, launch_options\n"
        "from sharp_demo.web.serve import serve\n"
        "settings = read_settings().model_copy(update={'device': 'cpu'})\n"
        "engine = BackgroundEngine(settings)\n"
        "launch_options(build_ui(engine, settings), engine, settings)"
    )
    assert imported(code, ("torch", "transformers", "gradio")) == {"gradio"}


@pytest.fixture
def request_for(tmp_path: Path, tiny_llava_folder: Path) -> Request:
    clip = write_clip(tmp_path / "clip.mp4", frames=8)
    return Request(
        str(clip), "What?", (MethodSpec("vanilla"),), model=str(tiny_llava_folder), frames=4, max_new_tokens=2
    )


@pytest.fixture
def settings(cpu_settings: Settings, tiny_llava_folder: Path) -> Settings:
    return cpu_settings.model_copy(update={"model": str(tiny_llava_folder)})


def test_a_run_that_comes_before_the_engine_waits_for_it(settings: Settings, request_for: Request) -> None:
    engine = BackgroundEngine(settings)
    events = engine.stream(request_for, "early")
    assert next(events) == Progress("load", f"Loading {request_for.model}")
    assert engine.probe(request_for.video).frame_count == 8, "videos can be looked at before"
    engine.get_ready()
    last = list(events)[-1]
    assert isinstance(last, Done)
    assert [result.method for result in last.results] == ["vanilla"]
    assert engine.condition.runs == 1
    assert not engine.stop("early")


def test_the_default_model_is_loaded_before_anybody_asks(settings: Settings) -> None:
    engine = BackgroundEngine(settings)
    engine.get_ready()
    deadline = time.monotonic() + 120
    while engine.condition.state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert engine.condition.model == settings.model_name


def test_a_default_model_that_must_be_downloaded_is_left_to_whoever_asks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharp_demo.engine import runs

    monkeypatch.setattr(runs, "load", lambda *_: pytest.fail("loaded"))
    engine = runs.Engine(settings.model_copy(update={"model": "nobody/nothing-at-all"}))
    engine.load_default()
    assert engine.condition.state == "not loaded"


@pytest.mark.parametrize("all_runs", [False, True])
def test_a_run_that_waits_for_the_engine_can_be_stopped(
    settings: Settings, request_for: Request, *, all_runs: bool
) -> None:
    engine = BackgroundEngine(settings)  # which nobody builds
    events = engine.stream(request_for, "early")
    next(events)
    if all_runs:
        engine.stop_all()
    else:
        assert engine.stop("early")
        assert not engine.stop("another")
    assert list(events) == [Done((), ())]


def test_an_engine_that_cannot_be_built_fails_its_runs_and_says_so(
    settings: Settings, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ImportError("no torch")

    monkeypatch.setattr("sharp_demo.engine.runs.Engine", broken)
    engine = BackgroundEngine(settings)
    engine._build()
    assert engine.condition.lost == NOT_BUILT, "what health goes by"
    with pytest.raises(DeviceLostError, match="does not start"):
        list[Event](engine.stream(request_for))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A Linux with a torch for GPUs; the file stands for a driver's device."""
    device = tmp_path / "nvidiactl"
    monkeypatch.setattr(background, "version", lambda _: "2.13.0")
    monkeypatch.setattr(background.sys, "platform", "linux")
    monkeypatch.setattr(background, "GPU_DEVICES", (str(device),))
    return device


def test_a_gpu_is_ruled_out_only_where_torch_could_see_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert surely_no_gpu()
    machine.touch()
    assert not surely_no_gpu()
    monkeypatch.setattr(background, "version", lambda _: "2.13.0+cpu")
    assert surely_no_gpu()
    monkeypatch.setattr(background, "version", lambda _: "2.13.0+cu126")
    monkeypatch.setattr(background.sys, "platform", "win32")
    assert not surely_no_gpu()


def test_without_a_gpu_the_default_is_the_engines_own(cpu_settings: Settings) -> None:
    from sharp_demo.backbones.load import default_model

    for settings in (Settings(device="cpu"), Settings(device="auto"), Settings(model="some/model")):
        assert BackgroundEngine(settings).default_model == default_model(settings)
