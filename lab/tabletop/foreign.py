"""Clips of no table at all, from a seed: what a model must say "I cannot tell" to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lab.tabletop.studio import MODEL_SIDE
from lab.world.generate import clip_scenes, clip_seed, resize, sampled_frames
from lab.world.records import INTERVALS, Split

FOREIGN = 2  # with the clip's number, the seed of a foreign clip
Painter = Callable[[np.random.Generator, int], np.ndarray]


def foreign_clip(seed: int, split: Split = "train", side: int = MODEL_SIDE) -> tuple[str, np.ndarray]:
    """The kind and the frames, uint8 [16, side, side, 3], of foreign clip `seed` of a split."""
    rng = np.random.default_rng((clip_seed(split, seed), FOREIGN))
    names = [*PAINTERS, "drawn"]
    name = names[int(rng.integers(len(names)))]
    if name == "drawn":
        return name, resize(sampled_frames(clip_scenes(seed, split), 1), side)
    frames = PAINTERS[name](rng, side)
    return name, np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _moments() -> np.ndarray:
    return np.linspace(0, 1, INTERVALS)


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:side, 0:side] / side
    return x, y


def _spectrum(rng: np.random.Generator, shape: tuple[int, int], roughness: float) -> np.ndarray:
    fy, fx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
    radius = np.hypot(fx, fy)
    radius[0, 0] = np.inf
    values = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) / radius**roughness).real
    return (values - values.mean()) / values.std()


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of some spectrum, grey or coloured, that stands, drifts or flickers."""
    roughness, gray, motion = rng.uniform(0, 2.2), rng.random() < 0.3, rng.integers(3)
    mean, spread = rng.uniform(70, 180, 3), rng.uniform(25, 60)
    frames = []
    layers = [_spectrum(rng, (side, side), roughness) for _ in range(3)]
    speed = rng.integers(-8, 9, 2)
    for i in range(INTERVALS):
        if motion == 2:
            layers = [_spectrum(rng, (side, side), roughness) for _ in range(1 if gray else 3)]
        shift = tuple(speed * i) if motion == 1 else (0, 0)
        moved = [np.roll(layer, shift, (0, 1)) for layer in layers]
        frames.append(np.stack(moved * 3 if len(moved) == 1 else [moved[0]] * 3 if gray else moved, -1) * spread + mean)
    return np.stack(frames)


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    x, y = _grid(side)
    colors, angle, turn = rng.uniform(0, 255, (2, 3)), rng.uniform(0, 6.28), rng.uniform(-2, 2)
    radial = rng.random() < 0.4
    frames = []
    for t in _moments():
        a = angle + turn * t
        along = np.hypot(x - 0.5, y - 0.5) * 1.4 if radial else (x - 0.5) * np.cos(a) + (y - 0.5) * np.sin(a) + 0.5
        mix = np.clip(along + 0.2 * t, 0, 1)[..., None]
        frames.append(colors[0] * (1 - mix) + colors[1] * mix)
    return np.stack(frames)


def _fractal(rng: np.random.Generator, side: int) -> np.ndarray:
    x, y = _grid(side)
    c = 0.7885 * np.exp(1j * (rng.uniform(0, 6.28) + 0.4 * _moments()))
    phase, rate, zoom = rng.uniform(0, 6.28, 3), rng.uniform(0.15, 0.5), rng.uniform(1.6, 3.0)
    frames = []
    for value in c:
        z = ((x - 0.5) + 1j * (y - 0.5)) * zoom
        steps = np.zeros(x.shape)
        for _ in range(24):
            inside = np.abs(z) < 4
            z = np.where(inside, z * z + value, z)
            steps += inside
        frames.append(127 + 120 * np.sin(rate * steps[..., None] + phase))
    return np.stack(frames)


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """Colour bars, boards and rings, as test pictures have them."""
    x, y = _grid(side)
    count, kind, drift = int(rng.integers(3, 12)), rng.integers(4), rng.uniform(-0.3, 0.3)
    colors = rng.uniform(0, 255, (count, 3))
    frames = []
    for t in _moments():
        u = (x + drift * t) % 1
        index = {
            0: np.floor(u * count),
            1: np.floor(y * count),
            2: (np.floor(u * count) + np.floor(y * count)) % 2,
            3: np.floor(np.hypot(u - 0.5, y - 0.5) * 2 * count),
        }[int(kind)]
        frames.append(colors[index.astype(int) % count])
    return np.stack(frames)


def _shapes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Flat discs and blocks that drift over a plain or rough ground."""
    x, y = _grid(side)
    ground = rng.uniform(0, 255, 3) + rng.uniform(0, 30) * _spectrum(rng, (side, side), 1.0)[..., None]
    things = [
        (rng.uniform(0, 1, 2), rng.uniform(-0.6, 0.6, 2), rng.uniform(0.04, 0.25), rng.uniform(0, 255, 3), rng.random())
        for _ in range(int(rng.integers(1, 9)))
    ]
    frames = []
    for t in _moments():
        picture = ground.copy()
        for place, speed, size, color, round_ in things:
            u, v = x - (place[0] + speed[0] * t) % 1, y - (place[1] + speed[1] * t) % 1
            inside = np.hypot(u, v) < size if round_ < 0.5 else (np.abs(u) < size) & (np.abs(v) < size * 0.7)
            picture[inside] = color
        frames.append(picture)
    return np.stack(frames)


def _landscape(rng: np.random.Generator, side: int) -> np.ndarray:
    """Rough hills under a sky, panned: light above, dark below, as outdoor footage has it."""
    _, y = _grid(side)
    wide = side * 3
    sky, land = rng.uniform(120, 255, 3), rng.uniform(20, 150, 3)
    ridge = np.cumsum(rng.standard_normal(wide))
    ridge = 0.5 + 0.25 * (ridge - ridge.mean()) / max(np.abs(ridge - ridge.mean()).max(), 1e-6)
    rough, speed = _spectrum(rng, (side, wide), 1.1) * rng.uniform(8, 30), rng.uniform(0.2, 2.0)
    frames = []
    for t in _moments():
        left = int(t * speed * side)
        part, top = rough[:, left : left + side, None], ridge[left : left + side]
        frames.append(np.where((y > top)[..., None], land + part, sky + 0.3 * part - 60 * y[..., None]))
    return np.stack(frames)


def _plain(rng: np.random.Generator, side: int) -> np.ndarray:
    """One colour, black most of all, with cuts to others now and then."""
    colors = rng.uniform(0, 255, (4, 3)) * (rng.random((4, 1)) > 0.3)
    index = np.sort(rng.integers(0, int(rng.integers(1, 5)), INTERVALS))
    return np.broadcast_to(colors[index][:, None, None], (INTERVALS, side, side, 3))


PAINTERS: dict[str, Painter] = {
    "noise": _noise,
    "gradient": _gradient,
    "fractal": _fractal,
    "pattern": _pattern,
    "shapes": _shapes,
    "landscape": _landscape,
    "plain": _plain,
}
