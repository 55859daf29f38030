"""Real files of every accepted kind become the right frames at the right times, whichever decoder ran."""

import os
from importlib.util import find_spec

import numpy as np
import pytest

from sharp_demo.video import decode, probe, reader
from tests.video.clips import BLUE, GREEN, RED, read_number, write_clip

DECODERS = [name for name in ("decord", "pyav", "opencv") if name != "decord" or find_spec("decord")]
FIRST = DECODERS[0]
OPEN_GROUPS = {"options": {"x265-params": "log-level=none:pools=1:open-gop=1:bframes=3"}, "gop": 6}

FILES = {
    "h264 mp4": ("a.mp4", "h264", {}),
    "h264 mov with sound": ("a.mov", "h264", {"audio": True}),
    "h264 with B-frames": ("a.mp4", "h264", {"options": {"preset": "medium", "bf": "3"}}),
    "h264 10-bit": ("a.mp4", "h264", {"pixels": "yuv420p10le"}),
    "h264 4:4:4 in mkv": ("a.mkv", "h264", {"pixels": "yuv444p"}),
    "h264 fragmented": ("a.mp4", "h264", {"container": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}),
    "hevc": ("a.mp4", "hevc", {}),
    "hevc 10-bit": ("a.mp4", "hevc", {"pixels": "yuv420p10le"}),
    "hevc with open groups": ("a.mkv", "hevc", OPEN_GROUPS),
    "vp8": ("a.webm", "vp8", {}),
    "vp9": ("a.webm", "vp9", {}),
    "vp9 as a browser records it": ("a.webm", "vp9", {"container": {"live": "1"}, "audio": True}),
    "av1 mp4": ("a.mp4", "av1", {}),
    "av1 webm": ("a.webm", "av1", {}),
    "mpeg4 avi": ("a.avi", "mpeg4", {}),
    "mjpeg avi": ("a.avi", "mjpeg", {}),
    "prores": ("a.mov", "prores", {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file(kind, tmp_path, limits):
    name, codec, options = FILES[kind]
    path = write_clip(tmp_path / name, codec, frames=20, fps=10, **options)
    clip = decode(path, 10, limits)
    assert clip.frames.shape == (10, 120, 160, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags["C_CONTIGUOUS"]
    # Ten bins of 0.2 s: their centres fall on frames 1, 3, 5 ...
    assert [read_number(frame) for frame in clip.frames] == list(range(1, 20, 2))
    assert clip.timestamps == pytest.approx([i / 10 for i in range(1, 20, 2)], abs=0.002)
    info = clip.info
    assert (info.codec, info.width, info.height, info.rotation) == (codec, 160, 120, 0)
    assert (info.frame_count, info.distinct_frames) == (20, 10)
    assert info.duration_s == pytest.approx(2.0, abs=0.02)
    assert info.fps == pytest.approx(10, abs=0.1)
    assert clip.ms > 0


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("h264 mp4", FIRST), ("hevc with open groups", "pyav"), ("av1 mp4", "pyav"), ("vp8", FIRST)],
)
def test_the_decoder_that_ran_is_named(kind, decoder, tmp_path, limits):
    name, codec, options = FILES[kind]
    assert decode(write_clip(tmp_path / name, codec, **options), 4, limits).info.decoder == decoder


@pytest.mark.parametrize("decoder", DECODERS)
def test_colours_are_rgb(decoder, h264, limits, only):
    only(decoder)
    frame = decode(h264, 1, limits).frames[0].astype(int)
    for (y, x), colour in {(20, 30): RED, (20, 130): GREEN, (75, 80): BLUE}.items():
        assert np.abs(frame[y, x] - colour).max() <= 6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["varying.mp4", "varying.webm"])
def test_variable_frame_rate_is_sampled_by_time(name, decoder, tmp_path, limits, only):
    only(decoder)
    times = [0, 0.1, 0.15, 0.2, 1.2, 1.3, 2.7, 2.75, 2.8, 4.0]
    path = write_clip(tmp_path / name, "h264" if name.endswith("mp4") else "vp9", frames=10, times=times)
    clip = decode(path, 4, limits)
    # The bins' centres are near 0.5, 1.5, 2.5 and 3.6 s; on screen are the frames of 0.2, 1.3, 1.3 and 2.8 s.
    assert [read_number(frame) for frame in clip.frames] == [3, 5, 5, 8]
    assert clip.timestamps == pytest.approx([0.2, 1.3, 1.3, 2.8], abs=0.002)
    assert clip.info.distinct_frames == 3


@pytest.mark.parametrize("max_side", [None, 80])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "h264"), ("a.mp4", "hevc"), ("a.webm", "vp9"), ("a.avi", "mpeg4")]
)
def test_decoders_agree(name, codec, max_side, tmp_path, limits, only):
    options = {"x265-params": "log-level=none:pools=1:open-gop=0"} if codec == "hevc" else {}
    path = write_clip(tmp_path / name, codec, options=options)
    clips = []
    for decoder in DECODERS:
        only(decoder)
        clips.append(decode(path, 6, limits, max_side=max_side))
        assert clips[-1].info.decoder == decoder
    for clip in clips[1:]:
        assert clip.timestamps == pytest.approx(clips[0].timestamps, abs=0.002)
        difference = np.abs(clip.frames.astype(int) - clips[0].frames)
        assert difference.mean() < 2
        assert np.percentile(difference, 99) < 32


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_groups_that_are_not_closed_are_kept_from_decord(codec, tmp_path, limits):
    # decord drops frames after a seek into such groups and returns later ones in their place.
    options = {"preset": "medium", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "open.mp4", codec, 40, **(OPEN_GROUPS if codec == "hevc" else {"options": options}))
    clip = decode(path, 20, limits)
    assert [read_number(frame) for frame in clip.frames] == list(range(1, 40, 2))
    assert clip.info.decoder == "pyav"


