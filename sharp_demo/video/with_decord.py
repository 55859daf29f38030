"""First decoder: decord, which bundles FFmpeg 4.1. Runs only in the child process."""

from __future__ import annotations

import ctypes
from pathlib import Path

import decord
import numpy as np

from sharp_demo.video.order import THREADS, DecodeError, Order

_READ = 1  # AVIO_FLAG_READ


def decode(order: Order) -> tuple[np.ndarray, list[float]]:
    """Return frames uint8 [N, H, W, 3] and their times on the container's clock.

    decord turns by what its FFmpeg makes of a file and cannot be told not to, so only upright files come here. Nor can
    it be told the demuxer: its FFmpeg is asked first which one it would take. Frames are ordered by index, so a file
    whose frames it counts differently from the probe is left to the next decoder.
    """
    found = probed_demuxer(order.path)
    if order.demuxer not in found:
        raise DecodeError(f"decord's FFmpeg takes the file for {','.join(found) or 'nothing it knows'}")
    width, height = order.size
    reader = decord.VideoReader(order.path, ctx=decord.cpu(0), width=width, height=height, num_threads=THREADS)
    if len(reader) != order.total:
        raise DecodeError(f"decord counts {len(reader)} frames, the container has {order.total}")
    starts = reader.get_frame_timestamp([0, *order.indices])[:, 0]
    times = [float(t) - float(starts[0]) + order.origin for t in starts[1:]]
    return reader.get_batch(order.indices).asnumpy(), times


def probed_demuxer(path: str) -> list[str]:
    """Return the names of the demuxer that decord's own FFmpeg would choose for a file; nothing of it is demuxed.

    This is the call by which `avformat_open_input` chooses (libavformat/utils.c, init_input).
    """
    library = _libavformat()
    context, demuxer = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_char_p)()
    name = path.encode()
    if library.avio_open(ctypes.byref(context), name, _READ) < 0:
        raise DecodeError("decord's FFmpeg cannot open the file")
    try:
        score = library.av_probe_input_buffer2(context, ctypes.byref(demuxer), name, None, 0, 0)
    finally:
        library.avio_closep(ctypes.byref(context))
    # The structure begins with its names.
    return demuxer[0].decode().split(",") if score >= 0 and demuxer else []


def _libavformat() -> ctypes.CDLL:
    """Return the libavformat that came with decord: next to it (Windows) or in decord.libs (Linux)."""
    package = Path(decord.__file__).parent
    for folder in (package.with_name("decord.libs"), package):
        for path in folder.glob("*avformat*"):
            return ctypes.CDLL(str(path))
    raise DecodeError("decord's FFmpeg cannot be asked for the demuxer")
