"""Logs of a server: every line names the run it belongs to, and every run ends in one line with outcome and times.

Questions, answers and file names are not logged: they are the visitors'.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any, Literal

from sharp_demo.errors import InputError
from sharp_demo.records import Decoded, Done, Encoded, Event, MethodDone, MethodFailed, Request, Result, Started

log = logging.getLogger(__name__)

RUN: ContextVar[str] = ContextVar("run", default="")
NO_FILES = "connections wait: no file descriptor is left; raise the limit of open files (ulimit -n)"
TEXT = "%(asctime)s %(levelname)s %(name)s%(tag)s: %(message)s"


class Tag(logging.Filter):
    """Adds the current run's id to every record, as `run` and, for the text format, as `tag`."""

    def filter(self, record: logging.LogRecord) -> bool:
        run = RUN.get()
        record.__dict__.update(run=run, tag=f" [{run}]" if run else "")
        return True


class OutOfFiles(logging.Filter):
    """Makes one line a minute of what asyncio says when the process has no file descriptor left for a connection.

    It tries a whole backlog in a row, every second, and has a traceback for each: megabytes a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock, self.said = clock, -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if "out of system resource" not in record.getMessage():
            return True
        now = self.clock()
        if now - self.said < 60:
            return False
        self.said = now
        record.msg, record.args, record.exc_info = NO_FILES, (), None
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, run, message, the fields given in `extra`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "run": getattr(record, "run", ""),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(style: Literal["text", "json"]) -> None:
    """Send the logs of this process, from INFO on, to stderr in one of two styles.

    Gradio's warnings are left out: they quote what visitors are told, with the names of their files.
    """
    handler = logging.StreamHandler()
    handler.addFilter(Tag())
    handler.setFormatter(JsonLines() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(OutOfFiles())
    warnings.filterwarnings("ignore", module=r"gradio\b")


def tagged(events: Iterator[Event], run: str) -> Generator[Event, None, None]:
    """Pass on a run's events; what is logged while they are made carries the run's id.

    The id is set around every step, not once: each step may run in another thread.
    """
    while True:
        token = RUN.set(run)
        try:
            event = next(events)
        except StopIteration:
            return
        finally:
            RUN.reset(token)
        yield event


class RunLine:
    """Collects what the line of one run says.

    `outcome` is "done", "stopped", "timed out", "refused" (a bad request), "failed" (our fault, or every method
    failed), or "left": the client went away, which is also what it stays when the process is killed.
    """

    def __init__(self, run: str, request: Request) -> None:
        self.run, self.began, self.outcome = run, time.monotonic(), "left"
        self.asked = len(request.methods)
        self.fields: dict[str, Any] = {
            "model": request.model,
            "asked": {"retention": request.retention, "match": request.match, "frames": request.frames},
            "waited_s": None,
            "decode_ms": None,
            "vision_ms": None,
            "encoded_frames": None,
            "tokens": None,
            "methods": {},
        }

    def take(self, event: Event) -> None:
        """Note what an event tells."""
        fields = self.fields
        match event:
            case Started(model=model):
                fields["model"], fields["waited_s"] = model.name, round(time.monotonic() - self.began, 3)
            case Decoded(ms=ms):
                fields["decode_ms"] = round(ms, 1)
            case Encoded(tokens=tokens, ms=ms, frames=frames):
                fields["tokens"], fields["vision_ms"], fields["encoded_frames"] = tokens, round(ms, 1), frames
            case MethodDone(label=label, result=result):
                fields["methods"][label] = _of_method(result)
            case MethodFailed(label=label, kind=kind):
                fields["methods"][label] = {"status": kind}
            case Done(results=results, failed=failed):
                fields["methods"] |= {result.label: _of_method(result) for result in results}
                missing = len(fields["methods"]) < self.asked
                stopped = missing or any(result.status == "stopped" for result in results)
                self.outcome = "failed" if failed and not results else "stopped" if stopped else "done"

    def fail(self, error: Exception) -> None:
        """Note the error that ended the run."""
        self.outcome = "refused" if isinstance(error, InputError) else "failed"
        self.fields["problem"] = getattr(error, "kind", type(error).__name__)

    def write(self) -> None:
        """Log the line."""
        seconds = round(time.monotonic() - self.began, 3)
        fields = {"outcome": self.outcome, "seconds": seconds, **self.fields}
        shown = " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items() if value not in (None, {}))
        token = RUN.set(self.run)
        log.info("run %s", shown, extra={"fields": fields})
        RUN.reset(token)


def _of_method(result: Result) -> dict[str, Any]:
    return {
        "status": result.status,
        "kept": result.tokens.kept,
        "prefill_ms": round(result.latency_ms.prefill, 1),
        "total_ms": round(result.latency_ms.total, 1),
        "rounds": len(result.latency_ms.rounds),
    }
