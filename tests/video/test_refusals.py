"""Each thing that can be wrong with a file has its own message, which names cause and limit and no server path."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sharp_demo.errors import VideoError
from sharp_demo.settings import Settings
from sharp_demo.video import ERROR_KINDS, decode, probe
from sharp_demo.video.checks import CODECS
from tests.video.clips import boxes, read_number, without_frames, write_clip, write_sound

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n"
FFCONCAT = "ffconcat version 1.0\nfile '/etc/passwd'\n"
SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>\n'


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory, h264: Path) -> Path:
    """A folder of files that must be refused."""
    folder = tmp_path_factory.mktemp("bad")
    plain = h264.read_bytes()
    quick = write_clip(folder / "quick.mp4", frames=60, container={"movflags": "faststart"}).read_bytes()
    vp9 = write_clip(folder / "good.webm", "vp9", frames=60).read_bytes()
    avi = write_clip(folder / "good.avi", "mpeg4", frames=60).read_bytes()
    moov = next(start for start, _, name in boxes(plain) if name == b"moov")
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"Just some words.\n" * 50,
        "hls.mp4": HLS.encode(),
        "concat.mp4": FFCONCAT.encode(),
        "drawing.mp4": SVG.encode(),
        "page.mp4": b"<!doctype html><title>404</title>",
        "picture.mp4": b"GIF89a" + bytes(50),
        "photo.mp4": b"\0\0\0\x18ftypheic" + bytes(50),
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "no_index.mp4": plain[:moov],
        "half.mp4": quick[: len(quick) // 2],
        "half.webm": vp9[: len(vp9) // 2],
        "half.avi": avi[: len(avi) // 2],
        "no_frames.mp4": without_frames(plain),
        "ruin.mp4": plain[: moov + 8] + bytes(len(plain) - moov - 8),
        "ruin.webm": vp9[:4] + bytes(len(vp9) - 4),
        "scrambled.mp4": _scramble(plain),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    write_sound(folder / "sound.mp4")
    write_clip(folder / "slow.mp4", frames=200, fps=1)
    write_clip(folder / "lossless.mkv", "ffv1", frames=2)
    black = np.zeros((8192, 8192, 3), np.uint8)
    write_clip(folder / "bomb.mp4", frames=[black] * 2, size=(8192, 8192))
    write_clip(folder / "big.mp4", frames=[black[:4096, :4096]], size=(4096, 4096))
    (folder / "folder.mp4").mkdir()
    return folder


def _scramble(data: bytes) -> bytes:
    """Keep the container, destroy every picture."""
    start, size, _ = next(box for box in boxes(data) if box[2] == b"mdat")
    return data[: start + 8] + b"\xff" * (size - 8) + data[start + size :]


REFUSALS = {
    "nowhere.mp4": ("missing", ["there is no file"]),
    "folder.mp4": ("not_a_file", ["folder"]),
    "empty.mp4": ("empty", ["empty", "0 bytes"]),
    "text.mp4": ("not_video", ["a text file", "MP4, MOV, WebM, MKV or AVI"]),
    "hls.mp4": ("not_video", ["an HLS playlist", "MP4"]),
    "concat.mp4": ("not_video", ["an ffconcat script", "MP4"]),
    "drawing.mp4": ("not_video", ["an SVG picture", "MP4"]),
    "page.mp4": ("not_video", ["a web page", "MP4"]),
    "picture.mp4": ("not_video", ["a GIF picture", "MP4"]),
    "photo.mp4": ("not_video", ["HEIC", "MP4"]),
    "noise.mp4": ("not_video", ["unknown kind", "MP4"]),
    "no_index.mp4": ("truncated", ["moov", "missing"]),
    "half.mp4": ("truncated", ["cut off", "bytes its header promises"]),
    "half.webm": ("truncated", ["cut off", "bytes its header promises"]),
    "half.avi": ("truncated", ["cut off", "bytes its header promises"]),
    "no_frames.mp4": ("no_frames", ["without any frame"]),
    "ruin.mp4": ("no_video_track", ["no moving pictures", "video track is needed"]),
    "ruin.webm": ("damaged", ["damaged", "MKV container"]),
    "scrambled.mp4": ("damaged", ["damaged", "not one of its 20 frames"]),
    "sound.mp4": ("no_video_track", ["only sound", "video track is needed"]),
    "slow.mp4": ("too_long", ["200.0 s", "at most 120 s"]),
    "lossless.mkv": ("unsupported_codec", ["ffv1", ", ".join(CODECS)]),
    "bomb.mp4": ("too_wide", ["8192 x 8192 pixels", "may be 4096"]),
    "big.mp4": ("too_many_pixels", ["4096 x 4096 = 16,777,216", "may have 8,294,400"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_cause_and_limit(name, bad_files, limits):
    kind, words = REFUSALS[name]
    with pytest.raises(VideoError) as refused:
        decode(bad_files / name, 8, limits)
    message = str(refused.value)
    assert refused.value.kind == kind
    assert f"'{name}'" in message
    assert all(word in message for word in words), message
    assert_fit_for_users(message)
    with pytest.raises(VideoError) as probed:
        probe(bad_files / name, limits)
    assert (probed.value.kind, str(probed.value)) == (kind, message)


def assert_fit_for_users(message: str) -> None:
    assert "\n" not in message
    assert len(message) <= 300
    assert "/" not in message
    assert "Error" not in message
    assert not message.endswith(".")


def test_messages_differ(bad_files, limits):
    messages = set()
    for name in REFUSALS:
        with pytest.raises(VideoError) as refused:
            probe(bad_files / name, limits)
        messages.add(str(refused.value).replace(name, "it"))
    # The three cut-off files share their sentence, but not their numbers.
    assert len(messages) == len(REFUSALS)


def test_too_big(h264, limits):
    small = limits.model_copy(update={"max_upload_mb": 0.001})
    with pytest.raises(VideoError, match=r"has 0\.00\d+ MB; at most 0\.001 MB") as refused:
        decode(h264, 4, small)
    assert refused.value.kind == "too_big"


@pytest.mark.parametrize("frames", [0, -1, 65])
def test_frames_out_of_range(frames, h264, limits):
    with pytest.raises(VideoError, match=rf"^{frames} frames were asked for; 1 to 64") as refused:
        decode(h264, frames, limits)
    assert refused.value.kind == "bad_request"


def test_size_out_of_range(h264, limits):
    with pytest.raises(VideoError, match="8 pixels were asked for; at least 16") as refused:
        decode(h264, 4, limits, max_side=8)
    assert refused.value.kind == "bad_request"


def test_output_too_large(tmp_path, limits):
    path = write_clip(tmp_path / "hd.mp4", frames=1, size=(1920, 1080))
    tight = limits.model_copy(update={"decode_output_mb": 10})
    with pytest.raises(VideoError, match="64 frames of 768 x 432 pixels need 61 MB; at most 10 MB") as refused:
        decode(path, 64, tight)
    assert refused.value.kind == "output_too_large"


def test_limits_are_the_settings(tmp_path, h264):
    with pytest.raises(VideoError, match=r"plays 2\.0 s; at most 1\.5 s"):
        probe(h264, Settings(max_duration_s=1.5))
    with pytest.raises(VideoError, match="160 x 120 pixels; the longest side may be 100"):
        probe(h264, Settings(max_side=100))
    with pytest.raises(VideoError, match="160 x 120 = 19,200 pixels; a frame may have 10,000"):
        probe(h264, Settings(max_pixels=10_000))


def test_a_duration_the_header_hides_is_found_on_the_packets(tmp_path):
    path = write_clip(tmp_path / "live.webm", "vp9", frames=40, fps=10, container={"live": "1"})
    with pytest.raises(VideoError, match="at most 3 s") as refused:
        probe(path, Settings(max_duration_s=3))
    assert refused.value.kind == "too_long"


def test_pipes_and_unreadable_names(tmp_path, limits):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError) as refused:
        probe(tmp_path / "pipe.mp4", limits)
    assert refused.value.kind == "not_a_file"
    for path in ("http://example.com/a.mp4", "nul\0byte.mp4", "concat:a.mp4"):
        with pytest.raises(VideoError) as refused:
            probe(path, limits)
        assert refused.value.kind == "missing"
        assert_fit_for_users(str(refused.value))


def test_names_are_cut_and_made_printable(tmp_path, limits):
    name = "x" * 200 + "\n\x1b[31m.mp4"
    with pytest.raises(VideoError) as refused:
        probe(tmp_path / name, limits)
    message = str(refused.value)
    assert len(message) < 100
    assert message.isprintable()


def test_an_audio_file_with_a_cover_picture_is_no_video(tmp_path, limits):
    import av

    sound = write_sound(tmp_path / "sound.mp4")
    cover = np.zeros((64, 64, 3), np.uint8)
    with av.open(str(sound)) as source, av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as output:
        track = output.add_stream_from_template(source.streams.audio[0])
        picture = output.add_stream("mjpeg", rate=1)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                output.mux(packet)
        output.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
        output.mux(picture.encode())
    with pytest.raises(VideoError) as refused:
        probe(tmp_path / "song.m4a", limits)
    assert refused.value.kind == "no_video_track"


SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"


def hide_in_header(data: bytes, text: bytes, size: int) -> bytes:
    """Return a Matroska file whose EBML header begins with a Void element that holds a text."""
    used = 8 - data[4].bit_length() + 1
    length = int.from_bytes(data[4 : 4 + used], "big") & ((1 << 7 * used) - 1)
    void = b"\xec" + (size | 0x4000).to_bytes(2, "big") + text.ljust(size, b" ")
    header = void + data[4 + used : 4 + used + length]
    return data[:4] + (len(header) | 0x4000).to_bytes(2, "big") + header + data[4 + used + length :]


@pytest.mark.parametrize("decoder", [None, "pyav", "opencv"])
def test_text_hidden_in_a_container_is_not_demuxed(decoder, tmp_path, limits, only, caplog):
    """FFmpeg reads 2 KB first: with the header's end beyond them, what it takes the file for is the text."""
    if decoder:
        only(decoder)
    path = write_clip(tmp_path / "plain.mkv", frames=8)
    path.write_bytes(hide_in_header(path.read_bytes(), SDP, 3000))
    with caplog.at_level("INFO", "sharp_demo.video"):
        clip = decode(path, 2, limits)
    assert [read_number(frame) for frame in clip.frames] == [2, 6]
    assert clip.info.decoder == (decoder or "pyav")
    if decoder is None and find_spec("decord"):
        assert "takes the file for sdp" in caplog.text


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "video.md").read_text()
    assert {kind for kind in ERROR_KINDS if f"| `{kind}` |" not in text} == set()
    assert {kind for kind, _ in REFUSALS.values()} <= set(ERROR_KINDS)
