"""The world of the clips: scenes of one background with small things that come and go, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.world.records import GRID, INTERVALS

# Muted backgrounds under bright objects: the same word never names both in one scene.
BACKGROUNDS = {
    "red": (150, 44, 52),
    "orange": (206, 116, 44),
    "yellow": (214, 186, 84),
    "green": (52, 116, 74),
    "blue": (42, 78, 158),
    "purple": (102, 60, 140),
    "pink": (218, 146, 172),
    "gray": (108, 114, 122),
}
COLORS = {
    "red": (236, 48, 48),
    "orange": (255, 146, 24),
    "yellow": (255, 230, 60),
    "green": (64, 208, 96),
    "blue": (64, 132, 255),
    "purple": (168, 76, 236),
    "pink": (255, 142, 206),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
LETTERS = ("A", "C", "H", "K", "L", "S", "T", "X")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

OBJECTS_PER_INTERVAL = 1.4
FLASH_SHARE = 0.35  # of the scenes
BALL_SHARE = 0.3
TEXTURES = 24  # patterns of a background; few, so that drawn ones are reused
SCENE_LENGTHS = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Item:
    """Something small in a scene.

    `kind` is "object", "plate" (a letter on black), "flash" (a burst) or "ball" (the only thing that travels).
    `name` is its shape, its letter or, for a ball, its direction. It is on screen in intervals first..last of its
    scene, in `cells[i]` = (row, col) in interval first + i. `shift` and `phase` vary where in the cell it hovers.
    """

    kind: str
    name: str
    color: str
    first: int
    cells: tuple[tuple[int, int], ...]
    shift: tuple[float, float] = (0.0, 0.0)  # model pixels
    phase: float = 0.0

    @property
    def last(self) -> int:
        return self.first + len(self.cells) - 1

    def cell(self, interval: int) -> tuple[int, int] | None:
        """Where it is in an interval of its scene; None when it is not on screen."""
        return self.cells[interval - self.first] if self.first <= interval <= self.last else None


@dataclass(frozen=True)
class Scene:
    """One background for `length` intervals, and what appears in front of it."""

    background: str
    length: int
    items: tuple[Item, ...]
    texture: int  # seed of its pattern

    def of_kind(self, kind: str) -> list[Item]:
        return [item for item in self.items if item.kind == kind]

    @property
    def letter(self) -> str:
        return self.of_kind("plate")[0].name


@dataclass
class _Stage:
    """A scene under construction: which cells are taken in which interval."""

    rng: np.random.Generator
    length: int
    taken: set[tuple[int, int, int]] = field(default_factory=set)

    def place(self, duration: int, step: tuple[int, int] = (0, 0)) -> tuple[int, tuple[tuple[int, int], ...]]:
        """A free first interval and the free cells from it on; every cell is as likely as the others."""
        while True:
            first = int(self.rng.integers(self.length - duration + 1))
            row, col = map(int, self.rng.integers(0, GRID, 2))
            cells = tuple((row + i * step[0], col + i * step[1]) for i in range(duration))
            slots = {(first + i, *cell) for i, cell in enumerate(cells)}
            inside = all(0 <= row < GRID and 0 <= col < GRID for row, col in cells)
            if inside and not slots & self.taken:
                self.taken |= slots
                return first, cells

    def item(self, kind: str, name: str, color: str, duration: int, step: tuple[int, int] = (0, 0)) -> Item:
        first, cells = self.place(duration, step)
        shift = (0.0, 0.0) if kind == "ball" else tuple(self.rng.uniform(-0.8, 0.8, 2).round(2).tolist())
        return Item(kind, name, color, first, cells, shift, round(float(self.rng.uniform(0, 1)), 3))


def make_scene(
    rng: np.random.Generator,
    length: int,
    background: str,
    letters: Sequence[str],
    *,
    density: float = OBJECTS_PER_INTERVAL,
    flash: float = FLASH_SHARE,
    ball: float = BALL_SHARE,
) -> Scene:
    """A random scene; its objects last one or two intervals, its letters and its flash one.

    `density` is objects per interval; `flash` and `ball` are the chances that there is one.
    """
    stage = _Stage(rng, length)
    colors = [color for color in COLORS if color != background]

    def color() -> str:
        return colors[rng.integers(len(colors))]

    items = []
    if length >= 3 and rng.random() < ball:
        direction = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
        items.append(
            stage.item("ball", direction, "white", int(rng.integers(3, min(length, 4) + 1)), DIRECTIONS[direction])
        )
    items += [stage.item("plate", letter, "black", 1) for letter in letters]
    if rng.random() < flash:
        items.append(stage.item("flash", "flash", color(), 1))
    for _ in range(max(2, round(density * length) + int(rng.integers(-1, 2)))):
        shape = SHAPES[rng.integers(len(SHAPES))]
        items.append(stage.item("object", shape, color(), int(rng.integers(1, 3))))
    return Scene(background, length, tuple(items), int(rng.integers(TEXTURES)))


def scene_lengths(rng: np.random.Generator, total: int = INTERVALS) -> list[int]:
    """Lengths of the three to five scenes of a clip; they add up to `total`."""
    count = int(rng.integers(3, 6))
    while True:
        lengths = rng.choice(SCENE_LENGTHS, count)
        if lengths.sum() == total:
            return [int(length) for length in lengths]


def make_scenes(rng: np.random.Generator) -> tuple[Scene, ...]:
    """The scenes of a clip, each with its own background and its own letter."""
    lengths = scene_lengths(rng)
    backgrounds = rng.permutation(list(BACKGROUNDS))[: len(lengths)]
    letters = rng.permutation(list(LETTERS))[: len(lengths)]
    return tuple(
        make_scene(rng, length, ground, [letter])
        for length, ground, letter in zip(lengths, backgrounds.tolist(), letters.tolist(), strict=True)
    )


def scene_bounds(scenes: tuple[Scene, ...]) -> tuple[tuple[int, int], ...]:
    """[first, end) of each scene in intervals of the clip."""
    ends = np.cumsum([scene.length for scene in scenes]).tolist()
    return tuple((end - scene.length, end) for scene, end in zip(scenes, ends, strict=True))
