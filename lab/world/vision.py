"""Teaching the vision towers to see the stickers, and caching what they see.

A tower is trained alone to name what every patch shows, then frozen: the language model's training never runs it
again. Between the two lies the same cut in both families: patch features [..., 4, d] of one visual token, which the
projector or the merger turns into that token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lab.world.draw import TICKS, draw_frame
from lab.world.generate import MODEL_SIDE, resize
from lab.world.records import GRID
from lab.world.scene import BACKGROUNDS, COLORS, DIRECTIONS, LETTERS, SHAPES, Scene, make_scene
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.family import TrainableFamily
from sharp_demo.backbones.preprocessing import VideoPreprocessor
from sharp_demo.errors import InputError

CELLS = GRID * GRID
# What a patch can show, one head each; class 0 of all but the background is "nothing of the kind".
LABELS = {
    "background": tuple(BACKGROUNDS),
    "shape": ("", *SHAPES, "plate", "flash", "ball"),
    "color": ("", *COLORS),
    "letter": ("", *LETTERS),
    "direction": ("", *DIRECTIONS),
}
NOISE = 4.0  # grey levels: compression of the films must not surprise the tower


def trainable(model: PreTrainedModel) -> TrainableFamily:
    """Return the model's family; InputError when it has no small models to train."""
    family = family_of(model.config)
    if not isinstance(family, TrainableFamily):
        raise InputError(f"{family.title} has no small models to train")
    return family


def per_interval(config: PreTrainedConfig) -> int:
    """Sampled frames of one half-second interval: one layout frame of every family."""
    return family_of(config).frames_per_token(config)


def interval_frames(scenes: Sequence[tuple[Scene, int]], count: int) -> np.ndarray:
    """Frames of (scene, interval) pairs at model resolution, uint8 [n, count, 112, 112, 3]."""
    step = TICKS // count
    ticks = range(step // 2, TICKS, step)
    film = np.stack([draw_frame(scene, interval, tick) for scene, interval in scenes for tick in ticks])
    return resize(film, MODEL_SIDE).reshape(len(scenes), count, MODEL_SIDE, MODEL_SIDE, 3)


def patch_features(model: PreTrainedModel, video: VideoPreprocessor, frames: np.ndarray) -> Tensor:
    """What the tower makes of n intervals, [n, cells, 4, d]: the patches of each visual token, before it is formed."""
    n, count = frames.shape[:2]
    device = next(model.parameters()).device
    pixels = {
        key: value.to(device) for key, value in video.pixels(frames.reshape(n * count, *frames.shape[2:])).items()
    }
    return trainable(model).patch_features(model, pixels).unflatten(0, (n, -1))


def visual_tokens(model: PreTrainedModel, patches: Tensor) -> Tensor:
    """Patch features [n, 4, d] to visual tokens [n, width], as the model itself forms them."""
    return trainable(model).form_tokens(model, patches)


def token_former(model: PreTrainedModel) -> nn.Module:
    """The part of the vision side that is trained with the language model."""
    return trainable(model).token_former(model)


def tower_parameters(model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the tower without the part that forms the tokens."""
    return trainable(model).tower_parameters(model)


def labels(scene: Scene, interval: int) -> np.ndarray:
    """Ground truth of every cell, int64 [49, 5], columns as LABELS."""
    truth = np.zeros((GRID, GRID, len(LABELS)), np.int64)
    truth[..., 0] = LABELS["background"].index(scene.background)
    for item in scene.items:
        cell = item.cell(interval)
        if cell is None:
            continue
        shape = item.name if item.kind == "object" else item.kind
        color = item.color if item.kind in ("object", "flash") else ""
        letter = item.name if item.kind == "plate" else ""
        direction = item.name if item.kind == "ball" else ""
        row = (LABELS[key].index(v) for key, v in zip(list(LABELS)[1:], (shape, color, letter, direction), strict=True))
        truth[cell][1:] = tuple(row)
    return truth.reshape(CELLS, -1)


def crowded(rng: np.random.Generator) -> Scene:
    """A three-interval scene with more things in it than any clip has, for the tower alone."""
    ground = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return make_scene(rng, 3, ground, rng.choice(LETTERS, 5).tolist(), density=4.5, flash=0.8, ball=0.8)


class Heads(nn.Module):
    """One linear read-out per label on normalised patch features; thrown away after the tower is trained."""

    def __init__(self, width: int, direction: bool) -> None:
        super().__init__()
        self.names = [name for name in LABELS if direction or name != "direction"]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.ModuleList(nn.Linear(width, len(LABELS[name])) for name in self.names)

    def forward(self, patches: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss over patches [n, 49, 4, d] against truth [n, 49, 5], and accuracy per label.

        Cells that show something count as much together as all empty ones.
        """
        x = self.norm(patches)
        truth = truth[:, :, None].expand(*x.shape[:3], -1)
        loss, accuracy = x.new_zeros(()), {}
        for name, head in zip(self.names, self.out, strict=True):
            target = truth[..., list(LABELS).index(name)]
            logits = head(x)
            each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view_as(target)
            shown = target > 0 if name != "background" else torch.ones_like(target, dtype=torch.bool)
            for group in (shown, ~shown):
                if group.any():
                    loss = loss + each[group].mean()
            accuracy[name] = float((logits.argmax(-1) == target)[shown].float().mean()) if shown.any() else 1.0
        return loss, accuracy


def tower_batch(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` crowded intervals: frames uint8 [size, count, 112, 112, 3] and labels [size, 49, 5]."""
    pairs = [(crowded(rng), 1) for _ in range(size)]
    clean = interval_frames(pairs, count)
    gain = rng.uniform(0.94, 1.06, (size, 1, 1, 1, 1))
    frames = clean * gain + rng.normal(0, NOISE, clean.shape)
    return np.clip(frames, 0, 255).astype(np.uint8), np.stack([labels(*pair) for pair in pairs])


@torch.no_grad()
def build_pool(
    model: Any,
    video: VideoPreprocessor,
    clips: Sequence[Sequence[Scene]],
    seed: int,
    report: Callable[[str], None],
) -> Tensor:
    """Patch features of every interval of these scenes in order, float16 [intervals, 49, 4, d]."""
    count, chunks = per_interval(model.config), []
    for number, scenes in enumerate(clips):
        pairs = [(scene, i) for scene in scenes for i in range(scene.length)]
        noise = np.random.default_rng((seed, 7, number)).normal(
            0, NOISE, (len(pairs), count, MODEL_SIDE, MODEL_SIDE, 3)
        )
        frames = np.clip(interval_frames(pairs, count) + noise, 0, 255).astype(np.uint8)
        chunks.append(patch_features(model, video, frames).half().cpu())
        if number % 100 == 0:
            report(f"pool: {number} of {len(clips)} clips")
    return torch.cat(chunks)
