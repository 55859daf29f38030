"""Every orientation comes out upright, whatever states it, from every decoder that is allowed to read the file."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sharp_demo.errors import VideoError
from sharp_demo.video import decode, probe
from sharp_demo.video.order import DecodeError, Order, Taken, check_filled
from sharp_demo.video.orientation import ALL, THUMB, UPRIGHT, is_telling, looks_otherwise, of_matrix, thumb, upright
from sharp_demo.video.reader import decoders_for
from sharp_demo.video.scan import scan
from tests.video.clips import numbered, read_number, shown, with_orientation_sei, write_clip
from tests.video.test_decode import DECODERS

MAXIMA = {"max_side": 4096, "max_pixels": 4096 * 4096, "max_duration_s": 120}
SOURCES = ("a.mp4", "a.mov", "a.mkv", "sei.mp4", "sei.mkv")
CODECS = ("h264", "hevc")
ABLE = ("pyav", "opencv")  # decord turns by itself, so only upright files are its

# Each source, codec, decoder and orientation at least once, and every orientation by matrix and by SEI.
SAMPLE = [
    (SOURCES[k % 3 if k < 8 else 3 + k % 2], CODECS[k // 2 % 2], ABLE[(k + k // 8) % 2], ALL[k % 8]) for k in range(16)
]
MATRIX = [(s, c, d, o) for s in SOURCES for c in CODECS for d in ABLE for o in ALL]


def write(folder: Path, name: str, codec: str, orientation: tuple[int, bool]) -> Path:
    rotation, mirrored = orientation
    if not name.startswith("sei"):
        return write_clip(folder / name, codec, 8, rotation=rotation, mirrored=mirrored)
    plain = write_clip(folder / "plain.mp4", codec, 8)
    return with_orientation_sei(plain, folder / name, codec, rotation, mirrored)


def assert_upright(frames: np.ndarray, numbers: list[int], orientation: tuple[int, bool]) -> None:
    for frame, number in zip(frames, numbers, strict=True):
        expected = shown(numbered(number), *orientation)
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 8


def check(name, codec, decoder, orientation, folder, limits, only):
    path = write(folder, name, codec, orientation)
    only(decoder)
    clip = decode(path, 2, limits)
    assert_upright(clip.frames, [2, 6], orientation)
    assert (clip.info.decoder, clip.info.rotation, clip.info.mirrored) == (decoder, *orientation)
    assert (clip.info.width, clip.info.height) == ((120, 160) if orientation[0] % 180 else (160, 120))


@pytest.mark.parametrize(("name", "codec", "decoder", "orientation"), SAMPLE)
def test_a_sample_of_orientations(name, codec, decoder, orientation, tmp_path, limits, only):
    check(name, codec, decoder, orientation, tmp_path, limits, only)


@pytest.mark.full
@pytest.mark.parametrize(("name", "codec", "decoder", "orientation"), MATRIX)
def test_all_orientations(name, codec, decoder, orientation, tmp_path, limits, only):
    check(name, codec, decoder, orientation, tmp_path, limits, only)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("codec", CODECS)
def test_all_sources_are_read_alike(name, codec, tmp_path):
    demuxer = "matroska" if name.endswith("mkv") else "mov"
    for orientation in ALL:
        found = scan(str(write(tmp_path, name, codec, orientation)), "it", demuxer, MAXIMA)
        assert (found["rotation"], found["mirrored"]) == orientation
        assert ("decord" in decoders_for(found)) == (orientation == UPRIGHT and "decord" in DECODERS)


def test_only_an_upright_file_is_for_decord(tmp_path, limits):
    assert decode(write_clip(tmp_path / "plain.mkv", frames=4), 2, limits).info.decoder == DECODERS[0]
    assert decode(write_clip(tmp_path / "turned.mkv", frames=4, rotation=90), 2, limits).info.decoder == "pyav"


def pose(path: Path, roll: float, second: bytes, degrees: float) -> None:
    """Set ProjectionPoseRoll and one other angle (RFC 9559, 5.1.4.1.28.41.3) in a mirrored Matroska file.

    FFmpeg writes roll and yaw for those; the yaw is made another element where that is wanted.
    """
    data = bytearray(path.read_bytes())
    for element, name, angle in ((ROLL, ROLL, roll), (YAW, second, degrees)):
        at = data.index(element)
        width = data[at + 2] & 15
        data[at : at + 3 + width] = name + data[at + 2 : at + 3] + struct.pack(">f" if width == 4 else ">d", angle)
    path.write_bytes(data)


YAW, PITCH, ROLL = b"\x76\x73", b"\x76\x74", b"\x76\x75"


@pytest.mark.parametrize(
    ("roll", "second", "degrees", "expected"),
    [
        (-90, YAW, 0, (270, False)),
        (-180, YAW, 0, (180, False)),
        (270, YAW, 0, (270, False)),
        (3, YAW, 0, (0, False)),
        (60, YAW, 0, (90, False)),
        (0, YAW, 180, (0, True)),
        (90, YAW, -180, (90, True)),
        (90, YAW, 20, UPRIGHT),
        (90, PITCH, 10, UPRIGHT),
        (float("nan"), YAW, 0, UPRIGHT),
    ],
)
def test_poses_in_matroska(roll, second, degrees, expected, tmp_path):
    path = write_clip(tmp_path / "posed.mkv", frames=2, mirrored=True, rotation=90)
    pose(path, roll, second, degrees)
    found = scan(str(path), "it", "matroska", MAXIMA)
    assert (found["rotation"], found["mirrored"]) == expected


def test_of_two_sources_the_stream_wins(tmp_path, limits):
    container = write_clip(tmp_path / "turned.mp4", frames=2, rotation=180)
    both = with_orientation_sei(container, tmp_path / "both.mp4", "h264", 90, True)
    with_container = probe(both, limits)
    assert (with_container.rotation, with_container.mirrored) == (90, True)
    # A message that asks for nothing leaves it to the container.
    idle = with_orientation_sei(container, tmp_path / "idle.mp4", "h264", 0, False)
    assert probe(idle, limits).rotation in (0, 180)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), (0, False)),
        ((0, -3, 0, 3, 0, 0, 500, 0, 1), (90, False)),
        ((-1, 0, 0, 0, 1, 0, 160, 0, 1), (0, True)),
        ((1, 0, 0, 0, -1, 0, 0, 120, 1), (180, True)),
        ((0, 1, 0, 1, 0, 0, 0, 0, 1), (90, True)),
        ((0, -1, 0, -1, 0, 0, 0, 0, 1), (270, True)),
        ((9, -2, 0, 2, 9, 0, 0, 0, 1), (0, False)),
        ((1, -1, 0, 1, 1, 0, 0, 0, 1), (0, False)),
        ((0,) * 9, (0, False)),
    ],
)
def test_orientation_of_a_matrix(matrix, expected):
    assert of_matrix(matrix) == expected


def small(image: np.ndarray) -> bytes:
    return np.round(thumb(image)).astype(np.uint8).tobytes()


@pytest.mark.parametrize("orientation", ALL)
def test_the_check_tells_all_orientations_apart(orientation):
    stored = numbered(77, (320, 180))
    for other in ALL:
        seen = looks_otherwise(upright(stored, other), small(stored), orientation)
        assert seen == (None if other == orientation else other)


def test_the_check_sees_a_picture_squeezed_into_the_size_of_a_turned_one():
    stored = numbered(77)
    squeezed = stored.repeat(4, axis=0)[::3].repeat(3, axis=1)[:, ::4]
    assert squeezed.shape == (160, 120, 3)
    assert looks_otherwise(squeezed, small(stored), (90, False)) == UPRIGHT


def test_the_check_does_not_judge_what_it_cannot_tell():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (120, 160, 3), np.uint8)
    flat = np.full((120, 160, 3), 90, np.uint8)
    assert looks_otherwise(noise, small(numbered(3)), (90, False)) is None
    assert looks_otherwise(flat, small(flat), (90, False)) is None
    assert thumb(noise[:3, :5]).shape == (THUMB, THUMB, 3)
    assert not is_telling(small(flat))
    assert is_telling(small(numbered(3)))
    symmetric = np.zeros((120, 160, 3), np.uint8)
    symmetric[:, :80] = 255  # turned by 180 and mirrored up to down it looks the same
    assert not is_telling(small(symmetric))


def test_a_decoder_that_turns_by_itself_is_noticed():
    stored = numbered(1)
    order = Order(
        path="", demuxer="mov", stream=0, indices=[0], times=[0.0], anchors=[0.0], origin=0.0, total=1,
        coded=(160, 120), size=(120, 160), rotation=90, mirrored=False, slack=0.1, max_pixels=1e6, clock=[],
        reference=small(stored).hex(), reference_place=0,
    )  # fmt: skip
    taken = Taken(order)
    taken.offer(0.0, lambda: stored)
    check_filled(order, taken.frames, taken.times)
    with pytest.raises(DecodeError, match="stand as if"):
        check_filled(order, taken.frames[:, ::-1, ::-1], taken.times)
    check_filled(replace(order, reference=""), taken.frames[:, ::-1, ::-1], taken.times)


@pytest.mark.skipif("decord" not in DECODERS, reason="decord has no wheel for this system")
@pytest.mark.parametrize("orientation", [(0, True), (90, True)])
def test_decord_with_a_mirrored_file_is_a_failure_and_not_a_wrong_picture(orientation, tmp_path, limits, only):
    only("decord")
    path = write_clip(tmp_path / "selfie.mp4", frames=4, rotation=orientation[0], mirrored=orientation[1])
    with pytest.raises(VideoError) as refused:
        decode(path, 2, limits)
    assert refused.value.kind == "damaged"


def test_after_a_dark_beginning_a_later_picture_is_kept_for_the_check(tmp_path):
    frames = [np.zeros((120, 160, 3), np.uint8)] * 16 + [numbered(i) for i in range(8)]
    path = write_clip(tmp_path / "dark.mp4", frames=frames, rotation=90)
    found = scan(str(path), "it", "mov", MAXIMA)
    assert found["reference_time"] == pytest.approx(1.6)
    assert is_telling(bytes.fromhex(found["reference"]))
    assert read_number(numbered(5)) == 5
