"""Probe a file with PyAV, in the child process: codec, size, rotation, and the time of every frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sharp_demo.errors import VideoError
from sharp_demo.video.checks import CONTAINERS, MAX_PACKETS, check_stream, unsupported
from sharp_demo.video.sampling import square_pixels
from sharp_demo.video.with_pyav import BROKEN, decoder_options, open_container, pictures, readable, video_streams


def scan(path: str, label: str, demuxer: str, maxima: dict[str, float]) -> dict[str, Any]:
    """Probe a file and hold it against the limits, decoding no more than one picture (for its rotation).

    Parameters
    ----------
    maxima : max_side, max_pixels, max_duration_s.

    Returns
    -------
    codec; rotation; width, height (displayed); times : presentation time of every frame, seconds, ascending;
    keyframes : those of the frames decoding can start from; duration : seconds from the first frame to the end of
    the last; streams : number of video streams; closed : whether every group of frames decodes by itself.

    Raises
    ------
    VideoError : damaged, no_video_track, no_frames, too_many_packets, and the kinds of `check_stream`.
    """
    try:
        container = open_container(path, demuxer)
    except MemoryError:
        raise
    except BROKEN as error:
        message = f"{label} is damaged: its {CONTAINERS[demuxer].upper()} container cannot be read."
        raise VideoError("damaged", message) from error
    with container:
        streams = video_streams(container)
        if not streams:
            content = "only sound" if container.streams.audio else "no moving pictures"
            raise VideoError("no_video_track", f"{label} holds {content}; a video track is needed.")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise unsupported("something no decoder knows", label)
        codec = context.codec.canonical_name
        check_stream(codec, context.width, context.height, 0.0, label, maxima)
        context.options = decoder_options(maxima["max_pixels"])
        found = _read_packets(container, stream, codec, label, maxima)
        aspect = float(stream.sample_aspect_ratio or 1)
        unit = float(stream.time_base)
    picture, duration = found.picture, found.duration * unit
    check_stream(codec, picture.width, picture.height, duration, label, maxima)
    rotation = round(picture.rotation / 90) * 90 % 360
    width, height = square_pixels(picture.width, picture.height, aspect)
    return {
        "codec": codec,
        "rotation": rotation,
        "width": height if rotation % 180 else width,
        "height": width if rotation % 180 else height,
        "times": [pts * unit for pts in found.times],
        "keyframes": [pts * unit for pts in found.keyframes],
        "duration": duration,
        "streams": len(streams),
        "closed": found.closed,
    }


@dataclass(frozen=True)
class _Packets:
    """What the packets of one stream say; times in units of its time base, ascending."""

    times: list[int]
    keyframes: list[int]
    duration: float
    closed: bool
    picture: Any


def _read_packets(container: Any, stream: Any, codec: str, label: str, maxima: dict[str, float]) -> _Packets:
    """Read every packet once, and decode until the first picture.

    The headers' own frame counts and durations are not trusted: browsers write none, and damage changes them.
    """
    durations: dict[int, int] = {}  # by presentation time
    keyframes: list[int] = []
    closed, picture = True, None
    extradata = stream.codec_context.extradata or b""
    for packet in readable(container.demux(stream)):
        if picture is None:
            picture = next(iter(pictures(packet)), None)
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None or packet.is_discard or packet.is_corrupt:
            continue
        durations[pts] = packet.duration or 0
        if packet.is_keyframe:
            keyframes.append(pts)
            closed &= codec != "h264" or has_idr(bytes(packet), extradata)
        elif keyframes and pts < keyframes[-1]:
            closed = False
        if len(durations) > MAX_PACKETS:
            message = f"{label} holds more than {MAX_PACKETS:,} frames; no more are accepted."
            raise VideoError("too_many_packets", message)
        elapsed = float((pts - next(iter(durations))) * stream.time_base)
        if elapsed > maxima["max_duration_s"]:
            header = float((stream.duration or 0) * stream.time_base)
            check_stream(codec, 0, 0, max(header, elapsed), label, maxima)
    if not durations:
        raise VideoError("no_frames", f"{label} has a video track without any frame.")
    if picture is None:
        raise VideoError("damaged", f"{label} is damaged: not one of its {len(durations)} frames can be decoded.")
    times = sorted(durations)
    duration = times[-1] - times[0] + _last_duration(times, durations, stream)
    return _Packets(times, sorted(keyframes), duration, closed, picture)


def has_idr(packet: bytes, extradata: bytes) -> bool:
    """Return whether an H.264 packet holds an IDR picture (NAL type 5): no later frame refers to anything before it.

    `extradata` tells how units are delimited: by their length (ISO 14496-15, avcC) or by start codes (Annex B).
    """
    if extradata[:1] == b"\x01" and len(extradata) > 4:
        width, at = (extradata[4] & 3) + 1, 0
        while at + width < len(packet):
            if packet[at + width] & 31 == 5:
                return True
            at += width + int.from_bytes(packet[at : at + width], "big")
        return False
    return any(unit[:1] and unit[0] & 31 == 5 for unit in packet.split(b"\x00\x00\x01")[1:])


def _last_duration(times: list[int], durations: dict[int, int], stream: Any) -> float:
    """Return how long the last frame stays, in ticks: as stored, else the median gap, else one frame by the rate."""
    gaps = sorted(b - a for a, b in pairwise(times))
    if durations[times[-1]] > 0:
        return durations[times[-1]]
    if gaps:
        return gaps[len(gaps) // 2]
    return float(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0.0
