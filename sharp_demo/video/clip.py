"""Plain data of the video package: what a decoded clip is, and what can be wrong with a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# What `VideoError.kind` may be, and what each means; docs/video.md lists the messages.
ERROR_KINDS: dict[str, str] = {
    "bad_request": "the number of frames or the size asked for is out of range",
    "missing": "no such file",
    "not_a_file": "a folder, device or pipe",
    "unreadable": "the operating system refuses to open the file",
    "empty": "0 bytes",
    "too_big": "more bytes than may be uploaded",
    "not_video": "the first bytes belong to no accepted container",
    "truncated": "the file ends before its own headers say",
    "damaged": "the container, or every picture in it, cannot be read",
    "no_video_track": "only sound, or only a cover picture",
    "unsupported_codec": "a codec that is not accepted",
    "too_long": "plays longer than accepted",
    "too_wide": "its longest side has more pixels than accepted",
    "too_many_pixels": "one frame has more pixels than accepted",
    "too_many_packets": "more compressed frames than anyone films in the accepted time",
    "no_frames": "a video track without a single frame",
    "output_too_large": "the decoded frames would be larger than accepted",
    "timeout": "decoding took longer than accepted",
    "cpu": "decoding used more processor time than accepted",
    "memory": "decoding needs more memory than accepted",
    "crashed": "the decoders crashed on this file",
    "killed": "something outside stopped the decoder",
    "unavailable": "the decoder cannot be started or has no room for its output",
}


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video file.

    Attributes
    ----------
    container : "mp4" (MP4, MOV, 3GP), "mkv" (Matroska, WebM) or "avi".
    codec : one of `sharp_demo.video.checks.CODECS`.
    width, height : pixels as displayed, after rotation and with square pixels.
    duration_s : from the first frame to the end of the last one, measured on the packets.
    fps : frames per second on average.
    rotation : degrees counter-clockwise by which the stored pictures are turned for display: 0, 90, 180, 270.
    mirrored : whether they are mirrored left to right before that, as selfie cameras ask for.
    other_sizes : sizes, as displayed, that later pictures of the file have; they are fitted into the first size
        without changing their shape, with black bars.
    frame_count : frames in the file.
    decoder : "decord", "pyav" or "opencv"; empty after `probe`.
    distinct_frames : different source frames among the ones returned; 0 after `probe`.
    """

    container: str
    codec: str
    width: int
    height: int
    duration_s: float
    fps: float
    rotation: int
    frame_count: int
    decoder: str = ""
    distinct_frames: int = 0
    mirrored: bool = False
    other_sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Clip:
    """Frames sampled from a video.

    Attributes
    ----------
    frames : uint8 [T, H, W, 3], RGB, upright, H and W even.
    timestamps : seconds since the first frame of the video, one per frame, never falling. Equal neighbours are
        copies of one source frame: the video shows no other frame at that time.
    info : the file.
    ms : wall clock of the whole call, checks included.
    """

    frames: np.ndarray
    timestamps: tuple[float, ...]
    info: VideoInfo
    ms: float
