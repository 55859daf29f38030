"""Scenes to pixels: stickers with a dark rim on a softly patterned background."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lab.world.records import GRID
from lab.world.scene import BACKGROUNDS, COLORS, Item, Scene

SIDE = 448  # pixels of the film; four times the embedded models' 112, so that cells fall on whole pixels
CELL = SIDE // GRID
UNIT = SIDE / 112  # film pixels per model pixel
STICKER = 54  # pixels across
TICKS = 12  # film frames per interval: half a second at 24 frames a second
RIM = (20, 22, 30)
SMOOTH = 4  # supersampling of the stickers
GROW = {0: 0.45, 1: 0.8, TICKS - 1: 0.7}  # a sticker pops up and away, but stands full when a sampler looks


def draw_frame(scene: Scene, interval: int, tick: int) -> np.ndarray:
    """One film frame, uint8 [SIDE, SIDE, 3]: film frame `tick` (0..TICKS-1) of an interval of the scene."""
    picture = background(scene.background, scene.texture).copy()
    for item in scene.items:
        if item.cell(interval) is not None:
            _paste(picture, item, interval, tick)
    return picture


def _paste(picture: np.ndarray, item: Item, interval: int, tick: int) -> None:
    sticker = _sticker(item.kind, item.name if item.kind != "ball" else "", item.color, _size(item, interval, tick))
    size = len(sticker)
    y, x = _centre(item, interval, tick)
    top, left = round(y - size / 2), round(x - size / 2)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + size, SIDE), min(left + size, SIDE)
    part = sticker[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
    alpha = part[..., 3:] / 255
    under = picture[y0:y1, x0:x1]
    picture[y0:y1, x0:x1] = np.rint(under * (1 - alpha) + part[..., :3] * alpha).astype(np.uint8)


def _size(item: Item, interval: int, tick: int) -> int:
    first, last = interval == item.first, interval == item.last
    growing = (first and tick < TICKS // 2) or (last and tick > TICKS // 2)
    return round(STICKER * GROW.get(tick, 1.0)) if growing else STICKER


def _centre(item: Item, interval: int, tick: int) -> tuple[float, float]:
    row, col = item.cells[interval - item.first]
    y, x = (row + 0.5) * CELL, (col + 0.5) * CELL
    if item.kind == "ball":  # in the middle of its cell half-way through the interval
        along = (tick - TICKS / 2) / TICKS * CELL
        (r0, c0), (r1, c1) = item.cells[0], item.cells[-1]
        return y + np.sign(r1 - r0) * along, x + np.sign(c1 - c0) * along
    angle = 2 * math.pi * (tick / TICKS / 2 + item.phase)
    return y + UNIT * (item.shift[0] + 0.5 * math.sin(angle)), x + UNIT * (item.shift[1] + 0.4 * math.cos(angle))


@lru_cache(maxsize=256)
def background(color: str, texture: int) -> np.ndarray:
    """The empty scene, uint8 [SIDE, SIDE, 3]: a gradient with soft blobs, stripes, waves or nothing."""
    rng = np.random.default_rng(texture)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    angle, pattern = rng.uniform(0, 2 * math.pi), rng.integers(4)
    along = x * math.cos(angle) + y * math.sin(angle)
    shade = 12 * (along - along.mean())
    if pattern == 1:
        shade += 5 * np.sin(2 * math.pi * along * rng.integers(5, 9)).astype(np.float32)
    elif pattern == 2:
        shade += 5 * np.sin(14 * x + 3 * np.sin(9 * y + rng.uniform(0, 6))).astype(np.float32)
    elif pattern == 3:
        coarse = Image.fromarray(rng.normal(0, 6, (7, 7)).astype(np.float32))
        shade += np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    shade -= 10 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return np.clip(np.array(BACKGROUNDS[color], np.float32) + shade[..., None], 0, 255).astype(np.uint8)


@lru_cache(maxsize=1024)
def _sticker(kind: str, name: str, color: str, size: int) -> np.ndarray:
    """RGBA uint8 [size, size, 4]."""
    side = size * SMOOTH
    picture = Image.new("RGBA", (side, side), (*RIM, 0))
    pen = ImageDraw.Draw(picture)
    if kind == "plate":
        pen.rounded_rectangle((0, 0, side - 1, side - 1), side // 7, fill=(12, 12, 14, 255))
        font = ImageFont.load_default(side * 0.86)
        pen.text(
            (side / 2, side * 0.52), name, fill=(255, 255, 255, 255), anchor="mm", font=font, stroke_width=side // 60
        )
    elif kind == "ball":
        pen.ellipse((side * 0.1, side * 0.1, side * 0.9, side * 0.9), fill=(*RIM, 255))
        for a in range(6):  # a beach ball: no object shape looks like it
            fill = (250, 250, 250, 255) if a % 2 else (40, 40, 46, 255)
            pen.pieslice((side * 0.16, side * 0.16, side * 0.84, side * 0.84), a * 60, a * 60 + 60, fill=fill)
    else:
        fill, rim = (*COLORS[color], 255), (*RIM, 255)
        _shape(pen, name, side, 1.0, rim)
        _shape(pen, name, side, 0.76, fill)
        if kind == "flash":
            c = side / 2
            pen.ellipse((c * 0.72, c * 0.72, c * 1.28, c * 1.28), fill=(255, 255, 255, 255))
    return np.asarray(picture.reduce(SMOOTH))


def _shape(pen: ImageDraw.ImageDraw, name: str, side: int, scale: float, fill: tuple[int, ...]) -> None:
    c, r = side / 2, side / 2 * scale
    if name == "circle":
        pen.ellipse((c - r * 0.92, c - r * 0.92, c + r * 0.92, c + r * 0.92), fill=fill)
    elif name == "square":
        pen.rectangle((c - r * 0.86, c - r * 0.86, c + r * 0.86, c + r * 0.86), fill=fill)
    elif name == "triangle":
        low = c + side * 0.06  # the rim stays even when the centre of the shrunk copy is its centroid
        pen.polygon([(c, low - r * 1.08), (c + r * 0.98, low + r * 0.76), (c - r * 0.98, low + r * 0.76)], fill=fill)
    elif name == "cross":
        w = side * (0.2 if scale == 1 else 0.1)
        pen.rectangle((c - w, c - r, c + w, c + r), fill=fill)
        pen.rectangle((c - r, c - w, c + r, c + w), fill=fill)
    elif name == "heart":
        u = 0.52 * r
        pen.ellipse((c - r, c - r * 0.86, c - r + 2 * u, c - r * 0.86 + 2 * u), fill=fill)
        pen.ellipse((c + r - 2 * u, c - r * 0.86, c + r, c - r * 0.86 + 2 * u), fill=fill)
        pen.polygon([(c - r * 0.93, c - r * 0.12), (c + r * 0.93, c - r * 0.12), (c, c + r * 0.96)], fill=fill)
    else:
        points, inner = (5, 0.45) if name == "star" else (12, 0.6)
        spokes = [(r * (1 if i % 2 == 0 else inner), math.pi * (i / points - 0.5)) for i in range(2 * points)]
        pen.polygon([(c + q * math.cos(a), c + q * math.sin(a)) for q, a in spokes], fill=fill)
