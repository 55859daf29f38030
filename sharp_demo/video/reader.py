"""From a path to frames: check, then scan and decode in one child; where a decoder fails, the next gets a fresh one."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sharp_demo.errors import VideoError
from sharp_demo.video.checks import CONTAINERS, Source, check_file
from sharp_demo.video.clip import ERROR_KINDS, Clip, VideoInfo
from sharp_demo.video.sampling import bin_centres, fit, on_screen
from sharp_demo.video.sandbox import Child, Ended, Limits

if TYPE_CHECKING:
    from sharp_demo.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_MAX_SIDE = 768
MIN_MAX_SIDE = 16
PRELOAD = ("numpy", "sharp_demo.video.scan", "sharp_demo.video.order", "decord")  # of a child that waits

# Share of the remaining wall clock each decoder may use; what it leaves is there for the next one.
# The last one may use it all.
_SHARES = {"decord": 0.5, "pyav": 0.75}
# When all decoders failed, the first of these kinds that occurred is the one to report. A timeout is last: only one
# that used up the whole call's time is reported as such, and that one is raised at once.
_WORST = ("unavailable", "memory", "cpu", "crashed", "damaged", "timeout")


def probe(path: str | os.PathLike[str], settings: Settings) -> VideoInfo:
    """Check a file against every limit and return what is known of it; only a few pictures are decoded.

    Raises
    ------
    VideoError : `kind` is one of `ERROR_KINDS`; the message is one line naming cause and limit.
    """
    return Reader(settings).probe(path)


def decode(
    path: str | os.PathLike[str], frames: int, settings: Settings | None = None, max_side: int | None = None
) -> Clip:
    """Decode `frames` frames, sampled uniformly in presentation time.

    The video's duration is cut into `frames` equal bins; each gives the frame on screen at its centre. A video with
    fewer frames repeats the ones it has (`info.distinct_frames` counts the different ones).

    Parameters
    ----------
    path : a video file; untrusted.
    frames : how many, 1 to `settings.max_frames`.
    settings : the limits; None: those of the environment.
    max_side : longest side of the result in pixels, at least 16; None: 768. Never enlarged.

    Raises
    ------
    VideoError : `kind` is one of `ERROR_KINDS`; the message is one line naming cause and limit.
    """
    if settings is None:
        from sharp_demo.settings import read_settings  # pydantic, which the decoding child does without

        settings = read_settings()
    return Reader(settings).decode(path, frames, max_side)


class Reader:
    """Probes and decodes videos, each in a child of its own.

    `warm` keeps one child ready, with PyAV, decord and numpy imported, for the next video; a child is used once. A
    child that waits ends with this process. Threads may share a reader.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._spare: Child | None = None
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start a child for the next video, unless one waits; where none can be started, the next video says so."""
        with self._lock:
            if self._spare is not None and self._spare.alive:
                return
            self._drop()
            with suppress(OSError):
                self._spare = Child(self.settings.child_environment(), PRELOAD)

    def close(self) -> None:
        """End the child that waits, if any."""
        with self._lock:
            self._drop()

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Check a file as the function `probe` does."""
        deadline = time.monotonic() + self.settings.decode_timeout_s
        source = check_file(path, self.settings)
        with self._work(source, deadline, DEFAULT_MAX_SIDE) as work:
            return _info(source, work.scan())

    def decode(self, path: str | os.PathLike[str], frames: int, max_side: int | None = None) -> Clip:
        """Decode frames as the function `decode` does."""
        settings, start = self.settings, time.monotonic()
        max_side = DEFAULT_MAX_SIDE if max_side is None else max_side
        if not 1 <= frames <= settings.max_frames:
            raise VideoError("bad_request", f"{frames} frames were asked for; 1 to {settings.max_frames} are possible")
        if max_side < MIN_MAX_SIDE:
            message = f"frames of {max_side} pixels were asked for; at least {MIN_MAX_SIDE} are needed"
            raise VideoError("bad_request", message)
        source = check_file(path, settings)
        with self._work(source, start + settings.decode_timeout_s, max_side) as work:
            scan = work.scan()
            info = _info(source, scan)
            order, copies = plan(source, scan, frames, max_side, settings)
            decoder, pictures, times = work.decode(order, decoders_for(scan))
            # Copies of frames are made here, not decoded.
            clip = np.ascontiguousarray(pictures[copies])
        stamps = tuple(round(times[i], 6) for i in copies)
        info = replace(info, decoder=decoder, distinct_frames=len(set(stamps)))
        return Clip(clip, stamps, info, (time.monotonic() - start) * 1000)

    @contextmanager
    def _work(self, source: Source, deadline: float, max_side: int) -> Iterator[_Work]:
        with _scratch() as scratch:
            work = _Work(source, self.settings, deadline, max_side, scratch, self._take())
            try:
                yield work
            finally:
                work.close()

    def _take(self) -> Child | None:
        """Return the child that waits; None if there is none."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None and not spare.alive:
            spare.close()
            return None
        return spare

    def _drop(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None


class _Work:
    """One file's way through the stages; a child goes on to the next stage as long as it succeeds."""

    def __init__(
        self, source: Source, settings: Settings, deadline: float, max_side: int, scratch: Path, child: Child | None
    ) -> None:
        self.source, self.settings, self.deadline, self.scratch, self.child = source, settings, deadline, scratch, child
        # Frames, the one that shows the orientation, and the report.
        self.file_mb = settings.decode_output_mb + (3 * max_side * max_side >> 20) + 16

    def scan(self) -> dict[str, Any]:
        """Return what the file holds (`scan.scan`)."""
        source, settings = self.source, self.settings
        maxima = {name: getattr(settings, name) for name in ("max_side", "max_pixels", "max_duration_s")}
        job = {"path": source.path, "label": source.label, "demuxer": source.demuxer, "maxima": maxima}
        ended = self._stage("scan", job, share=1.0)
        if ended.failure is not None:
            raise _error(ended, source, settings)
        return ended.report

    def decode(self, order: dict[str, Any], decoders: list[str]) -> tuple[str, np.ndarray, list[float]]:
        """Return the decoder that worked, its frames (mapped from the scratch folder) and their times."""
        failures: list[Ended] = []
        width, height = order["size"]
        shape = (len(order["times"]), height, width, 3)
        for decoder in decoders:
            ended = self._stage(decoder, order, 1.0 if decoder == decoders[-1] else _SHARES[decoder])
            if ended.failure is None:
                try:
                    # Mapped, so that a header that lies about the shape allocates nothing.
                    frames = np.load(self.scratch / "frames.npy", mmap_mode="r", allow_pickle=False)
                    times = [float(t) for t in ended.report["times"]]
                except (OSError, ValueError, KeyError, TypeError) as error:
                    ended = Ended("crashed", f"unusable result: {error}")
                else:
                    if frames.shape == shape and frames.dtype == np.uint8 and len(times) == shape[0]:
                        return decoder, frames, times
                    ended = Ended("crashed", f"result of shape {frames.shape}")
                self.close()
            log.info("%s could not decode the file: %s, %s", decoder, ended.failure, ended.detail)
            failures.append(ended)
            if ended.failure == "killed" or time.monotonic() >= self.deadline:
                raise _error(ended, self.source, self.settings)
        worst = min(failures, key=lambda f: _WORST.index(f.failure or "damaged"))
        raise _error(worst, self.source, self.settings)

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def _stage(self, stage: str, job: dict[str, Any], share: float) -> Ended:
        """Do a stage in the child at hand or, after a failure, in a fresh one."""
        wall = (self.deadline - time.monotonic()) * share
        if wall <= 0:
            return Ended("timeout", "no time left")
        settings = self.settings
        try:
            self.child = self.child or Child(settings.child_environment())
        except OSError as error:
            return Ended("unavailable", f"cannot start: {error}")
        limits = Limits(settings.decode_memory_mb, settings.decode_cpu_s, self.file_mb, wall)
        ended = self.child.run(stage, job, limits, self.scratch)
        if ended.failure is not None:
            self.close()
        return ended


