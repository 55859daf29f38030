"""What can be said about a file before any decoder touches it, and the limits on what a probe finds.

Only the standard library and a few header bytes: safe in the parent process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sharp_demo.errors import VideoError

if TYPE_CHECKING:
    from sharp_demo.settings import Settings

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores")
CONTAINERS = {"mov": "mp4", "matroska": "mkv", "avi": "avi"}  # FFmpeg's demuxer -> our name
ACCEPTED = "MP4, MOV, WebM, MKV or AVI"

# More than 1,000 frames a second over the accepted two minutes.
MAX_PACKETS = 150_000

# A file may lack this share of what its headers promise: a recording that lost its last instants still plays.
_TOLERATED_LOSS = 0.02
_MAX_BOXES = 20_000
_QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PICTURE_BRANDS = (b"heic", b"heix", b"mif1", b"avif")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_OTHERS = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "an ffconcat script"),
    (b"GIF8", "a GIF picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"OggS", "an Ogg file"),
    (b"FLV\x01", "a Flash video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"ID3", "an MP3 file"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
)


@dataclass(frozen=True)
class Source:
    """A regular file that looks like a video: absolute path, name fit for messages, FFmpeg demuxer."""

    path: str
    label: str
    demuxer: str


def check_file(path: str | os.PathLike[str], settings: Settings) -> Source:
    """Return a file that is there, regular, neither empty nor too big, and a whole container.

    Raises
    ------
    VideoError : missing, not_a_file, unreadable, empty, too_big, not_video, truncated.
    """
    label = _label(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise VideoError("missing", f"there is no file {label}") from None
    except OSError as error:
        raise _unreadable(label, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("not_a_file", f"{label} is not a file but a folder, device or pipe")
    if status.st_size == 0:
        raise VideoError("empty", f"{label} is empty (0 bytes)")
    size_mb = status.st_size / 1e6
    if size_mb > settings.max_upload_mb:
        message = f"{label} has {size_mb:.4g} MB; at most {settings.max_upload_mb:g} MB are accepted"
        raise VideoError("too_big", message)
    try:
        with open(path, "rb") as file:
            demuxer = _sniff(file.read(512), label)
            _check_whole(file, status.st_size, demuxer, label)
    except OSError as error:
        raise _unreadable(label, error) from None
    return Source(os.path.abspath(path), label, demuxer)


def check_stream(codec: str, width: int, height: int, duration: float, label: str, maxima: dict[str, float]) -> None:
    """Raise `VideoError` when a video stream is over the limits; `maxima` has max_side, max_pixels, max_duration_s."""
    if codec not in CODECS:
        raise unsupported(codec, label)
    if max(width, height) > maxima["max_side"]:
        message = f"{label} is {width} x {height} pixels; the longest side may be {maxima['max_side']:.0f}"
        raise VideoError("too_wide", message)
    if width * height > maxima["max_pixels"]:
        message = (
            f"{label} is {width} x {height} = {width * height:,} pixels; a frame may have {maxima['max_pixels']:,.0f}"
        )
        raise VideoError("too_many_pixels", message)
    if duration > maxima["max_duration_s"]:
        message = f"{label} plays {duration:.1f} s; at most {maxima['max_duration_s']:g} s are accepted"
        raise VideoError("too_long", message)


def unsupported(codec: str, label: str) -> VideoError:
    """Return the error for a codec that is not accepted."""
    message = f"{label} is coded as {codec[:40]}; accepted codecs are {', '.join(CODECS)}"
    return VideoError("unsupported_codec", message)


def _label(path: str | os.PathLike[str]) -> str:
    name = Path(os.fspath(path)).name
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) > 60:
        name = f"{name[:40]}...{name[-15:]}"
    return f"'{name}'"


def _unreadable(label: str, error: OSError) -> VideoError:
    return VideoError("unreadable", f"{label} cannot be opened: {error.strerror or type(error).__name__}")


def _sniff(head: bytes, label: str) -> str:
    """Return FFmpeg's demuxer for the first bytes of an accepted container."""
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise VideoError("not_video", f"{label} is a HEIC or AVIF picture, not a video; accepted are {ACCEPTED}")
    if head[4:8] == b"ftyp" or head[4:8] in _QUICKTIME_BOXES:
        return "mov"
    if head.startswith(_EBML):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    raise VideoError("not_video", f"{label} is {_guess(head)}, not a video; accepted are {ACCEPTED}")


def _guess(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, name in _OTHERS:
        if text.startswith(magic):
            return name
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return "an MPEG transport stream"
    if text[:1] == b"<":
        return "an SVG picture" if b"<svg" in text else "a web page or XML file"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text file"
    return "of an unknown kind"


def _check_whole(file: BinaryIO, size: int, demuxer: str, label: str) -> None:
    if demuxer == "mov":
        promised, has_index = _mov_promise(file, size)
    elif demuxer == "matroska":
        promised, has_index = _matroska_promise(file), True
    else:
        file.seek(4)
        promised, has_index = int.from_bytes(file.read(4), "little") + 8, True
    if size < promised * (1 - _TOLERATED_LOSS):
        message = f"{label} is cut off: {size:,} of the {promised:,} bytes its header promises are there"
        raise VideoError("truncated", message)
    if not has_index:
        message = f"{label} is cut off or was never finished: its index (the moov box) is missing"
        raise VideoError("truncated", message)


def _mov_promise(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Return the bytes the top-level boxes promise, and whether an index can be there.

    A box header that makes no sense ends the walk with the benefit of the doubt: the probe will judge.
    """
    end, has_index = 0, False
    for start, length, name in _boxes(file, size):
        if length < 8:
            return size, True
        has_index |= name == b"moov"
        end = start + length
    return end, has_index


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, length, type) of the top-level boxes (ISO 14496-12, 4.2)."""
    start = 0
    for _ in range(_MAX_BOXES):
        if start + 8 > size:
            return
        file.seek(start)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - start
        yield start, length, header[4:8]
        if length < 8:
            return
        start += length
    yield start, 0, b""


def _matroska_promise(file: BinaryIO) -> int:
    """Return where the Segment says it ends, 0 when it does not say (live recordings; RFC 8794, 6.2)."""
    file.seek(4)
    header_size, used = _vint(file.read(8))
    start = 4 + used + header_size
    file.seek(start)
    segment = file.read(12)
    if not segment.startswith(_SEGMENT):
        return 0
    length, used = _vint(segment[4:])
    return start + 4 + used + length if length else 0


def _vint(data: bytes) -> tuple[int, int]:
    """Return the value and length in bytes of an EBML variable-size integer; value 0 stands for unknown."""
    if not data or data[0] == 0:
        return 0, 1
    length = 9 - data[0].bit_length()
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), length
