"""What a scene holds before anything moves: the surface, the light, the camera and the things, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lab.world.records import INTERVALS

SURFACES = ("wood", "marble", "felt", "denim", "carpet", "tiles", "sand", "slate")
COLORS = {
    "red": (0.82, 0.07, 0.07),
    "yellow": (0.95, 0.78, 0.05),
    "green": (0.06, 0.50, 0.14),
    "blue": (0.05, 0.16, 0.78),
    "purple": (0.46, 0.10, 0.60),
    "white": (0.94, 0.94, 0.94),
    "black": (0.05, 0.05, 0.06),
}
SHAPES = ("ball", "cube", "cylinder", "cone", "ring", "star")
MOVES = ("still", "pan", "orbit", "zoom")  # of the camera
SECONDS = (0.5, 0.625, 0.75, 1.0)  # of an interval: films of 8 to 16 seconds
FPS = 24
SCENE_LENGTHS = (3, 4, 5, 6, 8, 10)  # intervals
SIZE = 0.105  # half an edge or a radius, in metres
CROWD = 24  # things in a scene for the vision tower
EDGE = 1.5  # where what enters starts, in metres from the middle
GRAVITY = 9.81

Act = Literal["stand", "drop", "slide", "cross", "leave"]


@dataclass(frozen=True)
class Thing:
    """One thing and what it is made to do.

    Attributes
    ----------
    act : "stand"; "drop" from above; "slide" or roll in from a side; "cross" the picture; "leave" by a side.
    at : seconds from the start of the scene when it is let go; 0 for what is there from the start.
    start : x, y, z in metres when let go; x to the right, y away from the camera.
    push : velocity along x and y when let go, in metres a second.
    turn : angle about the vertical axis.
    """

    color: str
    shape: str
    act: Act
    at: float
    start: tuple[float, float, float]
    push: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0


@dataclass(frozen=True)
class Light:
    """The lamp: where it hangs, how bright and how warm it is, and how much light comes from all around."""

    place: tuple[float, float, float]
    color: tuple[float, float, float]
    ambient: float


@dataclass(frozen=True)
class Camera:
    """A camera that looks at the table: what it does, where from, and by how much it moves during the scene."""

    move: str
    azimuth: float
    elevation: float
    distance: float
    look: tuple[float, float]
    travel: float  # metres of a pan or a zoom, degrees of an orbit
    shake: float  # degrees


@dataclass(frozen=True)
class Plan:
    """A scene: `length` intervals of `seconds` each."""

    length: int
    seconds: float
    surface: str
    backdrop: int
    light: Light
    camera: Camera
    things: tuple[Thing, ...]

    @property
    def ticks(self) -> int:
        """Film frames of one interval."""
        return round(self.seconds * FPS)


def plan_scene(rng: np.random.Generator, length: int, seconds: float, surface: str) -> Plan:
    """A random scene on `surface`."""
    things: list[Thing] = []
    spots = _spots(rng)
    acts = ["stand"] * int(rng.integers(2, 5)) + [
        str(act) for act in rng.choice(["drop", "drop", "slide", "cross", "leave"], int(rng.integers(1, 4)))
    ]
    pairs: set[tuple[str, str]] = set()
    for act in acts:
        color, shape = _look(rng, act, things, pairs)
        pairs.add((color, shape))
        spot = spots.pop()
        if act in ("slide", "cross") and rng.random() < 0.6:  # towards something that stands there
            spot = (spot[0], things[int(rng.integers(len(things)))].start[1])
        things.append(_thing(rng, act, color, shape, spot, length, seconds))
    return Plan(length, seconds, surface, int(rng.integers(4)), _light(rng), _camera(rng), tuple(things))


def scene_lengths(rng: np.random.Generator) -> list[int]:
    """Lengths of a clip's scenes in intervals: one shot in eight clips, else two to five scenes."""
    count = int(rng.choice([1, 2, 3, 4, 5], p=[0.12, 0.22, 0.22, 0.22, 0.22]))
    if count == 1:
        return [INTERVALS]
    while True:
        lengths = rng.choice(SCENE_LENGTHS, count)
        if lengths.sum() == INTERVALS:
            return [int(length) for length in lengths]


def plan_clip(rng: np.random.Generator) -> tuple[Plan, ...]:
    """The scenes of a clip, each on a surface of its own."""
    lengths = scene_lengths(rng)
    seconds = float(rng.choice(SECONDS))
    surfaces = rng.permutation(SURFACES)[: len(lengths)].tolist()
    return tuple(plan_scene(rng, n, seconds, surface) for n, surface in zip(lengths, surfaces, strict=True))