def plan(
    source: Source, scan: dict[str, Any], frames: int, max_side: int, settings: Settings
) -> tuple[dict[str, Any], list[int]]:
    """Return the order for a decoder (fields of `order.Order`) and, per returned frame, its place in the order.

    Raises
    ------
    VideoError : output_too_large.
    """
    times, keyframes, duration = scan["times"], scan["keyframes"], scan["duration"]
    chosen = on_screen(times, [times[0] + t for t in bin_centres(duration, frames)])
    reference = times.index(scan["reference_time"]) if scan["reference"] and scan["reference_time"] in times else None
    # The frame by which the orientation is checked comes along.
    indices = sorted({*chosen} if reference is None else {*chosen, reference})
    width, height = fit(scan["width"], scan["height"], max_side)
    size_mb = frames * width * height * 3 / (1 << 20)
    if size_mb > settings.decode_output_mb:
        message = (
            f"{frames} frames of {width} x {height} pixels need {size_mb:.0f} MB; at most {settings.decode_output_mb} "
            "MB are possible: ask for fewer or smaller frames"
        )
        raise VideoError("output_too_large", message)
    before = [bisect_right(keyframes, times[i]) - 1 for i in indices]
    order = {
        "path": source.path,
        "demuxer": source.demuxer,
        "stream": scan["stream"],
        "indices": indices,
        "times": [times[i] for i in indices],
        "anchors": [keyframes[k] if k >= 0 else times[0] for k in before],
        "origin": times[0],
        "total": len(times),
        "coded": scan["coded"],
        "size": (width, height),
        "rotation": scan["rotation"],
        "mirrored": scan["mirrored"],
        "slack": max(0.1, 3 * duration / len(times)),
        "max_pixels": settings.max_pixels,
        "clock": times if scan["counted"] else [],
        "reference": scan["reference"] if reference is not None else "",
        "reference_place": indices.index(reference) if reference is not None else 0,
    }
    place = {index: k for k, index in enumerate(indices)}
    return order, [place[index] for index in chosen]


