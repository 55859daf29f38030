"""What an MP4 or MOV says about a track and FFmpeg does not pass on. Runs only in the child process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

_MAX_INDEX = 64 << 20
_MAX_BOXES = 20_000

Box = tuple[bytes, memoryview]


def presentation_end(path: str, track: int) -> float | None:
    """Return when a track ends, in seconds on the presentation clock, or None where the file does not say.

    The edit list says it; sample durations do not, since they are distances in decoding order. Without an edit list
    it is the length of the media, which then begins at 0.
    """
    index = _read_index(path)
    if index is None:
        return None
    scale = next((_number(body, 12, 20) for name, body in _boxes(index) if name == b"mvhd"), 0)
    for name, body in _boxes(index):
        if name != b"trak":
            continue
        inside = dict(_boxes(body))
        if _number(inside.get(b"tkhd", body[:0]), 12, 20) != track:
            continue
        edits = dict(_boxes(inside.get(b"edts", body[:0]))).get(b"elst", body[:0])
        ticks = sum(_edits(edits))
        if ticks and scale:
            return ticks / scale
        media = dict(_boxes(inside.get(b"mdia", body[:0]))).get(b"mdhd", body[:0])
        media_scale, length = _number(media, 12, 20), _number(media, 16, 24, wide=True)
        return length / media_scale if media_scale and length else None
    return None


def _read_index(path: str) -> memoryview | None:
    """Return the content of the moov box."""
    with open(path, "rb") as file:
        for _ in range(_MAX_BOXES):
            start, header = file.tell(), file.read(16)
            if len(header) < 8:
                return None
            length, used = int.from_bytes(header[:4], "big"), 8
            if length == 1:
                length, used = int.from_bytes(header[8:16], "big"), 16
            if header[4:8] == b"moov" and used <= length <= _MAX_INDEX:
                file.seek(start + used)
                return memoryview(file.read(length - used))
            if length < used:
                return None
            file.seek(start + length)
    return None


def _boxes(content: memoryview) -> Iterator[Box]:
    at = 0
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if length < 8:
            return
        yield bytes(content[at + 4 : at + 8]), content[at + 8 : at + length]
        at += length


def _number(box: memoryview, at: int, at_if_wide: int, wide: bool = False) -> int:
    """Return a number of a box whose version 1 has wider times; `wide`: the number itself is one of them."""
    version = box[0] if len(box) else 0
    start = at_if_wide if version == 1 else at
    return int.from_bytes(box[start : start + (8 if wide and version == 1 else 4)], "big")


def _edits(box: memoryview) -> Iterator[int]:
    """Yield the length of each edit in the movie's time scale (ISO 14496-12, 8.6.6)."""
    size, width = (20, 8) if len(box) and box[0] == 1 else (12, 4)
    for at in islice(range(8, len(box) - size + 1, size), _number(box, 4, 4)):
        yield int.from_bytes(box[at : at + width], "big")
