"""Scenes made by hand, as the studio would have filmed them."""

from lab.tabletop.truth import Track, Truth


def track(color: str, shape: str, act: str, where: dict[int, tuple[float, float]], air: tuple[int, ...] = ()) -> Track:
    """A thing of a tenth of the picture's side, whose upper left corner is at `where` by interval."""
    boxes = {i: (x, y, x + 0.1, y + 0.1) for i, (x, y) in where.items()}
    cells = {i: ((int(y * 10), int(x * 10)),) for i, (x, y) in where.items()}
    return Track(color, shape, act, boxes, cells, air)


def stands(color: str, shape: str, x: float, y: float, length: int) -> Track:
    return track(color, shape, "stand", dict.fromkeys(range(length), (x, y)))


WOOD = Truth(
    6, 0.5, "wood", "still",
    (
        stands("red", "cube", 0.1, 0.5, 6),
        stands("blue", "cone", 0.7, 0.5, 6),
        track("green", "ball", "cross", {2: (0.0, 0.5), 3: (0.2, 0.5), 4: (0.9, 0.5)}),
        track("white", "star", "drop", {1: (0.4, 0.1)} | dict.fromkeys(range(2, 6), (0.4, 0.6)), (1,)),
    ),
    ((1.6, 0, 2),),
)  # fmt: skip
SAND = Truth(
    4, 0.5, "sand", "pan",
    (stands("red", "cone", 0.3, 0.4, 4), stands("red", "ring", 0.6, 0.4, 4)),
    (),
)  # fmt: skip
TILES = Truth(
    6, 0.5, "tiles", "orbit",
    (
        stands("black", "cylinder", 0.2, 0.5, 6),
        track("yellow", "cube", "drop", {4: (0.5, 0.2), 5: (0.5, 0.6)}, (4,)),
        track("purple", "ball", "slide", {3: (0.9, 0.4), 4: (0.6, 0.4), 5: (0.5, 0.4)}),
    ),
    (),
)  # fmt: skip
CLIP = (WOOD, SAND, TILES)