def decoders_for(scan: dict[str, Any]) -> list[str]:
    """Return the decoders to try, in order.

    decord cannot read AV1 and has no wheels for ARM. Where frames refer across key frames (open groups), it drops
    some after a seek, keeps counting, and returns wrong frames without an error. It turns pictures by itself, but
    knows neither mirrors nor SEI nor Matroska's poses, and needs times on the packets. Which of several video tracks
    decord and OpenCV take is theirs to choose, and they squeeze a picture of another size, so PyAV alone reads these.
    """
    if scan["streams"] > 1 or scan["other_sizes"]:
        return ["pyav"]
    unfit = scan["codec"] == "av1" or not scan["closed"] or scan["turned"] or scan["counted"]
    return ["pyav", "opencv"] if unfit or find_spec("decord") is None else ["decord", "pyav", "opencv"]


@contextmanager
def _scratch() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="sharp-video-", ignore_cleanup_errors=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise VideoError("unavailable", f"videos cannot be decoded now: no temporary folder ({reason})") from None
    with folder as name:
        yield Path(name)


def _info(source: Source, scan: dict[str, Any]) -> VideoInfo:
    count, duration = len(scan["times"]), scan["duration"]
    return VideoInfo(
        container=CONTAINERS[source.demuxer],
        codec=scan["codec"],
        width=scan["width"],
        height=scan["height"],
        duration_s=round(duration, 6),
        fps=round(count / duration, 3) if duration > 0 else 0.0,
        rotation=scan["rotation"],
        frame_count=count,
        mirrored=scan["mirrored"],
        other_sizes=tuple((width, height) for width, height in scan["other_sizes"]),
    )


def _error(ended: Ended, source: Source, settings: Settings) -> VideoError:
    """Return the error for a child's failure. Causes found in the file keep the child's own message."""
    label = source.label
    messages = {
        "timeout": f"decoding {label} takes longer than {settings.decode_timeout_s:g} s; try a shorter or smaller one",
        "cpu": f"decoding {label} takes over {settings.decode_cpu_s} s of processor time; try a smaller one",
        "memory": f"decoding {label} needs more memory than the {settings.decode_memory_mb} MB it may use",
        "crashed": f"{label} is damaged in a way that crashes the decoders; the app goes on",
        "killed": f"the decoder of {label} was killed from outside, most likely because memory ran out; try again",
        "unavailable": "videos cannot be decoded now: the decoder does not start, or the disk is full",
        "damaged": f"{label} is damaged: no decoder could read its pictures",
    }
    kind = ended.failure if ended.failure in ERROR_KINDS else "crashed"
    text = str(ended.report.get("message") or messages.get(kind, messages["damaged"]))
    return VideoError(kind, " ".join(text.split())[:300])
