"""First decoder: decord, which bundles FFmpeg 4.1. Runs only in the child process."""

from __future__ import annotations

import decord
import numpy as np

from sharp_demo.video.order import THREADS, DecodeError, Order


def decode(order: Order) -> tuple[np.ndarray, list[float]]:
    """Return frames uint8 [N, H, W, 3] and their times on the container's clock.

    decord rotates by itself and takes the size after rotation. Frames are ordered by index, so a file whose frames
    it counts differently from the probe is left to the next decoder.
    """
    width, height = order.size
    reader = decord.VideoReader(order.path, ctx=decord.cpu(0), width=width, height=height, num_threads=THREADS)
    if len(reader) != order.total:
        raise DecodeError(f"decord counts {len(reader)} frames, the container has {order.total}")
    starts = reader.get_frame_timestamp([0, *order.indices])[:, 0]
    times = [float(t) - float(starts[0]) + order.origin for t in starts[1:]]
    return reader.get_batch(order.indices).asnumpy(), times
