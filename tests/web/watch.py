"""Asking a server for its health while something else goes on."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def watching(server: str) -> Iterator[list[float]]:
    """Ask for the server's health every 50 ms; the list fills with how long each answer took, in seconds.

    An answer other than 200, or none within 30 s, is raised at the end.
    """
    took: list[float] = []
    problems: list[Exception] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            start = time.monotonic()
            try:
                with urllib.request.urlopen(f"{server}/healthz", timeout=30) as answer:
                    assert answer.status == 200
            except Exception as error:
                problems.append(error)
            took.append(time.monotonic() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()
    if problems:
        raise AssertionError(f"{len(problems)} of {len(took)} questions for the server's health failed") from problems[
            0
        ]
