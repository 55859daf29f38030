"""Deterministic frames for the processor goldens: arithmetic only, so that every machine makes the same bytes."""

import numpy as np


def golden_frames(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: gradients, a moving edge and hash noise, different in every channel and frame."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    noise = (x * 2_654_435_761 + y * 40_503 + t * 2_246_822_519 + c * 3_266_489_917) % 65_521 % 256
    ramp = (255 * (x + 2 * y)) // (width + 2 * height)
    edge = 90 * ((x + 7 * t) % width > width // 2)
    return ((ramp + edge + noise // 4 + 31 * c) % 256).astype(np.uint8)
