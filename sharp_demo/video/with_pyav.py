"""Second decoder, and the first for AV1: PyAV, which bundles a current FFmpeg. Runs only in the child process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from sharp_demo.video.checks import CONTAINERS
from sharp_demo.video.order import THREADS, Order, Taken

# Only local files, only accepted containers: nothing in a file may make FFmpeg open another one or the network.
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
# What PyAV raises on damage; out of memory is among the first, but says nothing about the file.
BROKEN = (FFmpegError, ValueError, LookupError)


def open_container(path: str, demuxer: str) -> Any:
    """Open a file by its sniffed demuxer; metadata that is not UTF-8 is no reason to fail."""
    return av.open(path, format=demuxer, options=OPEN_OPTIONS, metadata_errors="ignore")


def video_streams(container: Any) -> list[Any]:
    """Return the video streams that are not cover pictures."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def chosen(streams: list[Any]) -> Any:
    """Return the stream to read: the first one that the file flags as its default, else the first."""
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def decoder_options(max_pixels: float) -> dict[str, str]:
    """Return options that make FFmpeg refuse pictures larger than the container admits to (plus coding margins)."""
    return {"max_pixels": str(int(max_pixels * 1.25))}


def readable(items: Iterator[Any]) -> Iterator[Any]:
    """Yield packets or frames until they end or break off."""
    while True:
        try:
            item = next(items, None)
        except MemoryError:
            raise
        except BROKEN:
            return
        if item is None:
            return
        yield item


def pictures(packet: Any) -> list[Any]:
    """Return the frames a packet completes; none when it is damaged."""
    try:
        return packet.decode()
    except MemoryError:
        raise
    except BROKEN:
        return []


def decode(order: Order) -> tuple[np.ndarray, list[float]]:
    """Return frames uint8 [N, H, W, 3] and their times on the container's clock.

    Jumps over key-frame groups that hold no wanted frame, always forward; reads a file whose pictures carry no times
    front to back, and counts.
    """
    taken = Taken(order)
    with open_container(order.path, order.demuxer) as container:
        stream = container.streams[order.stream]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        stream.codec_context.options = decoder_options(order.max_pixels)
        if order.clock:
            _count(container, stream, order, taken)
            return taken.frames, taken.times
        reached = order.origin
        while not taken.full:
            if order.anchors[taken.count] > reached:
                _seek(container, stream, order.anchors[taken.count])
            reached = _take_group(container, stream, order, taken, reached)
    return taken.frames, taken.times


def _count(container: Any, stream: Any, order: Order, taken: Taken) -> None:
    frames = (frame for packet in readable(container.demux(stream)) for frame in pictures(packet))
    for time, frame in zip(order.clock, frames, strict=False):
        taken.offer(time, partial(_picture, frame, order))
        if taken.full:
            return
    taken.finish()


def _take_group(container: Any, stream: Any, order: Order, taken: Taken, reached: float) -> float:
    """Decode until the next wanted frame lies in a later group or the file ends; return the time reached."""
    before = taken.count
    for packet in readable(container.demux(stream)):
        for frame in pictures(packet):
            if frame.time is None:
                continue
            reached = frame.time
            taken.offer(reached, partial(_picture, frame, order))
            if taken.full or (taken.count > before and order.anchors[taken.count] > reached):
                return reached
    taken.finish()
    return reached


def _seek(container: Any, stream: Any, time: float) -> None:
    """Go to the key frame at `time`; a container without an index may refuse, then reading simply goes on."""
    try:
        container.seek(round(time / stream.time_base), stream=stream, backward=True)
    except BROKEN:
        return


def _picture(frame: Any, order: Order) -> np.ndarray:
    """Return a frame, as it is stored, in the size ordered; one of another shape than the first gets black bars."""
    width, height = order.stored
    across, down = frame.width * width / order.coded[0], frame.height * height / order.coded[1]
    scale = min(width / across, height / down)
    inner = max(round(across * scale), 1), max(round(down * scale), 1)
    image = frame.to_ndarray(format="rgb24", width=inner[0], height=inner[1], interpolation="BICUBIC")
    if inner == (width, height):
        return image
    framed = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    framed[top : top + inner[1], left : left + inner[0]] = image
    return framed
