"""Makes small video files for tests. Each frame shows its own number, so that a decoded frame tells which one it is.

A frame is 160 x 120 unless said: its upper half has a red quarter (left) and a green one (right); below, eight black
or white bars give the frame number in binary, the highest bit left, over a blue strip.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (160, 120)
RED, GREEN, BLUE = (200, 30, 30), (30, 180, 30), (30, 30, 200)

ENCODERS = {
    "h264": ("libx264", {"preset": "ultrafast", "crf": "12"}),
    "hevc": ("libx265", {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=1"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "6", "b": "4000000"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "0"}),
    "av1": ("libsvtav1", {"preset": "8", "crf": "8", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"qmin": "2", "qmax": "3"}),
    "mjpeg": ("mjpeg", {"qmin": "2", "qmax": "3"}),
    "prores": ("prores_ks", {}),
    "ffv1": ("ffv1", {}),
}
PIXELS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the RGB picture uint8 [H, W, 3] of frame `number` (0..255)."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = RED
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 : height // 4 * 3] = BLUE
    for bit in range(8):
        if number >> (7 - bit) & 1:
            image[height // 4 * 3 :, width * bit // 8 : width * (bit + 1) // 8] = 255
    return image


def read_number(image: np.ndarray) -> int:
    """Return the number shown by a picture of `numbered`, whatever its size."""
    height, width = image.shape[:2]
    row = image[height * 7 // 8].mean(axis=-1)
    return sum(int(row[width * (2 * bit + 1) // 16] > 127) << (7 - bit) for bit in range(8))


def write_clip(
    path: str | Path,
    codec: str = "h264",
    frames: int | Sequence[np.ndarray] = 20,
    fps: float = 10,
    *,
    rotation: int = 0,
    mirrored: bool = False,
    times: Iterable[float] | None = None,
    gop: int = 8,
    size: tuple[int, int] = SIZE,
    pixels: str | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    audio: bool = False,
    demuxer: str | None = None,
) -> Path:
    """Write a clip and return its path.

    Parameters
    ----------
    codec : a key of `ENCODERS`.
    frames : how many numbered frames, or the pictures themselves (uint8 [H, W, 3], of `size`).
    rotation, mirrored : the display matrix mirrors left to right, then turns counter-clockwise by degrees.
    times : presentation times in seconds (milliseconds are kept); overrides `fps`.
    gop : frames between key frames.
    options, container : options of encoder and muxer, on top of the defaults; audio adds a silent AAC or Opus track.
    """
    path = Path(path)
    encoder, defaults = ENCODERS[codec]
    pictures = [numbered(i % 256, size) for i in range(frames)] if isinstance(frames, int) else list(frames)
    rate = Fraction(fps).limit_denominator(1000)
    clock = 1 / rate if times is None else Fraction(1, 1000)
    ticks = list(range(len(pictures))) if times is None else [round(t * 1000) for t in times]
    with _same_scheduling(), av.open(str(path), "w", format=demuxer, options=container or {}) as output:
        stream = output.add_stream(encoder, rate=rate, options=defaults | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixels or PIXELS.get(codec, "yuv420p")
        stream.gop_size = gop
        stream.codec_context.time_base = clock
        stream.codec_context.thread_count = 1
        if rotation or mirrored:
            # PyAV's flip comes after its turn.
            stream.set_display_rotation(-rotation if mirrored else rotation, hflip=mirrored)
        sound = None
        if audio:
            sound = output.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000, layout="mono")
        for picture, tick in zip(pictures, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, clock
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            _mux_silence(output, sound, float(ticks[-1] * clock))
    return path


@contextmanager
def _same_scheduling() -> Iterator[None]:
    """Undo what SVT-AV1 does when it runs as root: it turns its caller's thread into a real-time one for good.

    Every later child (decoders, the app, Chromium) would inherit that and starve the machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def shown(stored: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    """Return how a stored picture [H, W, 3] is to be shown: mirrored left to right, then turned counter-clockwise."""
    image = stored[:, ::-1] if mirrored else stored
    for _ in range(rotation // 90):
        image = image.transpose(1, 0, 2)[::-1]
    return image


def with_orientation_sei(source: Path, path: str | Path, codec: str, rotation: int, mirrored: bool) -> Path:
    """Copy an MP4 or MKV; each frame gets a display orientation SEI (ITU-T H.264, D.1.27; H.265, D.2.17)."""
    turn = round(rotation * 65536 / 360)
    # Not cancelled, flipped across, not upside down, turned; then how long it holds, and the end.
    rest = "010" + "0" if codec == "h264" else "1"
    bits = f"0{int(mirrored)}0{turn:016b}{rest}"
    bits += "1" if len(bits) % 8 else ""
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = b"\x06" if codec == "h264" else b"\x4e\x01"
    unit = header + bytes([47, len(payload)]) + payload + b"\x80"
    with av.open(str(source)) as given, av.open(str(path), "w") as output:
        track = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is None:
                continue
            copy = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
            copy.pts, copy.dts, copy.duration, copy.time_base = (
                packet.pts,
                packet.dts,
                packet.duration,
                packet.time_base,
            )
            copy.is_keyframe, copy.stream = packet.is_keyframe, track
            output.mux(copy)
    return Path(path)


def write_sizes(path: str | Path, codec: str, sizes: Sequence[tuple[int, int]], each: int = 10) -> Path:
    """Write a clip whose numbered pictures change their size every `each` frames; 10 frames a second."""
    encoder, defaults = ENCODERS[codec]
    with av.open(str(path), "w") as output:
        track = None
        for part, size in enumerate(sizes):
            context = av.CodecContext.create(encoder, "w")
            context.width, context.height = size
            context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 10), Fraction(10)
            context.options, context.thread_count, context.gop_size = defaults, 1, each
            if track is None:
                track = output.add_stream(encoder, rate=10)
                track.width, track.height, track.pix_fmt = *size, "yuv420p"
                track.codec_context.options = defaults
                output.start_encoding()
            packets = []
            for number in range(each):
                frame = av.VideoFrame.from_ndarray(numbered(part * each + number, size), format="rgb24")
                frame.pts, frame.time_base = part * each + number, Fraction(1, 10)
                packets += context.encode(frame)
            for packet in [*packets, *context.encode(None)]:
                packet.stream, packet.time_base = track, Fraction(1, 10)
                output.mux(packet)
    return Path(path)


def write_flagged_tracks(path: str | Path, default: int, tracks: int = 2) -> Path:
    """Write H.264 tracks of ten frames, all showing the number of their track; `default` is the one to be read."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=10, options=ENCODERS["h264"][1]) for _ in range(tracks)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for number, stream in enumerate(streams):
            for _ in range(10):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
            output.mux(stream.encode())
    return Path(path)


def write_sound(path: str | Path, seconds: float = 1.0) -> Path:
    """Write a file with an AAC track and no video."""
    with av.open(str(path), "w") as output:
        _mux_silence(output, output.add_stream("aac", rate=48000, layout="mono"), seconds)
    return Path(path)


def _mux_silence(output: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(seconds * 48000), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def boxes(data: bytes, start: int = 0, end: int | None = None) -> list[tuple[int, int, bytes]]:
    """Return (offset, size, type) of the ISO BMFF boxes in data[start:end], one level."""
    found, end = [], len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack(">I4s", data[start : start + 8])
        if size < 8:
            break
        found.append((start, size, name))
        start += size
    return found


def without_frames(data: bytes) -> bytes:
    """Return an MP4 whose sample tables are all empty: a video track of zero frames."""
    emptied = bytearray(data)
    for name in (b"stts", b"stsc", b"stco", b"stss", b"ctts"):
        at = data.find(name)
        if at >= 0:
            emptied[at + 8 : at + 12] = bytes(4)
    at = data.find(b"stsz")
    emptied[at + 8 : at + 16] = bytes(8)
    return bytes(emptied)
