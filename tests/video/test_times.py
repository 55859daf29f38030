"""Times are those of presentation, of the track that is to be read, and pictures keep their shape."""

import av
import numpy as np
import pytest

from sharp_demo.video import decode, probe
from sharp_demo.video.bitstream import size_mark
from tests.video.clips import SIZE, numbered, read_number, write_clip, write_flagged_tracks, write_sizes

REORDERED = {"options": {"preset": "medium", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}}


@pytest.mark.parametrize("name", ["varying.mp4", "varying.mov", "varying.mkv"])
def test_the_end_of_a_reordered_video_is_that_of_the_last_frame_shown(name, tmp_path, limits):
    times = [0, 0.04, 0.08, 0.12, 1.5, 1.54, 2.2, 2.24, 3.0, 3.04, 3.08]
    path = write_clip(tmp_path / name, frames=len(times), fps=25, times=times, **REORDERED)
    info = probe(path, limits)
    assert info.duration_s == pytest.approx(3.12, abs=0.002)
    assert info.frame_count == len(times)


def test_a_last_frame_that_stays_is_believed_where_nothing_is_reordered(tmp_path, limits):
    info = probe(write_clip(tmp_path / "plain.mp4", frames=20), limits)
    assert info.duration_s == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
@pytest.mark.parametrize(
    ("codec", "options"), [("h264", REORDERED), ("mpeg4", {"options": {"bf": "2"}})], ids=["h264", "mpeg4"]
)
def test_reordered_frames_in_avi_are_those_of_their_time(codec, options, decoder, tmp_path, limits, only):
    path = write_clip(tmp_path / "a.avi", codec, frames=50, fps=25, gop=12, **options)
    only(decoder)
    clip = decode(path, 10, limits)
    assert [read_number(frame) for frame in clip.frames] == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47]
    assert clip.timestamps == pytest.approx([n / 25 for n in (2, 7, 12, 17, 22, 27, 32, 37, 42, 47)], abs=0.001)
    assert clip.info.duration_s == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("name", ["two.mp4", "two.mkv"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_default_track_is_read(name, default, tmp_path, limits):
    clip = decode(write_flagged_tracks(tmp_path / name, default), 2, limits)
    assert [read_number(frame) for frame in clip.frames] == [default, default]


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "vp8"), ("a.webm", "vp9"), ("a.mkv", "h264")])
def test_a_size_that_changes_is_told_and_keeps_the_shape(name, codec, tmp_path, limits):
    clip = decode(write_sizes(tmp_path / name, codec, [SIZE, SIZE[::-1]]), 4, limits)
    assert (clip.info.width, clip.info.height) == SIZE
    assert clip.info.other_sizes == (SIZE[::-1],)
    assert [read_number(frame) for frame in clip.frames[:2]] == [2, 7]
    # 120 x 160 fitted into 160 x 120: 90 x 120 in the middle.
    for frame, number in zip(clip.frames[2:], (12, 17), strict=True):
        assert frame[:, :33].max() <= 30
        assert frame[:, -33:].max() <= 30
        assert read_number(frame[:, 35:125]) == number


def test_a_size_that_stays_is_no_change(tmp_path, limits):
    clip = decode(write_sizes(tmp_path / "a.mkv", "h264", [SIZE, SIZE]), 4, limits)
    assert clip.info.other_sizes == ()
    assert [read_number(frame) for frame in clip.frames] == [2, 7, 12, 17]


@pytest.mark.parametrize("codec", ["vp8", "vp9", "mjpeg", "prores"])
def test_the_size_is_read_from_the_picture_itself(codec, tmp_path):
    name = {"vp8": "a.webm", "vp9": "a.webm", "mjpeg": "a.avi", "prores": "a.mov"}[codec]
    with av.open(str(write_clip(tmp_path / name, codec, [numbered(1, (176, 128))], size=(176, 128)))) as file:
        packet = bytes(next(file.demux(file.streams.video[0])))
    assert np.frombuffer(size_mark(codec, packet, b""), ">u2").tolist() == [176, 128]
    for cut in range(min(len(packet), 40)):
        size_mark(codec, packet[:cut], b"")
