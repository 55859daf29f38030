"""What this machine has and lacks for the app: plain findings, for the command line and for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sharp_demo.backbones.families import hub_models
from sharp_demo.settings import Settings, environment_with, unknown_variables, upload_folder

PACKAGES = ("torch", "transformers", "gradio", "numpy", "plotly", "pydantic-settings", "safetensors", "accelerate")
# PyAV also reads the headers of every file, so it is the one decoder that cannot be missed.
DECODERS = {"decord": "decord, first choice", "av": "PyAV, headers and second choice", "cv2": "OpenCV, last choice"}
MIN_FREE_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fail`: the app cannot run; `warn`: it runs with less."""

    topic: str
    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Return the findings in reading order; nothing is downloaded and no model is loaded."""
    versions = list(_versions())
    # What is missing would only fail again, less clearly, when it is imported.
    complete = can_run(versions)
    models = [*_placement(settings), *_models(settings)] if complete else []
    wrong = list(_unusable(settings)) if complete else []
    return [
        *versions,
        *models,
        *_decoders(),
        _isolation(),
        *_disk(settings),
        *_server(settings),
        *wrong,
        *_limits(settings),
    ]


def can_run(findings: list[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


def _versions() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        "versions",
        "python",
        "ok" if supported else "fail",
        platform.python_version() + ("" if supported else "; 3.11 to 3.13 is supported"),
    )
    for package in PACKAGES:
        try:
            yield Finding("versions", package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", package, "fail", "not installed: pip install -r requirements.txt")


def _placement(settings: Settings) -> Iterator[Finding]:
    from sharp_demo.backbones.load import choose_placement
    from sharp_demo.errors import ModelError

    try:
        placement = choose_placement(settings)
    except ModelError as error:
        yield Finding("device", "device", "fail", str(error))
        return
    dtype = str(placement.dtype).removeprefix("torch.")
    yield Finding("device", "device", "ok", f"{placement.device}, {dtype} ({placement.device_reason})")
    yield Finding("device", "attention", "ok", f"{placement.attention} ({placement.attention_reason})")


def _decoders() -> Iterator[Finding]:
    for module, role in DECODERS.items():
        # In a child: these libraries bring their own FFmpegs, which must not meet in one process.
        child = subprocess.run(
            [sys.executable, "-c", f"import {module}; print({module}.__version__)"], capture_output=True, text=True
        )
        if child.returncode == 0:
            yield Finding("decoders", module, "ok", f"{child.stdout.strip()} ({role})")
            continue
        reason = (child.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        yield Finding("decoders", module, "fail" if module == "av" else "warn", f"not usable: {reason} ({role})")


def _isolation() -> Finding:
    """Say whether the process that decodes uploads is kept from the network and from other files."""
    code = (
        "import os, sys; from sharp_demo.video.isolation import isolate; "
        "print(*isolate(os.devnull, os.getcwd(), sys.argv[1]))"
    )
    root = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, "-c", code, root],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment_with(PYTHONPATH=os.pathsep.join([root, *filter(None, sys.path)])),
        )
    missing = child.stdout.split() if child.returncode == 0 else ["network", "files"]
    if not missing:
        return Finding("decoders", "isolation", "ok", "no network, no files but the video and a folder of its own")
    reasons = {"network": "the network (no seccomp filter)", "files": "other files (no Landlock, Linux 5.13 and later)"}
    what = " and ".join(reasons[one] for one in missing)
    return Finding("decoders", "isolation", "warn", f"this system does not keep the decoder from {what}")


def _models(settings: Settings) -> Iterator[Finding]:
    from sharp_demo.backbones.load import default_model, is_available
    from sharp_demo.errors import ModelError

    for name in dict.fromkeys([*([settings.model] if settings.model else []), *settings.embedded]):
        here = is_available(name, settings)
        # A configured model that is not here may still be downloaded when it is first used.
        missing: Literal["warn", "fail"] = "warn" if name == settings.model else "fail"
        yield Finding("models", name, "ok" if here else missing, "found" if here else "not found or incomplete")
    for name in hub_models():
        cached = is_available(name, settings)
        yield Finding("models", name, "ok", "in the hub cache" if cached else "not cached; downloaded when chosen")
    try:
        yield Finding("models", "default", "ok", default_model(settings))
    except ModelError as error:
        yield Finding("models", "default", "fail", str(error))


def _disk(settings: Settings) -> Iterator[Finding]:
    scratch, uploads = Path(tempfile.gettempdir()), upload_folder()
    free = _free_gb(scratch)
    yield Finding(
        "disk",
        "free",
        "ok" if free >= MIN_FREE_GB else "warn",
        f"{free:.1f} GB in {scratch}, where decoded frames go",
    )
    problem = _cannot_write(uploads)
    if problem:
        yield Finding(
            "disk",
            "uploads",
            "fail",
            f"nothing can be written to {uploads} ({problem}): let this user write there, or set GRADIO_TEMP_DIR to "
            "another folder",
        )
        return
    free = _free_gb(uploads)
    wanted = (settings.upload_quota_mb + settings.min_free_mb) / 1e3
    yield Finding(
        "disk",
        "uploads",
        "ok" if free >= wanted else "warn",
        f"{free:.1f} GB free in {uploads}: at most {settings.upload_quota_mb / 1e3:g} GB are kept, "
        f"{settings.min_free_mb / 1e3:g} GB stay free"
        + (
            ""
            if free >= wanted
            else f"; there is room for less: free {wanted - free:.1f} GB, or lower SHARP_UPLOAD_QUOTA_MB"
        ),
    )
    yield Finding("disk", "not needed", "ok", "ffmpeg and nvcc: the wheels bring their own libraries")


def _free_gb(folder: Path) -> float:
    """Return the free space of the disk that holds the folder, or will."""
    return shutil.disk_usage(_there(folder)).free / 1e9


def _there(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _cannot_write(folder: Path) -> str:
    """Return why no file can be made in the folder, or an empty string; nothing is left behind."""
    there = _there(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there}: {error.strerror}" if there != folder.absolute() else str(error.strerror)


def _unusable(settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong with settings that can be read but not worked with."""
    from sharp_demo.errors import MethodError
    from sharp_demo.pruning.registry import method_class

    for name in settings.methods:
        try:
            method_class(name)
        except MethodError as error:
            yield Finding("settings", "SHARP_METHODS", "fail", f"{error}; set it to some of these, comma-separated")
            break
    if not (settings.assets / "clips" / "examples.json").is_file():
        yield Finding(
            "settings",
            "SHARP_ASSETS",
            "warn",
            f"no examples in {settings.assets}: the page shows none; unset SHARP_ASSETS, or name a copy of assets/",
        )


