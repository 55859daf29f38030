"""The folder of uploaded and made files: how much it may hold, and what goes when it is full."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sharp_demo import strings

log = logging.getLogger(__name__)

REFUSED_S = 60  # how long a refused upload counts for `refuses`
YOUNG_S = 600  # a younger file may be one that a page shows and asks about next
TIDY_S = 600.0  # between two looks for files that are too old


@dataclass(frozen=True)
class Held:
    """One file in the folder: path, bytes, when it was last changed (seconds since the epoch), its age in seconds."""

    path: Path
    size: int
    changed: float
    age: float = 0.0


class Ages:
    """How old files are, by a clock that nobody sets.

    The time of change tells a file's age at first sight only, and not beyond the last look, when it was not there: a
    wall clock that jumps makes no file old.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._since: dict[tuple[Path, float], float] = {}
        self._looked = -math.inf

    def of(self, files: Collection[Held]) -> list[Held]:
        """Return all files that are there, with their ages, the oldest first."""
        now, today = self.clock(), time.time()
        longest = now - self._looked
        first_seen = {(file.path, file.changed): now - min(max(today - file.changed, 0.0), longest) for file in files}
        self._since = {key: self._since.get(key, since) for key, since in first_seen.items()}
        self._looked = now
        aged = [replace(file, age=now - self._since[file.path, file.changed]) for file in files]
        return sorted(aged, key=lambda file: -file.age)


class UploadFolder:
    """Keeps the files below `path` under `quota` bytes and the disk above `min_free` bytes.

    When room is needed, files that nobody has touched for ten minutes go, the oldest first. `in_use` tells what stays
    however old it is: the files of requests that wait or run.
    """

    def __init__(
        self, path: Path, quota: int, min_free: int, in_use: Callable[[], Collection[Path]] = frozenset
    ) -> None:
        self.path, self.quota, self.min_free, self.in_use = path, quota, min_free, in_use
        self.ages = Ages()
        self._lock = threading.Lock()
        self._coming = 0
        self._refused = -math.inf  # when the last reservation failed, if none has succeeded since

    def reserve(self, size: int) -> str | None:
        """Make room for an upload of `size` bytes; None, or one line that says why there is none.

        Every reservation that succeeds must be released when the upload has ended.
        """
        with self._lock:
            held = self.ages.of(list(self.files()))
            over = sum(file.size for file in held) + self._coming + size - self.quota
            short = self.min_free + self._coming + size - self.free()
            lacking = max(over, short)
            if lacking > 0:
                lacking -= self._remove(held, lacking, YOUNG_S)
            if lacking > 0:
                log.warning("upload refused: %d bytes too few for %d more", lacking, size)
                self._refused = time.monotonic()
                return strings.NO_ROOM
            self._coming += size
            self._refused = -math.inf
            return None

    def tidy(self, age: float) -> None:
        """Delete files that are older than `age` seconds, but none of a request that waits or runs."""
        with self._lock:
            self._remove(self.ages.of(list(self.files())), math.inf, age)

    def _remove(self, held: list[Held], size: float, age: float) -> int:
        """Delete files that nobody uses and that are older than `age`, until `size` bytes are free; return how many."""
        kept = {own_name(path) for path in self.in_use()}
        freed = 0
        for file in held:
            if freed >= size or file.age <= age:
                break
            if own_name(file.path) in kept:
                continue
            with contextlib.suppress(OSError):
                file.path.unlink()
                freed += file.size
                if file.path.parent != self.path:
                    file.path.parent.rmdir()  # every upload has a folder of its own
        return freed

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


@contextlib.asynccontextmanager
async def tidied(folder: UploadFolder, age: float) -> AsyncIterator[None]:
    """While the server runs, delete files that are older than `age` seconds."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(TIDY_S):
            folder.tidy(age)

    threading.Thread(target=look, name="tidy", daemon=True).start()
    try:
        yield
    finally:
        over.set()