def plan_crowd(rng: np.random.Generator) -> Plan:
    """A scene with more things in it than any clip has, for the vision tower alone."""
    length, seconds, things = 4, 0.5, list[Thing]()
    spots, pairs = _spots(rng, CROWD), set[tuple[str, str]]()
    acts = ["stand"] * (CROWD * 2 // 3) + ["drop"] * (CROWD // 6) + ["slide"] * (CROWD - CROWD * 2 // 3 - CROWD // 6)
    for act, spot in zip(acts, spots, strict=True):
        color, shape = _look(rng, act, things, pairs)
        pairs.add((color, shape))
        things.append(_thing(rng, act, color, shape, spot, length, seconds))
    surface = str(rng.choice(SURFACES))
    return Plan(length, seconds, surface, int(rng.integers(4)), _light(rng), _camera(rng), tuple(things))


def _spots(rng: np.random.Generator, count: int = 9) -> list[tuple[float, float]]:
    """Places on the table, no two within reach of each other; now and then one right behind another.

    Nine fit in the picture of a clip; more are spread over its edges too.
    """
    wide = count > 9
    apart, (x_most, y_least, y_most) = (0.2, (1.05, -0.62, 0.85)) if wide else (0.27, (0.72, -0.5, 0.62))
    spots: list[tuple[float, float]] = []
    while len(spots) < count:
        x, y = rng.uniform(-x_most, x_most), rng.uniform(y_least, y_most)
        if spots and rng.random() < 0.12:
            x, y = spots[-1][0] + rng.uniform(-0.05, 0.05), spots[-1][1] + rng.uniform(0.28, 0.36)
        if y < y_most + 0.08 and all((x - a) ** 2 + (y - b) ** 2 > apart**2 for a, b in spots):
            spots.append((float(x), float(y)))
    return spots


def _look(rng: np.random.Generator, act: str, things: list[Thing], pairs: set[tuple[str, str]]) -> tuple[str, str]:
    while True:
        color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        if things and rng.random() < 0.3:  # a look-alike: one attribute is shared
            other = things[int(rng.integers(len(things)))]
            color, shape = (other.color, shape) if rng.random() < 0.5 else (color, other.shape)
        if act in ("cross", "leave"):
            shape = "ball"
        if (color, shape) not in pairs:
            return color, shape


def _thing(
    rng: np.random.Generator, act: str, color: str, shape: str, spot: tuple[float, float], length: int, seconds: float
) -> Thing:
    x, y = spot
    turn, side = float(rng.uniform(0, 6.28)), float(rng.choice([-1.0, 1.0]))
    rest = SIZE if shape not in ("ring", "star") else 0.04
    # Let go shortly before a sampler looks, so that what happens is seen.
    interval = int(rng.integers(1, length))
    middle = (interval + 0.5) * seconds
    if act == "drop":
        fallen = rng.uniform(0.22, 0.32)
        height = rng.uniform(0.3, 0.62)
        return Thing(color, shape, "drop", middle - fallen, (x, y, height + GRAVITY * fallen**2 / 2), turn=turn)
    if act == "slide":
        speed = rng.uniform(1.7, 2.2) if shape != "ball" else rng.uniform(0.9, 1.4)
        start = (side * EDGE, y, rest + 0.01)
        return Thing(color, shape, "slide", max(0.05, middle - 0.45), start, (-side * speed, 0.0), turn)
    if act == "cross":
        speed = rng.uniform(1.6, 2.6)
        at = middle - EDGE / speed + rng.uniform(-0.15, 0.15)
        drift = float(rng.uniform(-0.2, 0.2))
        return Thing(color, shape, "cross", max(0.02, at), (side * EDGE, y, rest), (-side * float(speed), drift), turn)
    if act == "leave":
        speed = rng.uniform(1.0, 1.8)
        return Thing(color, shape, "leave", middle, (x, y, rest + 0.001), (side * float(speed), 0.0), turn)
    return Thing(color, shape, "stand", 0.0, (x, y, rest + 0.001), turn=turn)


def _light(rng: np.random.Generator) -> Light:
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.9)
    warm, power = rng.uniform(-0.06, 0.08), rng.uniform(0.5, 0.68)
    place = (float(reach * np.cos(angle)), float(0.3 - abs(reach * np.sin(angle))), float(rng.uniform(2.0, 3.2)))
    return Light(place, (float(power + warm), float(power), float(power - warm)), float(rng.uniform(0.26, 0.4)))


def _camera(rng: np.random.Generator) -> Camera:
    move = str(rng.choice(MOVES, p=[0.4, 0.2, 0.25, 0.15]))
    way = float(rng.choice([-1.0, 1.0]))
    travel = {"still": 0.0, "pan": way * 0.5, "orbit": way * 32.0, "zoom": way * 0.55}[move]
    return Camera(
        move,
        azimuth=float(90 + rng.uniform(-14, 14)),
        elevation=float(rng.uniform(-46, -30)),
        distance=float(rng.uniform(1.95, 2.35)),
        look=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.04, 0.08))),
        travel=travel,
        shake=float(rng.choice([0.0, 0.12, 0.3])),
    )
