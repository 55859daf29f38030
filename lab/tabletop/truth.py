"""What a rendered scene shows, read off the segmentation and the simulator; it goes to disk as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

GRID = 10  # cells along one side of the picture; one cell is one visual token of a model that sees 160 pixels
PATCHES = 20  # patches of the vision tower along one side, four to a cell
SEEN = 28  # pixels of a 160 x 160 picture from which a thing counts as seen
COVER = 0.22  # share of a cell that a thing fills where the cell is evidence of it
AIR = 0.3  # height in metres of what is still in the air

Box = tuple[float, float, float, float]
Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Track:
    """Where one thing is seen, by interval of its scene.

    Attributes
    ----------
    color, shape : how it looks.
    act : what it was made to do, as in `plan.Thing`.
    boxes : (left, top, right, bottom) as shares of the picture's side.
    cells : (row, col) of the GRID x GRID cells it fills, at least the one it fills most.
    air : intervals in which it is seen falling.
    """

    color: str
    shape: str
    act: str
    boxes: Mapping[int, Box] = field(default_factory=dict)
    cells: Mapping[int, Cells] = field(default_factory=dict)
    air: tuple[int, ...] = ()

    @property
    def seen(self) -> tuple[int, ...]:
        """Intervals in which it is seen."""
        return tuple(sorted(self.boxes))


@dataclass(frozen=True)
class Truth:
    """A scene as it was filmed: `touches` are (second, thing, thing), first contacts between things that move apart."""

    length: int
    seconds: float
    surface: str
    camera: str
    tracks: tuple[Track, ...]
    touches: tuple[tuple[float, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Truth:
        """The scene of a dictionary that `to_json` made, through JSON or not."""
        tracks = tuple(
            Track(
                track["color"],
                track["shape"],
                track["act"],
                {int(i): tuple(box) for i, box in track["boxes"].items()},
                {int(i): tuple((row, col) for row, col in cells) for i, cells in track["cells"].items()},
                tuple(track["air"]),
            )
            for track in values["tracks"]
        )
        touches = tuple((second, a, b) for second, a, b in values["touches"])
        return cls(values["length"], values["seconds"], values["surface"], values["camera"], tracks, touches)


def read_masks(masks: Sequence[np.ndarray], looks: Sequence[tuple[str, str, str]], heights: np.ndarray) -> list[Track]:
    """Tracks of the things from their masks.

    `masks` [160, 160] hold the number of the thing seen, -1 elsewhere, one for each interval; `looks` (colour, shape,
    act) and `heights` [intervals, things], in metres, belong to the things.
    """
    tracks = []
    for thing, (color, shape, act) in enumerate(looks):
        boxes, cells, air = {}, {}, []
        for interval, mask in enumerate(masks):
            shown = mask == thing
            if shown.sum() < SEEN:
                continue
            rows, cols = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
            side = len(mask)
            boxes[interval] = (
                round(float(cols[0]) / side, 4),
                round(float(rows[0]) / side, 4),
                round(float(cols[-1] + 1) / side, 4),
                round(float(rows[-1] + 1) / side, 4),
            )
            cover = shown.reshape(GRID, side // GRID, GRID, side // GRID).mean((1, 3))
            filled = np.argwhere((cover >= COVER) | (cover == cover.max()))
            cells[interval] = tuple((int(row), int(col)) for row, col in filled)
            if heights[interval, thing] > AIR:
                air.append(interval)
        tracks.append(Track(color, shape, act, boxes, cells, tuple(air)))
    return tracks


def patch_labels(mask: np.ndarray, table: np.ndarray, things: int) -> np.ndarray:
    """What each patch shows, uint8 [PATCHES, PATCHES]: a thing's number, TABLE, OFF, or MIXED.

    `mask` holds thing numbers or -1, `table` is true where the surface itself is seen.
    """
    size = len(mask) // PATCHES

    def share(shown: np.ndarray) -> np.ndarray:
        return shown.reshape(PATCHES, size, PATCHES, size).mean((1, 3))

    labels = np.where(share(table) + share(mask >= 0) > 0.5, TABLE, OFF).astype(np.uint8)
    covers = np.stack([share(mask == thing) for thing in range(things)])
    best, cover = covers.argmax(0), covers.max(0)
    labels[cover > 0.1] = MIXED
    return np.where(cover >= 0.34, best, labels).astype(np.uint8)


TABLE, OFF, MIXED = 250, 251, 255
