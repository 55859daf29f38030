"""Probe a file with PyAV, in the child process: codec, size, orientation, and the time of every frame."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sharp_demo.errors import VideoError
from sharp_demo.video.bitstream import has_idr, size_mark
from sharp_demo.video.checks import CONTAINERS, MAX_PACKETS, check_stream, unsupported
from sharp_demo.video.mp4 import presentation_end
from sharp_demo.video.orientation import THUMB, UPRIGHT, Orientation, displayed, is_telling, of_matrix
from sharp_demo.video.sampling import square_pixels
from sharp_demo.video.with_pyav import (
    BROKEN,
    chosen,
    decoder_options,
    open_container,
    pictures,
    readable,
    video_streams,
)

# Key frames decoded at most: to find one that shows which way is up, and to learn the sizes of a stream that changes.
_LOOKS, _SIZES = 4, 16
# Where the size of a frame may change between key frames, every packet is asked for it.
_RESIZES_ANYWHERE = ("vp9",)


def scan(path: str, label: str, demuxer: str, maxima: dict[str, float]) -> dict[str, Any]:
    """Probe a file and hold it against the limits, decoding no more than a few pictures.

    Parameters
    ----------
    maxima : max_side, max_pixels, max_duration_s.

    Returns
    -------
    codec; rotation, mirrored : the orientation; width, height : as displayed; coded : (width, height) as stored, with
    the pixels' own shape; other_sizes : those that later frames have, if any; times : presentation time of every
    frame, seconds, ascending; keyframes : those of the frames decoding can start from; duration : seconds from the
    first frame to the end of the last; stream : index of the stream read; streams : number of video streams; closed :
    whether every group of frames decodes by itself; counted : whether `times` are the container's slots, to be filled
    with the frames in the order in which the decoder returns them; turned : whether anything in the file could make a
    decoder turn the pictures by itself; reference, reference_time : a small picture of a frame as stored (hex), and
    the time of that frame.

    Raises
    ------
    VideoError : damaged, no_video_track, no_frames, too_many_packets, and the kinds of `check_stream`.
    """
    try:
        container = open_container(path, demuxer)
    except MemoryError:
        raise
    except BROKEN as error:
        message = f"{label} is damaged: its {CONTAINERS[demuxer].upper()} container cannot be read"
        raise VideoError("damaged", message) from error
    with container:
        streams = video_streams(container)
        if not streams:
            content = "only sound" if container.streams.audio else "no moving pictures"
            raise VideoError("no_video_track", f"{label} holds {content}; a video track is needed")
        stream = chosen(streams)
        context = stream.codec_context
        if context is None:
            raise unsupported("something no decoder knows", label)
        codec = context.codec.canonical_name
        check_stream(codec, context.width, context.height, 0.0, label, maxima)
        context.options = decoder_options(maxima["max_pixels"])
        found = _read_packets(container, stream, codec, label, maxima)
        counted = demuxer == "avi" and context.has_b_frames and found.ascending
        times = sorted(found.slots) if counted else sorted(found.durations)
        unit = float(stream.time_base)
        last = _last_duration(times, found, stream)
        if found.reordered and demuxer == "mov":
            last = _last_by_index(path, stream, times, found) or last
        aspect = float(stream.sample_aspect_ratio or 1)
        index, tags = stream.index, {name.lower() for name in stream.metadata}
    coded, duration = found.looks.sizes[0], (times[-1] - times[0] + last) * unit
    for width, height in found.looks.sizes:
        check_stream(codec, width, height, duration, label, maxima)
    orientation = found.looks.orientation
    width, height = displayed(square_pixels(*coded, aspect), orientation)
    return {
        "codec": codec,
        "rotation": orientation[0],
        "mirrored": orientation[1],
        "turned": orientation != UPRIGHT or "rotate" in tags,
        "width": width,
        "height": height,
        "coded": coded,
        "other_sizes": [displayed(size, orientation) for size in found.looks.sizes[1:]],
        "times": [pts * unit for pts in times],
        "keyframes": [pts * unit for pts in sorted(found.keyframes)],
        "duration": duration,
        "stream": index,
        "streams": len(streams),
        "closed": found.closed,
        "counted": bool(counted),
        "reference": found.looks.reference.hex(),
        "reference_time": (times[0] if counted else found.looks.reference_pts) * unit,
    }


class _Looks:
    """What a few decoded pictures show: orientation, sizes, and a picture to know later which way is up."""

    def __init__(self, context: Any, codec: str) -> None:
        self.context, self.codec = context, codec
        self.sizes: list[tuple[int, int]] = []
        self.orientation = UPRIGHT
        self.reference = b""
        self.reference_pts = 0
        self._mark = b""
        self._telling = False
        self._decoded = 0

    def look(self, packet: Any) -> None:
        """Decode up to the first picture; later only key frames of another size, or if nothing was to be seen."""
        first = not self.sizes
        if first:
            for picture in pictures(packet)[:1]:
                self._first(picture)
        if not packet.is_keyframe and self.codec not in _RESIZES_ANYWHERE:
            return
        mark = self._new_mark(packet)
        if mark and not packet.is_keyframe:
            if not first:
                self._add_size(struct.unpack(">HH", mark))
        elif packet.is_keyframe and not first and (mark or (not self._telling and self._decoded < _LOOKS)):
            self._key_frame(packet)

    def _new_mark(self, packet: Any) -> bytes:
        """Return the packet's mark of the size if it is another one than before."""
        if packet.has_sidedata("new_extradata"):
            mark = bytes(packet.get_sidedata("new_extradata"))
        else:
            mark = size_mark(self.codec, bytes(packet), self.context.extradata or b"")
        if not mark or mark == self._mark:
            return b""
        self._mark = mark
        return mark

    def _first(self, picture: Any) -> None:
        self.sizes.append((picture.width, picture.height))
        self.orientation = _orientation(picture)
        self._see(picture)

    def _key_frame(self, packet: Any) -> None:
        if self._decoded >= _SIZES:
            return
        self._decoded += 1
        self.context.flush_buffers()
        picture = next(iter([*pictures(packet), *_drained(self.context)]), None)
        self.context.flush_buffers()
        if picture is None:
            return
        self._add_size((picture.width, picture.height))
        if not self._telling and (picture.width, picture.height) == self.sizes[0]:
            self._see(picture)

    def _see(self, picture: Any) -> None:
        small = _small(picture)
        telling = is_telling(small)
        if picture.pts is not None and (telling or not self.reference):
            self.reference, self.reference_pts, self._telling = small, picture.pts, telling

    def _add_size(self, size: Any) -> None:
        if tuple(size) not in self.sizes and len(self.sizes) < _SIZES:
            self.sizes.append(tuple(size))


