"""Clips of the rendered world by seed: the splits, the frames a model samples, and the film a person watches."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from lab.tabletop.plan import FPS, Plan, plan_clip
from lab.tabletop.questions import clip_questions
from lab.tabletop.studio import FILM_SIDE, MODEL_SIDE, Studio
from lab.tabletop.truth import GRID
from lab.world.generate import clip_seed, resize
from lab.world.records import INTERVALS, Split, SyntheticClip


def clip_plans(seed: int, split: Split) -> tuple[Plan, ...]:
    """The scenes of clip `seed` of a split, before they are filmed. Raises `InputError` for an unknown split."""
    return plan_clip(np.random.default_rng(clip_seed(split, seed)))


def make_clip(
    studio: Studio, seed: int, split: Split = "heldout", size: int = MODEL_SIDE, frames: int = INTERVALS
) -> SyntheticClip:
    """Clip `seed` of a split as a model sees it: the film's frames at the bin centres, resized.

    `frames` is 16, or 32 for models that merge two frames.
    """
    takes = [studio.shoot(plan, side=FILM_SIDE, per_interval=frames // INTERVALS) for plan in clip_plans(seed, split)]
    truth = tuple(take.truth for take in takes)
    pictures = resize(np.concatenate([take.frames for take in takes]), size)
    starts = np.cumsum([0, *(scene.length for scene in truth)]).tolist()
    things = tuple(
        (start + interval, row, col)
        for scene, start in zip(truth, starts[:-1], strict=True)
        for track in scene.tracks
        for interval, cells in track.cells.items()
        for row, col in cells
    )
    questions = tuple(clip_questions(truth, seed, split))
    return SyntheticClip(seed, split, pictures, questions, tuple(pairwise(starts)), things, GRID)


def render_video(studio: Studio, seed: int, path: str | Path, split: Split = "heldout") -> Path:
    """Write clip `seed` as an H.264 film (yuv420p, 24 frames a second) that browsers play."""
    films = [studio.shoot(plan, side=FILM_SIDE, film=True).frames for plan in clip_plans(seed, split)]
    return write_film(films, path)


def write_film(films: Sequence[np.ndarray], path: str | Path) -> Path:
    """Write pictures uint8 [T, H, W, 3], shot after shot, as one H.264 film."""
    path = Path(path)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "23", "preset": "slow"})
        stream.height, stream.width = films[0].shape[1:3]
        stream.pix_fmt = "yuv420p"
        for film in films:
            for picture in film:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
