"""Render the example clips: short seeded synthetic videos with scene cuts, moving shapes and a letter.

Usage: python tools/make_example_clips.py [FOLDER]      (default: assets/clips)
Writes FOLDER/<name>.mp4 (H.264, 384 x 384, 24 fps, 4 s) and FOLDER/examples.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, FPS = 384, 24
COLORS = {
    "red": (214, 57, 57),
    "green": (46, 160, 87),
    "blue": (54, 110, 222),
    "yellow": (240, 196, 40),
    "white": (240, 240, 240),
}


@dataclass(frozen=True)
class Actor:
    """A shape or a letter that moves in a straight line during its scene; positions in pixels of its centre."""

    shape: str  # circle | square | triangle | letter
    color: str
    start: tuple[float, float]
    end: tuple[float, float]
    size: float = 34.0
    text: str = ""


@dataclass(frozen=True)
class Scene:
    seconds: float
    background: tuple[int, int, int]
    actors: tuple[Actor, ...]


@dataclass(frozen=True)
class Film:
    name: str
    question: str
    note: str
    scenes: tuple[Scene, ...]


NIGHT, SAND, SEA, MOSS, PLUM = (28, 32, 48), (196, 176, 140), (24, 78, 96), (70, 92, 62), (74, 44, 84)

FILMS = (
    Film(
        "letter",
        "Which letter is shown, and in which colour?",
        "The letter is on screen for one second in four.",
        (
            Scene(1.5, SEA, (Actor("circle", "yellow", (60, 90), (320, 90)),)),
            Scene(1.0, NIGHT, (Actor("letter", "red", (170, 200), (215, 190), 64, "K"),)),
            Scene(1.5, SEA, (Actor("circle", "yellow", (320, 300), (60, 300)),)),
        ),
    ),
    Film(
        "three-scenes",
        "Which shape appears first?",
        "The answer lies at the start; position bias favours the end.",
        (
            Scene(1.2, MOSS, (Actor("triangle", "white", (80, 290), (290, 110), 40),)),
            Scene(1.4, SAND, (Actor("square", "blue", (300, 80), (110, 250), 36),)),
            Scene(1.4, PLUM, (Actor("circle", "green", (60, 200), (320, 200), 38),)),
        ),
    ),
    Film(
        "crossing",
        "In which direction does the blue square move?",
        "Two shapes cross on one background: no cut, little motion.",
        (
            Scene(
                4.0,
                SAND,
                (Actor("square", "blue", (330, 130), (50, 130)), Actor("circle", "red", (50, 255), (330, 255))),
            ),
        ),
    ),
    Film(
        "odd-one-out",
        "What colour is the small circle in the corner?",
        "A small detail: a few patches decide.",
        (
            Scene(2.0, NIGHT, (Actor("square", "white", (90, 110), (250, 270), 56),)),
            Scene(
                2.0,
                NIGHT,
                (
                    Actor("square", "white", (250, 270), (110, 250), 56),
                    Actor("circle", "green", (345, 40), (345, 40), 14),
                ),
            ),
        ),
    ),
)


def draw(scene: Scene, progress: float, texture: np.ndarray) -> np.ndarray:
    """Return one frame, uint8 [SIDE, SIDE, 3]; `progress` runs from 0 to 1 over the scene."""
    picture = Image.fromarray(np.clip(np.array(scene.background) + texture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for actor in scene.actors:
        x, y = (a + (b - a) * progress for a, b in zip(actor.start, actor.end, strict=True))
        box, fill = (x - actor.size, y - actor.size, x + actor.size, y + actor.size), COLORS[actor.color]
        if actor.shape == "circle":
            pen.ellipse(box, fill=fill)
        elif actor.shape == "square":
            pen.rectangle(box, fill=fill)
        elif actor.shape == "triangle":
            pen.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=fill)
        else:
            pen.text((x, y), actor.text, fill=fill, anchor="mm", font=ImageFont.load_default(actor.size * 2))
    return np.asarray(picture)


def render(film: Film, path: Path, seed: int) -> None:
    """Encode a film as H.264 in MP4."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "26", "preset": "slow"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for scene in film.scenes:
            coarse = rng.normal(0, 9, (12, 12)).astype(np.float32)
            texture = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]
            count = round(scene.seconds * FPS)
            for i in range(count):
                frame = av.VideoFrame.from_ndarray(draw(scene, i / max(count - 1, 1), texture), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, film in enumerate(FILMS):
        render(film, folder / f"{film.name}.mp4", seed)
    rows = [{"video": f"{film.name}.mp4", "question": film.question, "note": film.note} for film in FILMS]
    (folder / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "assets/clips"))
