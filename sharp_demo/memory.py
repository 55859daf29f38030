"""What keeps the memory of a server that runs for days flat."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sharp_demo.settings import heaps_are_chosen

HEAPS = 2  # the one that imports filled, and one for the threads
_M_ARENA_MAX = -8  # malloc.h


@contextmanager
def importing() -> Iterator[None]:
    """Import much, as torch and Gradio are, without garbage collections.

    They would go again and again over all that was imported so far, a sixth of the whole time, and find nothing. What
    is there at the end stays out of later collections as well. Source: the documentation of gc.freeze.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def share_heaps(count: int = HEAPS) -> bool:
    """Let all threads share `count` heaps of glibc's malloc; return False where it is left alone.

    On its own it makes up to eight heaps a core, for threads that allocate at the same time, and keeps in each what
    was freed there. A server's runs wander over its threads, so that after hours every heap holds what the largest
    run needed. Call it before there are threads: heaps that exist stay. A MALLOC_ARENA_MAX of the environment holds.
    Source: man 3 mallopt, M_ARENA_MAX.
    """
    if heaps_are_chosen():
        return False
    with suppress(OSError, AttributeError, TypeError):  # another libc, or none that can be named
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # musl has a mallopt that does nothing
        return bool(libc.mallopt(_M_ARENA_MAX, count))
    return False


def trim_heaps() -> bool:
    """Return freed heap to the system; the answer is False where there was none, or where the C library keeps it.

    On its own glibc returns only what is free at the top of a heap, so that one small block holds on to all that was
    freed below it. The next allocations must fetch their pages again: call it where nothing is being timed.
    Source: man 3 malloc_trim.
    """
    with suppress(OSError, AttributeError, TypeError):  # another libc, or none that can be named
        return bool(ctypes.CDLL(None).malloc_trim(0))
    return False
