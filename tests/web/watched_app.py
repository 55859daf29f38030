"""The app as it is, and the peak memory in MB of every decoding child in FILE: -m tests.web.watched_app FILE."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import app
from sharp_demo.video import reader, sandbox

LOOK_S = 0.02


class Watched(subprocess.Popen):
    """A child whose peak is looked at while it lives: one that a limit ends reports nothing itself."""

    highest = 0.0  # of all children since it was last reset

    def wait(self, timeout: float | None = None) -> int:
        began = time.monotonic()
        while self.poll() is None:
            with suppress(OSError):
                status = Path(f"/proc/{self.pid}/status").read_text()
                peaks = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
                Watched.highest = max(Watched.highest, *peaks, 0.0)
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(LOOK_S)
        return super().wait()


def main(peaks: Path) -> None:
    def noted(*args: Any) -> sandbox.Ended:
        Watched.highest = 0.0  # the app decodes one file at a time
        ended = sandbox.run_child(*args)
        with peaks.open("a") as sink:
            print(max(Watched.highest, ended.report.get("peak_mb") or 0.0), file=sink)
        return ended

    sandbox.subprocess.Popen = Watched  # type: ignore[misc]
    reader.run_child = noted
    app.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
