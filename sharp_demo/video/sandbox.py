"""Start the child process, wait no longer than agreed, and say how it ended."""

from __future__ import annotations

import compileall
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_MAX_REPORT = 16 << 20
_FULL = 1 << 20  # bytes free below which a child that failed had no room
_QUIET = {
    # One thread and few arenas: each more would reserve address space that counts against the memory limit.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUTF8": "1",
    "OPENCV_LOG_LEVEL": "SILENT",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}
# Signals by which a decoder brings itself down; SIGKILL is not among them: it comes from outside.
_CRASHES = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"}


@dataclass(frozen=True)
class Ended:
    """How a child ended: `failure` is None or a kind of error, `detail` is for the log, `report` what it wrote."""

    failure: str | None
    detail: str = ""
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Limits of one child: address space, processor time, largest file, wall clock."""

    memory_mb: int
    cpu_s: int
    file_mb: int
    wall_s: float


@cache
def _compile_ahead() -> None:
    """Store the bytecode of this package once: a child that is shut in cannot, and would compile it every time."""
    with contextlib.suppress(OSError):
        compileall.compile_dir(Path(__file__).parent, maxlevels=0, quiet=2)


def command(stage: str) -> list[str]:
    """Return the command line of the child for a stage."""
    return [sys.executable, "-m", "sharp_demo.video.worker", stage]


def run_child(stage: str, job: dict[str, Any], limits: Limits, scratch: Path, inherited: dict[str, str]) -> Ended:
    """Run one stage in a child process whose working directory is `scratch` and whose environment is `inherited`.

    Never raises for anything the child does; kills its whole process group when the wall clock runs out or the
    caller is interrupted.
    """
    _compile_ahead()
    environment = inherited | _QUIET | {"HOME": str(scratch), "TMPDIR": str(scratch)}
    # The packages the parent sees, wherever they were installed.
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([_PACKAGE_ROOT, *filter(None, sys.path)]))
    report = scratch / "report.json"
    report.unlink(missing_ok=True)
    try:
        errors = open(scratch / "stderr.txt", "wb+")  # noqa: SIM115
    except OSError as error:
        return Ended("unavailable", f"no room for its messages: {error}")
    with errors as stderr:
        try:
            process = subprocess.Popen(
                command(stage),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Ended("unavailable", f"cannot start: {error}")
        late = False
        try:
            line = json.dumps(job | {"limits": vars(limits)}) + "\n"
            # A child that died already is reported by its exit status.
            with contextlib.suppress(OSError), process.stdin as stdin:  # type: ignore[union-attr]
                stdin.write(line.encode())
            process.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(process)
        stderr.seek(0)
        said = stderr.read(2000).decode(errors="replace").strip()
    ended = Ended("timeout", f"after {limits.wall_s:.1f} s") if late else _judge(process.returncode, report)
    if ended.failure == "crashed" and shutil.disk_usage(scratch).free < _FULL:
        ended = Ended("unavailable", f"disk full; {ended.detail}")
    log.debug("%s: %s %s peak %s MB; %s", stage, ended.failure, ended.detail, ended.report.get("peak_mb"), said)
    return ended


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _judge(status: int, report: Path) -> Ended:
    """Turn an exit status and a report into `Ended`; a report is believed only after a clean exit."""
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        kind = {"SIGXCPU": "cpu", "SIGALRM": "timeout"}.get(name, "crashed" if name in _CRASHES else "killed")
        return Ended(kind, f"ended by {name}")
    if status != 0:
        return Ended("crashed", f"exit status {status}")
    try:
        if report.stat().st_size > _MAX_REPORT:
            return Ended("crashed", "report too long")
        data = json.loads(report.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return Ended("crashed", f"no report: {type(error).__name__}")
    if not isinstance(data, dict) or not isinstance(data.get("limits_refused"), list):
        return Ended("crashed", "unusable report")
    if data["limits_refused"]:
        log.debug("limits not available on this system: %s", data["limits_refused"])
    return Ended(data.get("failure"), data.get("detail", ""), data)
