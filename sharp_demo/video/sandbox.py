"""Start the child process, wait no longer than agreed for each stage, and say how it ended."""

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
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_MAX_REPORT = 16 << 20
DONE = b"done\n"  # what a child says when the report of a stage is written
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


def command(preload: Sequence[str]) -> list[str]:
    """Return the command line of a child that imports `preload` before it reads its first job."""
    return [sys.executable, "-m", "sharp_demo.video.worker", *preload]


class Child:
    """A process that works on one file, stage by stage, and knows nothing of the file until the first of them.

    It ends by itself when this process does, for then its input ends.

    Parameters
    ----------
    inherited : its environment. preload : modules that it imports at once, so that a job need not wait for them.

    Raises
    ------
    OSError : it cannot be started.
    """

    def __init__(self, inherited: dict[str, str], preload: Sequence[str] = ()) -> None:
        _compile_ahead()
        # The packages the parent sees, wherever they were installed.
        path = os.pathsep.join(dict.fromkeys([_PACKAGE_ROOT, *filter(None, sys.path)]))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self.process = subprocess.Popen(
                command(preload),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=tempfile.gettempdir(),
                env=inherited | _QUIET | {"PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError:
            self._errors.close()
            raise
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._pipes = (self.process.stdin, self.process.stdout)
        self._listener: threading.Thread | None = None
        self._said = ""  # on stderr; known once it is closed

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def run(self, stage: str, job: dict[str, Any], limits: Limits, scratch: Path) -> Ended:
        """Do one stage with `scratch` as the working directory, and say how it ended.

        Never raises for anything the child does. After a failure, or when the caller is interrupted, the child is
        gone, with its whole process group.
        """
        report = scratch / "report.json"
        report.unlink(missing_ok=True)
        line = json.dumps({"stage": stage, "job": job, "limits": vars(limits), "folder": str(scratch)}) + "\n"
        said: list[bytes] = []
        pipe_in, pipe_out = self._pipes
        # A pipe cannot be waited for with a time limit everywhere; a thread can.
        self._listener = threading.Thread(target=lambda: said.append(pipe_out.readline(8)), daemon=True)
        ended = Ended("killed", "the caller was interrupted")
        try:
            # A child that died already is reported by its exit status.
            with contextlib.suppress(OSError):
                pipe_in.write(line.encode())
                pipe_in.flush()
            self._listener.start()
            self._listener.join(limits.wall_s)
            if self._listener.is_alive():
                ended = Ended("timeout", f"after {limits.wall_s:.1f} s")
            elif said == [DONE]:
                ended = _read(report)
            else:
                # Its output ended, so it is ending; a decoder may have closed it, so not for long.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
                ended = _judge(self.process.returncode)
        finally:
            if ended.failure is not None:
                self.close()
        if ended.failure == "crashed" and shutil.disk_usage(scratch).free < _FULL:
            ended = Ended("unavailable", f"disk full; {ended.detail}")
        peak = ended.report.get("peak_mb")
        log.debug("%s: %s %s peak %s MB; %s", stage, ended.failure, ended.detail, peak, self._said)
        return ended

    def close(self) -> None:
        """End the child and its process group, and let its pipes go."""
        _kill(self.process)
        if self._listener is not None and self._listener.ident is not None:
            self._listener.join(1)
        if self._listener is None or not self._listener.is_alive():
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.close()
        if not self._errors.closed:
            self._errors.seek(0)
            self._said = self._errors.read(2000).decode(errors="replace").strip()
            self._errors.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _judge(status: int | None) -> Ended:
    """Turn the exit status of a child that did not finish its stage into `Ended`; None: it goes on all the same."""
    if status is None:
        return Ended("crashed", "it closed its output")
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        kind = {"SIGXCPU": "cpu", "SIGALRM": "timeout"}.get(name, "crashed" if name in _CRASHES else "killed")
        return Ended(kind, f"ended by {name}")
    return Ended("crashed", f"exit status {status}")


def _read(report: Path) -> Ended:
    """Read what the child says of a stage that it finished."""
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
