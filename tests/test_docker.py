"""The Dockerfile without a Docker engine: every source it copies, every command it runs, every address it asks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from tests.serving import free_port

ROOT = Path(__file__).resolve().parent.parent
INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Step:
    """One instruction; `stage` counts the FROM lines so far, from 0."""

    stage: int
    name: str
    text: str


def steps() -> list[Step]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], -1
    for text in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if text.strip():
            name, _, rest = text.strip().partition(" ")
            stage += name == "FROM"
            found.append(Step(stage, name, rest.strip()))
    return found


def copies(stage: int) -> list[tuple[list[str], str]]:
    """(sources, target) of every COPY from the build context."""
    words = [shlex.split(step.text) for step in steps() if step.name == "COPY" and step.stage == stage]
    plain = [[word for word in line if not word.startswith("--")] for line in words if "--from=build" not in line]
    return [(line[:-1], line[-1]) for line in plain]


def environment() -> dict[str, str]:
    pairs = [word.split("=", 1) for step in steps() if step.name == "ENV" for word in shlex.split(step.text)]
    return dict(pairs)


def reaches_the_build(path: str) -> bool:
    """Whether .dockerignore lets this file through: the last pattern that matches it or a folder above decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            again = pattern.startswith("!")
            parts = Path(path).parts
            above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
            plain = pattern.lstrip("!")
            if any(
                fnmatch(part, plain) or (plain.startswith("**/") and fnmatch(part, f"*{plain[2:]}")) for part in above
            ):
                kept = again
    return kept


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return listing.stdout.split("\n")[:-1]


def test_what_is_copied_is_there_and_nothing_else_reaches_the_build() -> None:
    sources = [source for stage in (0, 1) for names, _ in copies(stage) for source in names]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
    wanted = {path for path in tracked() if any(path == s or path.startswith(f"{s}/") for s in sources)}
    assert {path for path in tracked() if reaches_the_build(path)} == wanted
    for path in ("sharp_demo/__pycache__/engine.pyc", "sharp_demo/page/__pycache__/x.pyc", ".env", ".git/config"):
        assert not reaches_the_build(path)


def test_runs_as_uid_1000_and_has_no_compiler() -> None:
    final = [step for step in steps() if step.stage == 1]
    assert [step.text for step in final if step.name == "USER"] == ["1000"]
    assert [step.name for step in final].index("USER") > max(
        i for i, s in enumerate(final) if s.name in ("COPY", "RUN")
    )
    assert "useradd --create-home --uid 1000 user" in " ".join(step.text for step in final if step.name == "RUN")
    assert not re.search(r"\b(gcc|g\+\+|make|build-essential|apt|nvcc|pip)\b", " ".join(s.text for s in final))
    bases = [step.text.split()[0] for step in steps() if step.name == "FROM"]
    assert len(set(bases)) == 1, "the virtual environment must find the same Python in both stages"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases[0])
    assert {step.text.split("=")[0] for step in steps() if step.name == "ARG"} == {
        *("TORCH", "TORCH_VERSION", "FLASH_ATTN", "DECORD")
    }


def test_the_model_cache_is_a_volume_that_belongs_to_the_user() -> None:
    (volume,) = [step.text for step in steps() if step.name == "VOLUME"]
    assert environment()["HF_HOME"] == volume
    made = next(step.text for step in steps() if step.stage == 1 and step.name == "RUN").partition("install -d")[2]
    assert made.split()[:4] == ["-o", "user", "-g", "user"]
    assert {"/home/user/app", volume} <= set(made.split())


PIP = """#!/bin/sh
echo "pip $*" >> "$LOG"
"""
PYTHON = """#!/bin/sh
case "$1" in
  -m) mkdir -p "$3/bin" && cp "$STUBS/pip" "$STUBS/python" "$3/bin/" ;;
  *) echo "python $*" >> "$LOG"; if [ "$2" = bad ]; then exit 1; fi; echo "https://wheels/flash_attn-$2.whl" ;;
esac
"""


