"""Procedural surfaces: uint8 pictures that depend on nothing but their name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

SIDE = 512
Painter = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


@lru_cache(maxsize=16)
def texture(name: str) -> np.ndarray:
    """The texture of a surface or backdrop, uint8 [SIDE, SIDE, 3]."""
    rng = np.random.default_rng(sum(name.encode()))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = TEXTURES[name](rng, x, y)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, roughness: float, stretch: float = 1.0) -> np.ndarray:
    """Periodic noise of a power spectrum 1 / f ** roughness, mean 0 and deviation 1; `stretch` draws it out along y."""
    fy, fx = np.meshgrid(np.fft.fftfreq(SIDE) * stretch, np.fft.fftfreq(SIDE), indexing="ij")
    radius = np.hypot(fx, fy)
    radius[0, 0] = np.inf
    values = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / radius**roughness).real
    return (values - values.mean()) / values.std()


def _tint(color: tuple[int, int, int], shade: np.ndarray) -> np.ndarray:
    return np.array(color, float) * (1 + shade[..., None])


def _wood(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    plank = np.floor(x * 6).astype(int)
    tone = rng.uniform(-0.12, 0.12, 6)[plank]
    grain = 0.10 * _noise(rng, 1.0, stretch=14) + 0.05 * np.sin(60 * x + 3 * _noise(rng, 1.6, stretch=6))
    seam = np.where(np.abs(x * 6 - np.rint(x * 6)) < 0.025, -0.45, 0.0)
    return _tint((158, 104, 58), tone + grain + seam)


def _marble(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    flow = np.sin(2 * np.pi * (2 * x + 1 * y) + 2.4 * _noise(rng, 1.7))
    vein = -0.42 * np.exp(-np.abs(flow) * 9) + 0.03 * _noise(rng, 1.2)
    return _tint((188, 187, 183), vein)


def _felt(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _tint((48, 118, 84), 0.10 * _noise(rng, 0.1) + 0.05 * _noise(rng, 1.2))


def _denim(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    twill = 0.14 * np.sign(np.sin(2 * np.pi * 64 * (x + y))) + 0.08 * _noise(rng, 0.3) + 0.06 * _noise(rng, 1.4)
    return _tint((74, 98, 142), twill)


def _carpet(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    figure = np.sin(2 * np.pi * 6 * x) * np.sin(2 * np.pi * 6 * y)
    ring = np.abs(np.sin(2 * np.pi * 3 * x) * np.sin(2 * np.pi * 3 * y)) > 0.72
    shade = 0.14 * _noise(rng, 0.2) + 0.16 * (figure > 0.35)
    ground = _tint((128, 44, 46), shade)
    return np.where(ring[..., None], _tint((176, 136, 88), shade), ground)


def _tiles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    odd = (np.floor(x * 6) + np.floor(y * 6)) % 2
    joint = np.minimum(np.abs(x * 6 - np.rint(x * 6)), np.abs(y * 6 - np.rint(y * 6))) < 0.03
    ground = np.where(odd[..., None] > 0, _tint((186, 178, 160), 0.03 * _noise(rng, 1.0)), (104.0, 124.0, 134.0))
    return np.where(joint[..., None], (150.0, 148.0, 142.0), ground)


def _sand(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ripple = 0.07 * np.sin(2 * np.pi * 14 * y + 1.6 * _noise(rng, 1.7))
    return _tint((206, 178, 128), ripple + 0.09 * _noise(rng, 0.1))


def _slate(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    crack = -0.5 * np.exp(-np.abs(_noise(rng, 1.9)) * 26)
    return _tint((84, 88, 96), 0.13 * _noise(rng, 1.1) + crack)


def _wall(color: tuple[int, int, int], level: float) -> Painter:
    def paint(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return _tint(color, level * _noise(rng, 1.6) + 0.02 * _noise(rng, 0.3))

    return paint


TEXTURES = {
    "wood": _wood,
    "marble": _marble,
    "felt": _felt,
    "denim": _denim,
    "carpet": _carpet,
    "tiles": _tiles,
    "sand": _sand,
    "slate": _slate,
    "wall 0": _wall((196, 188, 174), 0.03),
    "wall 1": _wall((132, 146, 150), 0.04),
    "wall 2": _wall((88, 78, 72), 0.06),
    "wall 3": _wall((164, 150, 132), 0.05),
}
