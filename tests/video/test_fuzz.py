"""Damaged files and files made to hurt give a clip or a typed error, never anything else, and soon.

`tools/fuzz_video.py` runs the same cases and writes the table of docs/security.md.
"""

import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from sharp_demo.errors import VideoError
from sharp_demo.settings import Settings
from sharp_demo.video import ERROR_KINDS, Clip, decode, sandbox
from tests.video.clips import with_orientation_sei, without_frames, write_clip, write_sound
from tests.video.test_refusals import FFCONCAT, HLS, SVG, assert_fit_for_users

SOURCES = {
    "h264": "a.mp4",
    "hevc": "a.mp4",
    "vp9": "a.webm",
    "av1": "a.mp4",
    "mpeg4": "a.avi",
}
# Clips whose damage is aimed at one kind of element: file, codec, what is looked for, how many bytes of it are hit.
AIMED = {
    "display matrix": ("a.mp4", "h264", (b"tkhd", b"mvhd", b"elst"), 92),
    "orientation SEI, H.264": ("a.mp4", "h264", (b"\x06\x2f",), 12),
    "orientation SEI, HEVC": ("a.mp4", "hevc", (b"\x4e\x01\x2f",), 12),
    "Matroska elements": (
        "a.mkv",
        "h264",
        # EBML header, Segment, SeekHead, Info, Tracks, TrackEntry, Video, Projection, its poses, Cues, Cluster, Void.
        (
            b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b",
            b"\xae", b"\xe0", b"\x76\x70", b"\x76\x71", b"\x76\x73", b"\x76\x74", b"\x76\x75", b"\x1c\x53\xbb\x6b",
            b"\x1f\x43\xb6\x75", b"\xec",
        ),
        16,
    ),
}  # fmt: skip
CHUNKS = (b"moov", b"trak", b"mdia", b"stbl", b"stts", b"stsz", b"stco", b"stsc", b"tkhd", b"mdat", b"LIST", b"idx1")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy: flipped bytes, a cut, a wrong size field, a hole, or a repeated piece."""
    damaged = bytearray(data)
    how = rng.choice(["flip", "flip header", "cut", "size", "hole", "repeat"])
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how == "size":
        found = [at for name in CHUNKS if (at := data.find(name)) >= 4]
        at = rng.choice(found) - 4 if found else rng.randrange(min(len(data), 200))
        damaged[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\0\0\0\1", rng.randbytes(4)])
    elif how == "hole":
        start, size = rng.randrange(len(data)), rng.randrange(1, 2000)
        damaged[start : start + size] = bytes(len(damaged[start : start + size]))
    elif how == "repeat":
        start, size = rng.randrange(len(data)), rng.randrange(1, 500)
        damaged[start:start] = data[start : start + size]
    else:
        reach = min(len(data), 300) if how == "flip header" else len(data)
        for _ in range(rng.choice([1, 4, 16, 64])):
            damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def mutate_aimed(data: bytes, rng: random.Random, marks: tuple[bytes, ...], reach: int) -> bytes:
    """Return a copy with one element's content damaged: noise, extreme numbers, flipped bits, or another element's."""
    found = [(at, mark) for mark in marks if (at := data.find(mark)) >= 0]
    at, mark = rng.choice(found)
    start, damaged = at + len(mark), bytearray(data)
    end = min(start + reach, len(data))
    how = rng.choice(["noise", "extreme", "flip", "swap"])
    if how == "noise":
        damaged[start:end] = rng.randbytes(end - start)
    elif how == "extreme":
        for place in range(start, end - 3, 4):
            if rng.random() < 0.5:
                number = rng.choice((0, 1, 0x10000, 0xFFFF0000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000))
                damaged[place : place + 4] = number.to_bytes(4, "big")
    elif how == "swap":
        other, name = rng.choice(found)
        damaged[start:end] = data[other + len(name) :][: end - start].ljust(end - start, b"\0")
    else:
        for _ in range(rng.choice([1, 4, 16])):
            damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def write_source(kind: str, folder: Path) -> Path:
    """Write the clip that is damaged."""
    if kind in SOURCES:
        return write_clip(folder / SOURCES[kind], kind, frames=24)
    name, codec, _, _ = AIMED[kind]
    path = write_clip(folder / name, codec, frames=24, rotation=90, mirrored=True)
    if "SEI" in kind:
        path = with_orientation_sei(path, path.with_name(f"sei{path.suffix}"), codec, 90, False)
    return path


def copies(kind: str, whole: bytes, count: int) -> Iterator[bytes]:
    """Yield damaged copies of a clip, the same ones every time: of a codec in `SOURCES`, or of a kind in `AIMED`."""
    rng = random.Random(f"{kind} 1")
    for _ in range(count):
        yield mutate(whole, rng) if kind in SOURCES else mutate_aimed(whole, rng, *AIMED[kind][2:])


def clip_or_error(path: Path, limits: Settings) -> Clip | VideoError:
    try:
        return decode(path, 6, limits)
    except VideoError as error:
        return error


def check(outcome: Clip | VideoError, seconds: float) -> None:
    """Assert what holds for every file, whatever is wrong with it."""
    assert seconds < 35
    if isinstance(outcome, VideoError):
        assert outcome.kind in ERROR_KINDS
        assert_fit_for_users(str(outcome))
        return
    assert outcome.frames.shape[0] == len(outcome.timestamps) == 6
    assert outcome.frames.dtype == np.uint8
    assert outcome.frames.shape[1] <= 768
    assert outcome.frames.shape[2] <= 768
    assert list(outcome.timestamps) == sorted(outcome.timestamps)


def run(kind: str, count: int, folder: Path, limits: Settings) -> list[tuple[str, float]]:
    """Decode `count` damaged copies; return (outcome, seconds) of each, outcome "decoded" or a kind of error."""
    path = write_source(kind, folder)
    whole = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = []
    for number, data in enumerate(copies(kind, whole, count)):
        path.write_bytes(data)
        start = time.monotonic()
        outcome = clip_or_error(path, limits)
        seconds = time.monotonic() - start
        try:
            check(outcome, seconds)
        except AssertionError as error:
            raise AssertionError(f"damaged copy {number}: {error}") from error
        outcomes.append((outcome.kind if isinstance(outcome, VideoError) else "decoded", seconds))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    return outcomes


def write_grey(path: Path, side: int) -> Path:
    """One grey H.264 picture of side x side pixels, without the RGB copy that `write_clip` needs."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        grey = np.full((side * 3 // 2, side), 128, np.uint8)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        output.mux(stream.encode())
    return path


