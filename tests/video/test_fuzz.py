"""Damaged files give a clip or a typed error, never anything else, and soon."""

import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from sharp_demo.errors import VideoError
from sharp_demo.settings import Settings
from sharp_demo.video import ERROR_KINDS, Clip, decode
from tests.video.clips import write_clip
from tests.video.test_refusals import assert_fit_for_users

SOURCES = {
    "h264": "a.mp4",
    "hevc": "a.mp4",
    "vp9": "a.webm",
    "av1": "a.mp4",
    "mpeg4": "a.avi",
}
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


def clip_or_error(path: Path, limits: Settings) -> Clip | VideoError:
    try:
        return decode(path, 6, limits)
    except VideoError as error:
        return error


def run(codec: str, count: int, folder: Path, limits: Settings) -> None:
    name = SOURCES[codec]
    path = folder / name
    whole = write_clip(path, codec, frames=24).read_bytes()
    rng = random.Random(f"{codec} 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path.write_bytes(mutate(whole, rng))
        start = time.monotonic()
        outcome = clip_or_error(path, limits)
        assert time.monotonic() - start < 35, number
        if isinstance(outcome, VideoError):
            assert outcome.kind in ERROR_KINDS, number
            assert_fit_for_users(str(outcome))
        else:
            clip = outcome
            assert clip.frames.shape[0] == len(clip.timestamps) == 6
            assert clip.frames.dtype == np.uint8
            assert clip.frames.shape[1] <= 768
            assert clip.frames.shape[2] <= 768
            assert list(clip.timestamps) == sorted(clip.timestamps)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("codec", SOURCES)
def test_a_sample_of_damaged_files(codec, tmp_path, limits):
    run(codec, 12, tmp_path, limits)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("codec", SOURCES)
def test_a_thousand_damaged_files(codec, tmp_path, limits):
    run(codec, 200, tmp_path, limits)