def _drained(context: Any) -> list[Any]:
    try:
        return context.decode(None)
    except MemoryError:
        raise
    except BROKEN:
        return []


def _orientation(picture: Any) -> Orientation:
    """Return the orientation FFmpeg found: the stream's own (H.264 and HEVC SEI) goes before the container's."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else of_matrix(struct.unpack("=9i", bytes(matrix)[:36]))


def _small(picture: Any) -> bytes:
    plane = picture.reformat(THUMB, THUMB, "rgb24", interpolation="AREA").planes[0]
    data = bytes(plane)
    return b"".join(data[row * plane.line_size :][: THUMB * 3] for row in range(THUMB))


@dataclass
class _Packets:
    """What the packets of one stream say; times in units of its time base."""

    looks: _Looks
    durations: dict[int, int] = field(default_factory=dict)  # by presentation time, in decoding order
    slots: list[int] = field(default_factory=list)  # decoding times
    keyframes: list[int] = field(default_factory=list)
    closed: bool = True
    reordered: bool = False

    @property
    def ascending(self) -> bool:
        return not self.reordered


def _read_packets(container: Any, stream: Any, codec: str, label: str, maxima: dict[str, float]) -> _Packets:
    """Read every packet once, and decode what `_Looks` needs.

    The headers' own frame counts and durations are not trusted: browsers write none, and damage changes them.
    """
    found = _Packets(_Looks(stream.codec_context, codec))
    extradata, latest = stream.codec_context.extradata or b"", None
    for packet in readable(container.demux(stream)):
        found.looks.look(packet)
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None or packet.is_discard or packet.is_corrupt:
            continue
        found.durations[pts] = packet.duration or 0
        found.slots.append(pts if packet.dts is None else packet.dts)
        found.reordered |= latest is not None and pts < latest
        latest = pts
        if packet.is_keyframe:
            found.keyframes.append(pts)
            found.closed &= codec != "h264" or has_idr(bytes(packet), extradata)
        elif found.keyframes and pts < found.keyframes[-1]:
            found.closed = False
        if len(found.durations) > MAX_PACKETS:
            message = f"{label} holds more than {MAX_PACKETS:,} frames; no more are accepted"
            raise VideoError("too_many_packets", message)
        elapsed = float((pts - next(iter(found.durations))) * stream.time_base)
        if elapsed > maxima["max_duration_s"]:
            header = float((stream.duration or 0) * stream.time_base)
            check_stream(codec, 0, 0, max(header, elapsed), label, maxima)
    if not found.durations:
        raise VideoError("no_frames", f"{label} has a video track without any frame")
    if not found.looks.sizes:
        message = f"{label} is damaged: not one of its {len(found.durations)} frames can be decoded"
        raise VideoError("damaged", message)
    return found


def _last_duration(times: list[int], found: _Packets, stream: Any) -> float:
    """Return how long the last frame stays, in ticks: as stored, else the median gap, else one frame by the rate."""
    stored = found.durations.get(times[-1], 0)
    gaps = sorted(b - a for a, b in pairwise(times))
    if stored > 0 and not found.reordered:
        return stored
    if gaps:
        # Where frames are reordered, stored durations may be distances in decoding order.
        return stored if 0 < stored <= gaps[len(gaps) // 2] else gaps[len(gaps) // 2]
    if stored > 0:
        return stored
    return float(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0.0


def _last_by_index(path: str, stream: Any, times: list[int], found: _Packets) -> float | None:
    """Return how long the last frame of a reordered MP4 stays by its index, in ticks, if that is credible."""
    end = presentation_end(path, stream.id)
    if end is None:
        return None
    last = round(end / float(stream.time_base)) - times[-1]
    longest = max(*found.durations.values(), *(b - a for a, b in pairwise(times)))
    return last if 0 < last <= longest else None