def build(folder: Path, **arguments: str) -> tuple[int, str, Path]:
    """Run the build stage's RUN lines with stand-ins for python and pip; return exit status, what they got, /build."""
    stubs, work = folder / "stubs", folder / "build"
    for made in (stubs, work):
        made.mkdir()
    for name, text in (("pip", PIP), ("python", PYTHON)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    for names, target in copies(0):
        assert target == "./"
        for name in names:
            shutil.copy(ROOT / name, work / Path(name).name)
    defaults = dict(step.text.split("=", 1) for step in steps() if step.name == "ARG")
    variables = {name: shlex.split(value)[0] if value else "" for name, value in defaults.items()} | arguments
    log = folder / "log"
    log.touch()
    for step in steps():
        if step.name == "RUN" and step.stage == 0:
            script = step.text.replace("/opt/venv", str(folder / "venv"))
            done = subprocess.run(
                ["sh", "-c", script],
                cwd=work,
                env={**variables, "PATH": f"{stubs}:{os.environ['PATH']}", "LOG": str(log), "STUBS": str(stubs)},
                check=False,
            )
            if done.returncode:
                return done.returncode, log.read_text(), work
    return 0, log.read_text(), work


def test_a_cpu_image_takes_the_tested_set_from_the_cpu_index(tmp_path: Path) -> None:
    status, log, work = build(tmp_path)
    assert status == 0
    assert log == f"pip install --no-cache-dir --extra-index-url {INDEX}/cpu -c constraints.txt -r requirements.txt\n"
    for name in ("constraints.txt", "requirements.txt"):
        assert (work / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_gpu_image_takes_the_torch_and_the_wheel_it_is_told(tmp_path: Path) -> None:
    status, log, work = build(tmp_path, TORCH="cu128", TORCH_VERSION="2.9.1", FLASH_ATTN="2.8.3")
    assert status == 0
    torch, wheel, flash = log.splitlines()
    assert f"--extra-index-url {INDEX}/cu128 " in torch
    assert wheel == "python flash_attn_wheel.py 2.8.3"
    assert flash.startswith("pip install --no-cache-dir --only-binary :all: -c constraints.txt https://wheels/")
    constraints = (work / "constraints.txt").read_text()
    assert "\ntorch==2.9.1\n" in constraints
    assert len(constraints.splitlines()) == len((ROOT / "constraints.txt").read_text().splitlines())


def test_a_wheel_that_cannot_be_named_stops_the_build(tmp_path: Path) -> None:
    status, log, _ = build(tmp_path, FLASH_ATTN="bad")
    assert status != 0
    assert log.endswith("python flash_attn_wheel.py bad\n")


def test_an_image_to_pass_on_has_no_decord(tmp_path: Path) -> None:
    assert build(tmp_path, DECORD="0")[0] == 0
    kept = (tmp_path / "build/requirements.txt").read_text()
    assert "decord==" not in kept
    assert len(kept.splitlines()) == len((ROOT / "requirements.txt").read_text().splitlines()) - 1


@pytest.fixture(scope="module")
def flash() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flash_attn_wheel", ROOT / "tools/flash_attn_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wheel_matches_torch_cuda_abi_and_python(flash: ModuleType) -> None:
    address = flash.wheel("2.8.3", "2.9.1+cu128", "12.8", True, (3, 12), "x86_64")
    assert address in (ROOT / "requirements-gpu.txt").read_text()
    other = flash.wheel("2.8.3", "2.13.0", "13.0", False, (3, 11), "aarch64")
    assert other.endswith("/v2.8.3/flash_attn-2.8.3+cu13torch2.13cxx11abiFALSE-cp311-cp311-linux_aarch64.whl")


def test_no_wheel_for_a_cpu_torch_or_a_wrong_release(flash: ModuleType) -> None:
    with pytest.raises(ValueError, match="CPU build"):
        flash.wheel("2.8.3", "2.13.0+cpu", None, True, (3, 12), "x86_64")
    with pytest.raises(ValueError, match="no flash-attn release"):
        flash.wheel("latest; rm -rf /", "2.9.1", "12.8", True, (3, 12), "x86_64")


def test_the_image_serves_and_its_health_check_tells(tmp_path: Path) -> None:
    """The files of the final stage and nothing else, its ENV, its CMD and its HEALTHCHECK, on another port."""
    image = tmp_path / "app"
    image.mkdir()
    for names, target in copies(1):
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, image / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, image / target)
    written = environment()
    assert (written["SHARP_HOST"], written["SHARP_PORT"]) == ("0.0.0.0", "7860")
    assert "7860" in [step.text for step in steps() if step.name == "EXPOSE"]
    variables = {
        **{name: value for name, value in written.items() if name not in ("PATH", "HOME", "HF_HOME")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SHARP_PORT": str(free_port()),
        "SHARP_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = json.loads(next(step.text for step in steps() if step.name == "CMD"))
    probe = json.loads(next(step.text for step in steps() if step.name == "HEALTHCHECK").partition("CMD ")[2])

    def healthy() -> bool:
        return subprocess.run(probe, env=variables, capture_output=True, timeout=30, check=False).returncode == 0

    assert not healthy()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=image, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 90
            while not healthy():
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
        finally:
            server.terminate()
            server.wait(20)
