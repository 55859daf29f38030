"""How stored pictures are turned for display: eight orientations, read once (in the scan) and applied once.

An orientation is (rotation, mirrored): the picture is first mirrored left to right, if `mirrored`, then turned
counter-clockwise by `rotation` degrees (0, 90, 180 or 270). Decoders deliver pictures as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Orientation = tuple[int, bool]

UPRIGHT: Orientation = (0, False)
ALL: tuple[Orientation, ...] = tuple(
    (rotation, mirrored) for mirrored, rotation in product((False, True), range(0, 360, 90))
)

# Side of the small pictures that are compared. Squeezed to a square, so that a turned picture can be compared too.
THUMB = 16
# Mean difference, of 255, below which a small picture looks the same in two orientations.
_TELLING = 5.0

# (a, b, c, d) of a counter-clockwise turn: x' = a x + c y, y' = b x + d y, y pointing down (ISO 14496-12, 6.2.2).
_TURNS = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}


def of_matrix(matrix: Sequence[int]) -> Orientation:
    """Return the orientation nearest to a display matrix (nine numbers, row by row); a matrix of zeros is upright.

    Translation and scale say nothing about the orientation; of two equally near ones the smaller turn is taken.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]

    def likeness(orientation: Orientation) -> int:
        rotation, mirrored = orientation
        turn = _TURNS[rotation]
        sign = -1 if mirrored else 1
        return sign * (a * turn[0] + b * turn[1]) + c * turn[2] + d * turn[3]

    return max(ALL, key=likeness)


def displayed(size: tuple[int, int], orientation: Orientation) -> tuple[int, int]:
    """Return the (width, height) that a stored size has when displayed, or the other way round."""
    return size if orientation[0] % 180 == 0 else size[::-1]


def upright(image: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return a view of a stored picture [H, W, ...] as it is displayed."""
    import numpy as np

    rotation, mirrored = orientation
    return np.rot90(image[:, ::-1] if mirrored else image, k=rotation // 90)


def thumb(image: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [H, W, 3] averaged down to [THUMB, THUMB, 3]."""
    import numpy as np

    for axis in (0, 1):
        side = image.shape[axis]
        if side < THUMB:
            image = np.repeat(image, -(-THUMB // side), axis=axis)
            side = image.shape[axis]
        starts = np.linspace(0, side, THUMB + 1).astype(int)
        sums = np.add.reduceat(image, starts[:-1], axis=axis, dtype=np.float32)
        image = sums / np.diff(starts).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return image


def is_telling(small: bytes) -> bool:
    """Return whether a stored small picture (RGB, THUMB x THUMB) looks different in every orientation."""
    rows = [small[at : at + 3 * THUMB] for at in range(0, len(small), 3 * THUMB)]
    pixels = [[row[at : at + 3] for at in range(0, len(row), 3)] for row in rows]
    for rotation, mirrored in ALL[1:]:
        turned = [row[::-1] for row in pixels] if mirrored else pixels
        for _ in range(rotation // 90):
            turned = [list(column) for column in zip(*turned, strict=True)][::-1]
        other = b"".join(pixel for row in turned for pixel in row)
        if sum(abs(p - q) for p, q in zip(small, other, strict=True)) < _TELLING * len(small):
            return False
    return True


def looks_otherwise(image: np.ndarray, small: bytes, orientation: Orientation) -> Orientation | None:
    """Return the orientation in which the stored small picture resembles `image`, if that is clearly another one.

    A damaged picture resembles none, and is not judged.
    """
    import numpy as np

    stored = np.frombuffer(small, np.uint8).reshape(THUMB, THUMB, 3).astype(np.float32)
    shown = thumb(image)
    apart = {one: float(np.abs(upright(stored, one) - shown).mean()) for one in ALL}
    nearest = min(ALL, key=lambda one: apart[one])
    if apart[orientation] > 2 * apart[nearest] and apart[orientation] - apart[nearest] > _TELLING / 2:
        return nearest
    return None