def write_tracks(path: Path, tracks: int) -> Path:
    """One file with many video tracks of five frames each."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("mpeg4", rate=10) for _ in range(tracks)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            for stream in streams:
                picture = np.full((72, 64), 128, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        for stream in streams:
            output.mux(stream.encode())
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# What a file is, how it is made, and how it must end.
HOSTILE: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "8192 x 8192 pixels in few bytes": ("a.mp4", lambda path: write_grey(path, 8192), "too_wide"),
    # Above about 16,250 FFmpeg itself refuses to make such a picture, and to read it.
    "16000 x 16000 pixels in few bytes": ("a.mp4", lambda path: write_grey(path, 16000), "too_wide"),
    "one hour at 1 frame a second": ("a.mp4", lambda path: write_clip(path, frames=3600, fps=1), "too_long"),
    "1000 frames a second": ("a.mp4", lambda path: write_clip(path, frames=5000, fps=1000), "decoded"),
    "no frame at all": (
        "a.mp4",
        lambda path: write_bytes(path, without_frames(write_clip(path).read_bytes())),
        "no_frames",
    ),
    "sound only": ("a.mp4", write_sound, "no_video_track"),
    "100 video tracks": ("a.mp4", lambda path: write_tracks(path, 100), "decoded"),
    "HLS playlist named .mp4": ("a.mp4", lambda path: write_bytes(path, HLS.encode()), "not_video"),
    "ffconcat script named .mp4": ("a.mp4", lambda path: write_bytes(path, FFCONCAT.encode()), "not_video"),
    "SVG named .mp4": ("a.mp4", lambda path: write_bytes(path, SVG.encode()), "not_video"),
    "AV1": ("a.mp4", lambda path: write_clip(path, "av1"), "decoded"),
    "HEVC, 10 bits": ("a.mp4", lambda path: write_clip(path, "hevc", pixels="yuv420p10le"), "decoded"),
    "turned by 90": ("a.mp4", lambda path: write_clip(path, rotation=90), "decoded"),
    "turned by 180": ("a.mp4", lambda path: write_clip(path, rotation=180), "decoded"),
    "turned by 270": ("a.mp4", lambda path: write_clip(path, rotation=270), "decoded"),
    "variable frame rate": (
        "a.mkv",
        lambda path: write_clip(path, frames=6, times=[0, 0.1, 0.2, 1.5, 1.6, 4]),
        "decoded",
    ),
}


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Peak memory in MB of every decoding child that wrote a report."""
    seen: list[float] = []

    real = sandbox.Child.run

    def measured(*args):
        ended = real(*args)
        seen.append(ended.report.get("peak_mb", 0.0))
        return ended

    monkeypatch.setattr(sandbox.Child, "run", measured)
    return seen


@pytest.mark.parametrize("codec", SOURCES)
def test_a_sample_of_damaged_files(codec, tmp_path, limits):
    run(codec, 12, tmp_path, limits)


@pytest.mark.parametrize("kind", AIMED)
def test_a_sample_of_damaged_elements(kind, tmp_path, limits):
    run(kind, 4, tmp_path, limits)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("codec", [*SOURCES, *AIMED])
def test_two_hundred_damaged_files(codec, tmp_path, limits, peaks):
    assert len(run(codec, 200, tmp_path, limits)) == 200
    assert max(peaks) < 2000


@pytest.mark.full
@pytest.mark.parametrize("what", HOSTILE)
def test_files_made_to_hurt(what, tmp_path, limits, peaks):
    name, write, expected = HOSTILE[what]
    path = write(tmp_path / name)
    start = time.monotonic()
    outcome = clip_or_error(path, limits)
    check(outcome, time.monotonic() - start)
    assert (outcome.kind if isinstance(outcome, VideoError) else "decoded") == expected
    assert max(peaks, default=0) < 2000
