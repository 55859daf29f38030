"""Last decoder: OpenCV. Runs only in the child process."""

from __future__ import annotations

import os

import cv2
import numpy as np

from sharp_demo.video.order import THREADS, DecodeError, Order, Taken


def decode(order: Order) -> tuple[np.ndarray, list[float]]:
    """Return frames uint8 [N, H, W, 3] and their times on the container's clock.

    Reads front to back, since OpenCV's seeking is not exact. It is kept from turning the pictures.
    """
    cv2.setNumThreads(1)
    # The only way to tell OpenCV's FFmpeg anything; read when a file is opened.
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = (
        f"input_format;{order.demuxer}|protocol_whitelist;file|format_whitelist;{order.demuxer}"
    )
    taken = Taken(order)
    capture = cv2.VideoCapture(order.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, THREADS])
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)

    def picture() -> np.ndarray:
        ok, image = capture.retrieve()
        if not ok:
            raise DecodeError("OpenCV found a frame it cannot return")
        return cv2.cvtColor(cv2.resize(image, order.stored, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    try:
        first = None
        for number in range(order.total):
            if taken.full or not capture.grab():
                break
            clock = order.clock[number] if order.clock else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = clock if first is None else first
            taken.offer(clock - first + order.origin, picture)
        taken.finish()
    finally:
        capture.release()
    return taken.frames, taken.times
