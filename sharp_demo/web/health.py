"""`/healthz`: whether this server can do its work, for whoever watches it; and the way out when it never will again."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sharp_demo import __version__
from sharp_demo.errors import EXIT_DEVICE_LOST
from sharp_demo.settings import Settings
from sharp_demo.web.uploads import UploadFolder

if TYPE_CHECKING:
    from sharp_demo.engine.background import AnyEngine

log = logging.getLogger(__name__)

FAREWELL_S = 5.0  # time for the last answers, and for a probe to see red
STUCK_AFTER_S = 60.0  # silence beyond the time limit of a run


class Health:
    """What `/healthz` reports.

    Parameters
    ----------
    waiting : how many requests wait in the queue.
    """

    def __init__(self, engine: AnyEngine, settings: Settings, folder: UploadFolder, waiting: Callable[[], int]) -> None:
        self.engine, self.settings, self.folder, self.waiting = engine, settings, folder, waiting
        self.began = time.monotonic()

    def report(self) -> dict[str, Any]:
        """Return status, model, queue, disk and last error as plain data.

        `status` is "ok"; "degraded" when runs work but uploads are refused; "failed" when a restart is needed.
        """
        now, condition = time.monotonic(), self.engine.condition
        free_mb = self.folder.free() / 1e6
        silent = now - condition.heard if condition.running else 0.0
        # A download of gigabytes says nothing while it lasts.
        stuck = condition.state != "loading" and silent > self.settings.run_timeout_s + STUCK_AFTER_S
        problem = condition.lost or (f"a run has been silent for {silent:.0f} s" if stuck else "")
        degraded = "little free disk" if free_mb < self.settings.min_free_mb else ""
        degraded = degraded or ("no room in the upload folder" if self.folder.refuses else "")
        return {
            "status": "failed" if problem else "degraded" if degraded else "ok",
            "problem": problem or (f"{degraded}: uploads are refused" if degraded else ""),
            "model": {"name": condition.model, "state": condition.state},
            "running": condition.running,
            "queue": {"waiting": self.waiting(), "size": self.settings.queue_size},
            "runs": condition.runs,
            "disk": {"free_mb": round(free_mb), "min_free_mb": round(self.settings.min_free_mb)},
            "last_error": condition.error,
            "uptime_s": round(now - self.began),
            "version": __version__,
        }

    async def answer(self, _: Request) -> JSONResponse:
        """Answer with the report, as 503 when the server needs a restart. Asynchronous: no thread need be free."""
        report = self.report()
        return JSONResponse(report, 503 if report["status"] == "failed" else 200, {"Cache-Control": "no-store"})

    def route(self) -> Route:
        return Route("/healthz", self.answer, methods=["GET"])


@asynccontextmanager
async def leaving_when_lost(engine: AnyEngine) -> AsyncIterator[None]:
    """While the server runs, end the process soon after the device is lost: only a new process gets it back."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if engine.condition.lost:
                log.critical("leaving in %g s: %s", FAREWELL_S, engine.condition.lost)
                if not over.wait(FAREWELL_S):
                    os._exit(EXIT_DEVICE_LOST)

    threading.Thread(target=watch, name="device-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()
