"""The app as it is, and the peak memory in MB of every decoding stage in FILE: -m tests.web.watched_app FILE."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import app
from sharp_demo.video import sandbox

LOOK_S = 0.02


class Watch(threading.Thread):
    """Looks at a child's peak while it works: one that a limit ends reports nothing itself."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status, self.highest, self.over = Path(f"/proc/{pid}/status"), 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(LOOK_S):
            with suppress(OSError):
                lines = self.status.read_text().splitlines()
                peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
                self.highest = max(self.highest, *peaks, 0.0)


def main(peaks: Path) -> None:
    run = sandbox.Child.run

    def noted(child: sandbox.Child, *args: Any) -> sandbox.Ended:
        watch = Watch(child.process.pid)
        watch.start()
        try:
            ended = run(child, *args)
        finally:
            watch.over.set()
        with peaks.open("a") as sink:
            print(max(watch.highest, ended.report.get("peak_mb") or 0.0), file=sink)
        return ended

    sandbox.Child.run = noted  # type: ignore[method-assign]
    app.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
