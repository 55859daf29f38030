"""The folder of uploaded and made files: how much it may hold, and what goes when it is full."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sharp_demo import strings

log = logging.getLogger(__name__)

REFUSED_S = 60  # how long a refused upload counts for `refuses`
YOUNG_S = 600  # a younger file may be one that a page shows and asks about next


@dataclass(frozen=True)
class Held:
    """One file in the folder: path, bytes, and when it was last changed (seconds since the epoch)."""

    path: Path
    size: int
    changed: float


class UploadFolder:
    """Keeps the files below `path` under `quota` bytes and the disk above `min_free` bytes.

    When room is needed, files that nobody has touched for ten minutes go, the oldest first. `in_use` tells what stays
    however old it is: the files of requests that wait or run.
    """

    def __init__(
        self, path: Path, quota: int, min_free: int, in_use: Callable[[], Collection[Path]] = frozenset
    ) -> None:
        self.path, self.quota, self.min_free, self.in_use = path, quota, min_free, in_use
        self._lock = threading.Lock()
        self._coming = 0
        self._refused = -math.inf  # when the last reservation failed, if none has succeeded since

    def reserve(self, size: int) -> str | None:
        """Make room for an upload of `size` bytes; None, or one line that says why there is none.

        Every reservation that succeeds must be released when the upload has ended.
        """
        with self._lock:
            held = sorted(self.files(), key=lambda file: file.changed)
            over = sum(file.size for file in held) + self._coming + size - self.quota
            short = self.min_free + self._coming + size - self.free()
            lacking = max(over, short)
            if lacking > 0:
                kept = {own_name(path) for path in self.in_use()}
                idle = [file for file in held if own_name(file.path) not in kept]
                lacking -= remove(idle, lacking, time.time() - YOUNG_S)
            if lacking > 0:
                log.warning("upload refused: %d bytes too few for %d more", lacking, size)
                self._refused = time.monotonic()
                return strings.NO_ROOM
            self._coming += size
            self._refused = -math.inf
            return None

    @property
    def refuses(self) -> bool:
        """Whether the last upload found no room, within the last minute."""
        return time.monotonic() - self._refused < REFUSED_S

    def release(self, size: int) -> None:
        """Give back a reservation: the upload is on the disk now, or was given up."""
        with self._lock:
            self._coming -= size

    def files(self) -> Iterator[Held]:
        """Yield every regular file below the folder."""
        for path in self.path.rglob("*"):
            with contextlib.suppress(OSError):  # gone in the meantime
                status = path.lstat()
                if path.is_file() and not path.is_symlink():
                    yield Held(path, status.st_size, status.st_mtime)

    def free(self) -> int:
        """Return the free bytes of the disk that holds the folder."""
        there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        return shutil.disk_usage(there).free


def own_name(path: Path) -> tuple[str, ...]:
    """Return what names an upload however the folder is written: its own folder, and the file in it."""
    return path.parts[-2:]


def remove(files: list[Held], size: int, before: float) -> int:
    """Delete files last changed before a time, in the order given, until `size` bytes are free; return how many are."""
    freed = 0
    for file in files:
        if freed >= size or file.changed >= before:
            break
        with contextlib.suppress(OSError):
            file.path.unlink()
            freed += file.size
            file.path.parent.rmdir()  # every upload has a folder of its own
    return freed
