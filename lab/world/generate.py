"""From a seed to a clip: frames at model resolution for evaluation, a film for viewing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from lab.world.draw import SIDE, TICKS, draw_frame
from lab.world.questions import all_questions, pick_questions
from lab.world.records import INTERVALS, Question, Split, SyntheticClip
from lab.world.scene import Scene, make_scenes, scene_bounds
from sharp_demo.errors import InputError

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")
SEEDS = 2**40  # seeds of one split: [split * SEEDS, (split + 1) * SEEDS)
FPS = 24
MODEL_SIDE = 112


def clip_seed(split: Split, number: int) -> int:
    """The seed of clip `number` of a split; no two splits share one. Raises `InputError` outside the range."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; it must be one of {', '.join(SPLITS)}")
    if not 0 <= number < SEEDS:
        raise InputError(f"clip number {number} is outside 0..{SEEDS - 1}")
    return SPLITS.index(split) * SEEDS + number


def clip_scenes(seed: int, split: Split) -> tuple[Scene, ...]:
    """The ground truth of clip `seed` of a split."""
    return make_scenes(np.random.default_rng(clip_seed(split, seed)))


def clip_questions(seed: int, split: Split, per_kind: int = 1) -> list[Question]:
    """The questions of clip `seed`: at most `per_kind` of each kind, drawn from the same seed."""
    return pick_questions(
        np.random.default_rng((clip_seed(split, seed), 1)), all_questions(clip_scenes(seed, split)), per_kind
    )


def make_clip(
    seed: int, split: Split = "heldout", size: int = MODEL_SIDE, frames: int = INTERVALS, per_kind: int = 1
) -> SyntheticClip:
    """Clip number `seed` of a split, at `size` pixels a side and `frames` (16 or 32) sampled frames.

    The frames are the very film frames that sampling `render_video`'s file at bin centres gives, before compression.
    """
    if frames % INTERVALS or TICKS % (2 * frames // INTERVALS):
        raise InputError(f"{frames} frames do not fall on film frames; ask for 16, 32 or 96")
    scenes = clip_scenes(seed, split)
    pictures = sampled_frames(scenes, frames // INTERVALS)
    questions, bounds = tuple(clip_questions(seed, split, per_kind)), scene_bounds(scenes)
    things = tuple(
        (start + item.first + i, row, col)
        for scene, (start, _) in zip(scenes, bounds, strict=True)
        for item in scene.items
        for i, (row, col) in enumerate(item.cells)
    )
    return SyntheticClip(seed, split, resize(pictures, size), questions, bounds, things)


def sampled_frames(scenes: tuple[Scene, ...], per_interval: int) -> np.ndarray:
    """Film frames at the bin centres, uint8 [16 * per_interval, SIDE, SIDE, 3]."""
    step = TICKS // per_interval
    ticks = range(step // 2, TICKS, step)
    return np.stack([draw_frame(s, i, tick) for s in scenes for i in range(s.length) for tick in ticks])


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames [T, H, W, 3] to [T, size, size, 3], as the models' preprocessing does it."""
    if frames.shape[1] == size:
        return frames
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    small = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def render_video(seed: int, path: str | Path, split: Split = "heldout", size: int = SIDE, fps: int = FPS) -> Path:
    """Write clip `seed` as an eight-second H.264 film (yuv420p, 24 frames a second) that browsers play.

    Decoded at 16 or 32 frames it shows what `make_clip` shows.
    """
    if fps != FPS:
        raise InputError(f"the clips are drawn for {FPS} frames a second, not {fps}")
    path = Path(path)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "21", "preset": "slow"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for scene in clip_scenes(seed, split):
            for interval in range(scene.length):
                pictures = np.stack([draw_frame(scene, interval, tick) for tick in range(TICKS)])
                for picture in resize(pictures, size):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