def test_pyav_jumps_over_groups_without_wanted_frames(tmp_path, limits, only):
    for name, codec in (("long.mp4", "h264"), ("long.webm", "vp9")):
        only("pyav")
        path = write_clip(tmp_path / name, codec, frames=200, gop=10)
        clip = decode(path, 5, limits)
        assert [read_number(frame) for frame in clip.frames] == [20, 60, 100, 140, 180]


def test_a_video_with_fewer_frames_than_asked_repeats_them(tmp_path, limits):
    path = write_clip(tmp_path / "three.mp4", frames=3)
    clip = decode(path, 8, limits)
    assert [read_number(frame) for frame in clip.frames] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert clip.timestamps == (0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2)
    assert clip.info.distinct_frames == 3


@pytest.mark.parametrize(("name", "codec"), [("one.mp4", "h264"), ("one.webm", "vp9"), ("one.mp4", "av1")])
def test_a_single_frame(name, codec, tmp_path, limits):
    clip = decode(write_clip(tmp_path / name, codec, frames=1), 4, limits)
    assert clip.timestamps == (0.0,) * 4
    assert clip.info.distinct_frames == clip.info.frame_count == 1
    assert (clip.frames == clip.frames[:1]).all()


@pytest.mark.parametrize(("name", "codec"), [("late.mp4", "h264"), ("late.webm", "vp9")])
def test_time_starts_with_the_first_frame(name, codec, tmp_path, limits):
    path = write_clip(tmp_path / name, codec, times=[5 + i / 10 for i in range(20)])
    clip = decode(path, 10, limits)
    assert clip.timestamps == pytest.approx([i / 10 for i in range(1, 20, 2)], abs=0.002)


def test_frames_arrive_small(tmp_path, limits):
    path = write_clip(tmp_path / "wide.mp4", frames=4, size=(640, 360))
    assert decode(path, 2, limits, max_side=128).frames.shape == (2, 72, 128, 3)
    assert decode(path, 2, limits, max_side=1000).frames.shape == (2, 360, 640, 3)
    assert [read_number(frame) for frame in decode(path, 4, limits, max_side=64).frames] == [0, 1, 2, 3]


def test_full_hd_is_scaled_to_768_by_default(tmp_path, limits):
    path = write_clip(tmp_path / "hd.mp4", frames=2, size=(1920, 1080))
    clip = decode(path, 1, limits)
    assert clip.frames.shape == (1, 432, 768, 3)
    assert (clip.info.width, clip.info.height) == (1920, 1080)


def test_a_cut_off_recording_without_promises_gives_what_is_there(tmp_path, limits):
    data = write_clip(tmp_path / "live.webm", "vp9", frames=100, container={"live": "1"}).read_bytes()
    path = tmp_path / "cut.webm"
    path.write_bytes(data[: len(data) // 2])
    clip = decode(path, 5, limits)
    count = clip.info.frame_count
    assert 20 < count < 80
    assert [read_number(frame) for frame in clip.frames] == [int((k + 0.5) * count / 5) for k in range(5)]


def test_the_same_file_gives_the_same_clip(h264, limits):
    first, second = decode(h264, 6, limits), decode(h264, 6, limits)
    assert (first.frames == second.frames).all()
    assert (first.timestamps, first.info) == (second.timestamps, second.info)


def test_probe_says_what_decode_says(h264, limits):
    info = probe(h264, limits)
    assert info == probe(str(h264), limits)
    assert (info.container, info.codec, info.width, info.height) == ("mp4", "h264", 160, 120)
    assert (info.frame_count, info.decoder, info.distinct_frames) == (20, "", 0)
    decoded = decode(h264, 4, limits).info
    assert (decoded.duration_s, decoded.fps) == (info.duration_s, info.fps) == (2.0, 10.0)


def test_without_decord_pyav_leads(h264, limits, monkeypatch):
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    assert decode(h264, 4, limits).info.decoder == "pyav"


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling policies")
def test_writing_av1_leaves_the_tests_ordinary_processes(tmp_path):
    """As root, SVT-AV1 makes its caller a real-time thread, which all children inherit: the machine stalls."""
    before = os.sched_getscheduler(0)
    write_clip(tmp_path / "a.mp4", "av1", 4)
    assert os.sched_getscheduler(0) == before
