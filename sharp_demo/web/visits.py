"""What the server remembers of each open page: whether its run goes on, and the files made for it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from sharp_demo.recent import Recent

TWICE_S = 2.0  # a second press of Run within it is a double click: the page has not shown the first one's effect
CAPACITY = 1024  # the page that was quiet the longest is forgotten; its files go within the hour like all


@dataclass
class Visit:
    """One page. `waiting`: its comparison is in the queue; `stopping`: Stop was pressed, maybe before the run began.

    `chosen`: its visitor picked an example or pressed Run, so that what a page opens with comes too late.
    `client` is the address that it came from, `files` are those that it uploaded or that were made for it.
    """

    client: str = ""
    waiting: bool = False
    running: bool = False
    stopping: bool = False
    chosen: bool = False
    files: set[Path] = field(default_factory=set)
    pressed: float = -math.inf  # when Run was, by the monotonic clock
    _pressing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def press(self) -> bool:
        """Note that Run was pressed; return False for the second half of a double click."""
        with self._pressing:
            now = time.monotonic()
            if (self.waiting or self.running) and now - self.pressed < TWICE_S:
                return False
            self.pressed, self.waiting, self.chosen = now, True, True
            return True

    def begin(self) -> None:
        self.waiting, self.running, self.stopping = False, True, False

    def end(self) -> None:
        self.waiting = self.running = self.stopping = False


class Visits:
    """The visits by session hash, at most `capacity` of them."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._visits: Recent[Visit] = Recent(capacity)
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visit:
        """Return a page's visit, a new one at its first call; a caller without a session gets one of its own."""
        if not session:
            return Visit()
        with self._lock:
            visit = self._visits.get(session)
            if visit is None:
                visit = Visit()
                self._visits.put(session, visit)
            return visit

    def forget(self, session: str | None) -> list[Path]:
        """Drop a page's visit and return its files that are no other's: equal uploads are one file."""
        with self._lock:
            visit = self._visits.pop(session or "")
            others = {path for _, other in self._visits.items() for path in other.files}
        return sorted(visit.files - others) if visit else []