def _server(settings: Settings) -> Iterator[Finding]:
    address = f"{settings.host}:{settings.port}"
    problem = _cannot_bind(settings.host, settings.port)
    yield Finding(
        "server",
        "address",
        "warn" if problem else "ok",
        f"{address} cannot be used ({problem}): stop what uses it, or set SHARP_PORT or SHARP_HOST"
        if problem
        else address,
    )
    names, public = settings.host_names, settings.host not in ("127.0.0.1", "localhost", "::1")
    if names is None:
        yield Finding("server", "names", "ok", "answers to any name")
    else:
        given = ", ".join(sorted(names - {settings.host.lower()}))
        yield Finding(
            "server",
            "names",
            "warn" if public and not given else "ok",
            f"answers to localhost, bare addresses{f' and {given}' if given else ''}"
            + (
                "; visitors who come by a name get 400: put it into SHARP_ALLOWED_HOSTS" if public and not given else ""
            ),
        )
    yield Finding("server", "health", "ok", "GET /healthz: 200 while runs work, 503 when only a restart helps")
    for name, similar in unknown_variables().items():
        meant = f"did you mean {similar}?" if similar else "the settings are listed below"
        yield Finding("server", name, "warn", f"is set, but no setting has this name; {meant}")


def _cannot_bind(host: str, port: int) -> str:
    """Return why the web server could not listen there, or an empty string."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _limits(settings: Settings) -> Iterator[Finding]:
    for name, value in settings.model_dump().items():
        yield Finding("settings", f"SHARP_{name.upper()}", "ok", "" if value is None else str(value))
