"""What visitors may still ask for after their run: kept by size and age, with a share for every client."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True)
class _Kept(Generic[V]):
    value: V
    client: str
    size: int
    since: float


class Shelf(Generic[V]):
    """One value for each session, at most `capacity` bytes in all and `age` seconds each.

    One client holds at most `share` of the capacity: beyond it, its own oldest values go, never another's. When all
    clients together hold too much, the oldest of the client that holds most goes.
    """

    def __init__(
        self, capacity: int, age: float, share: float = 0.25, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity, self.age, self.share, self.clock = capacity, age, share, clock
        self._kept: dict[str, _Kept[V]] = {}  # the oldest first
        self._lock = threading.Lock()

    def put(self, session: str, client: str, value: V) -> None:
        """Keep a picklable value in place of the session's last one; one that is too large for a share is not kept."""
        kept = _Kept(value, client, len(pickle.dumps(value)), self.clock())
        with self._lock:
            self._kept.pop(session, None)
            self._kept[session] = kept
            self._trim(client)

    def get(self, session: str) -> V | None:
        """Return the session's value; None where there is none, or none any more."""
        with self._lock:
            self._expire()
            kept = self._kept.get(session)
            return None if kept is None else kept.value

    def drop(self, session: str) -> None:
        """Forget the session's value."""
        with self._lock:
            self._kept.pop(session, None)

    def _expire(self) -> None:
        now = self.clock()
        for session in [session for session, kept in self._kept.items() if now - kept.since > self.age]:
            del self._kept[session]

    def _trim(self, newest: str) -> None:
        self._expire()
        while self._held(newest) > self.share * self.capacity:
            self._drop_oldest(newest)
        while self._held() > self.capacity:
            self._drop_oldest(max({kept.client for kept in self._kept.values()}, key=self._held))

    def _held(self, client: str | None = None) -> int:
        return sum(kept.size for kept in self._kept.values() if client in (None, kept.client))

    def _drop_oldest(self, client: str) -> None:
        del self._kept[next(session for session, kept in self._kept.items() if kept.client == client)]
