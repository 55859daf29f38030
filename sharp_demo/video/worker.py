"""The child process that touches untrusted bytes: `python -m sharp_demo.video.worker [MODULE ...]`.

It imports the modules, then reads one JSON line for each stage: "scan", or a decoder's name, all for the same file. The
folder named in the first line becomes its working directory; it gets report.json after each stage and, after decoding,
frames.npy. Limits are set, and the process is shut in, when the first line comes, before the file is opened.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from sharp_demo.errors import VideoError
from sharp_demo.video.isolation import isolate
from sharp_demo.video.sandbox import DONE

try:
    import resource
except ImportError:  # Windows: the parent's wall clock is the only limit there
    resource = None  # type: ignore[assignment]

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_OPEN_FILES = 64
# One large frame: with less address space than this left, a decoder's failure is taken for lack of memory.
_ONE_FRAME_MB = 64


def set_limits(memory_mb: int, cpu_s: int, file_mb: int, wall_s: float) -> list[str]:
    """Limit this process for good; return the limits that the operating system refused.

    `cpu_s` is the processor time that ends the process by SIGXCPU, `file_mb` the largest file it may write.
    """
    set_alarm(wall_s)
    if resource is None:
        return ["memory", "cpu", "file size", "open files", "core"]
    refused = []
    for name, limit, value in (
        ("memory", resource.RLIMIT_AS, memory_mb << 20),
        ("cpu", resource.RLIMIT_CPU, cpu_s),
        ("file size", resource.RLIMIT_FSIZE, file_mb << 20),
        ("open files", resource.RLIMIT_NOFILE, _OPEN_FILES),
        ("core", resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # A hard limit one second later: with both equal the kernel sends SIGKILL, which hides the cause.
        ceiling = value + 1 if name == "cpu" and hard == resource.RLIM_INFINITY else value
        try:
            resource.setrlimit(limit, (value, ceiling))
        except (ValueError, OSError):
            refused.append(name)
    return refused


def set_alarm(wall_s: float) -> None:
    """End this process soon after its time for a stage is over: should the parent die, nobody else would."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, wall_s + 1)


def run(stage: str, job: dict[str, Any]) -> dict[str, Any]:
    """Do one stage and return what goes into the report."""
    if stage == "scan":
        from sharp_demo.video.scan import scan

        return scan(**job)
    import numpy as np

    from sharp_demo.video.order import Order, check_filled

    order = Order(**job | {name: tuple(job[name]) for name in ("coded", "size")})
    frames, times = import_module(f"sharp_demo.video.with_{stage}").decode(order)
    check_filled(order, frames, times)
    np.save("frames.npy", frames)
    return {"times": [t - order.origin for t in times]}


def report_of(stage: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a stage; what it raises becomes {"failure": kind} with a "message" for the user or a "detail" for the log."""
    try:
        return run(stage, job)
    except VideoError as error:
        return {"failure": error.kind, "message": str(error)}
    except Exception as error:
        return {"failure": _kind(error), "detail": f"{type(error).__name__}: {error}"[:1000]}


def _kind(error: Exception) -> str:
    # The decoders report a failed allocation in their own classes and words.
    said = str(error).lower()
    if isinstance(error, MemoryError) or "alloc" in said or "memory" in said:
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "unavailable"
    return "damaged"


def peak_memory_mb(field: str) -> float | None:
    """Return VmPeak (address space) or VmHWM (resident memory) of this program in MB; None where there is no /proc.

    Not `ru_maxrss`: on Linux that begins with the parent's size, which survives the exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    values = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{field}:")]
    return values[0] if values else None


def starved(memory_mb: int) -> bool:
    """Return whether this process came so close to its limit that an allocation must have failed.

    FFmpeg reports a frame it could not allocate as bad data.
    """
    return (peak_memory_mb("VmPeak") or 0) > memory_mb - _ONE_FRAME_MB


def main() -> int:
    """Import what the command line names, then do the stages that come in, one line each, until input ends."""
    answers = _own_output()
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):  # missing decoders are found out where they are chosen
            import_module(name)
    refused: list[str] | None = None
    for line in sys.stdin:
        order = json.loads(line)
        stage, job, limits = order["stage"], order["job"], order["limits"]
        if refused is None:
            os.chdir(order["folder"])
            os.environ["HOME"] = os.environ["TMPDIR"] = order["folder"]
            refused = set_limits(**limits)
            # What shuts this thread in holds for those it starts from now on, not for any that an import started.
            refused += isolate(job["path"], order["folder"], _PACKAGE_ROOT) if _is_alone() else ["network", "files"]
        else:
            set_alarm(limits["wall_s"])
        report = report_of(stage, job)
        if report.get("failure") == "damaged" and starved(limits["memory_mb"]):
            report = {"failure": "memory", "detail": report.get("message") or report["detail"]}
        report["limits_refused"] = refused
        report["peak_mb"] = peak_memory_mb("VmHWM")
        with contextlib.suppress(BrokenPipeError):
            Path("report.json").write_text(json.dumps(report))
            answers.write(DONE)
            answers.flush()
    return 0


def _is_alone() -> bool:
    """Return whether this process has one thread; True where there is no /proc."""
    tasks = Path("/proc/self/task")
    return not tasks.is_dir() or len(os.listdir(tasks)) == 1


def _own_output() -> BinaryIO:
    """Return standard output for the parent alone: what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return answers


if __name__ == "__main__":
    sys.exit(main())
