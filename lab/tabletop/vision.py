"""Teaching a tower to see what is on the table, and caching what it sees of every rendered frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.tabletop.cache import load_takes
from lab.tabletop.foreign import foreign_clip
from lab.tabletop.plan import COLORS, SHAPES, SURFACES
from lab.tabletop.truth import GRID, MIXED, PATCHES, TABLE, Track, Truth
from lab.world.records import INTERVALS
from sharp_demo.backbones.families import family_of

CELLS = GRID * GRID
IGNORED = -100
# What a patch can show, one head each. The surface is that of the whole scene, so that any token tells where it is;
# class 0 of the others is "no thing here".
LABELS = {
    "surface": (*SURFACES, "foreign"),
    "shape": ("", *SHAPES),
    "color": ("", *COLORS),
    "state": ("", "stands", "falls", "at the edge"),
    "side": ("", "left", "middle", "right"),
}
EDGE = 0.02  # share of the picture's side


@dataclass(frozen=True, eq=False)
class Footage:
    """Frames uint8 [n, side, side, 3] with labels int64 [n, 100, 4, 5], and the scenes (None: foreign) in order."""

    frames: np.ndarray
    labels: np.ndarray
    scenes: tuple[Truth | None, ...]


def footage(paths: Sequence[Path], foreign: int) -> Footage:
    """Cached clips and `foreign` clips of no table, all of the training range."""
    frames, labels = [], []
    scenes: list[Truth | None] = []
    for path in paths:
        for take in load_takes(path):
            frames.append(take.frames)
            labels.append(scene_labels(take.truth, take.patches))
            scenes.append(take.truth)
    for seed in range(foreign):
        frames.append(foreign_clip(seed, "train")[1])
        blank = np.zeros((INTERVALS, CELLS, 4, len(LABELS)), np.int8)
        blank[..., 0] = LABELS["surface"].index("foreign")
        labels.append(blank)
        scenes.append(None)
    return Footage(np.concatenate(frames), np.concatenate(labels), tuple(scenes))


def scene_labels(truth: Truth, patches: np.ndarray) -> np.ndarray:
    """Labels of every patch of a scene, int8 [length, 100, 4, 5] in cell order; IGNORED where a patch is mixed."""
    labels = np.zeros((*patches.shape, len(LABELS)), np.int8)
    labels[..., 0] = LABELS["surface"].index(truth.surface)
    for interval in range(truth.length):
        for thing, track in enumerate(truth.tracks):
            if interval in track.boxes:
                labels[interval, patches[interval] == thing, 1:] = _look(track, interval)
    labels[patches == MIXED, 1:] = IGNORED
    unseen = (patches < TABLE) & (labels[..., 1] == 0)  # too little of a thing to count as seen
    labels[unseen, 1:] = IGNORED
    half = PATCHES // 2
    cells = labels.reshape(truth.length, half, 2, half, 2, -1).swapaxes(2, 3)
    return cells.reshape(truth.length, CELLS, 4, -1)


def _look(track: Track, interval: int) -> tuple[int, ...]:
    left, _, right, _ = track.boxes[interval]
    middle = (left + right) / 2
    edge = left < EDGE or right > 1 - EDGE
    state = "falls" if interval in track.air else "at the edge" if edge else "stands"
    side = "left" if middle < 0.42 else "right" if middle > 0.58 else "middle"
    shown = (track.shape, track.color, state, side)
    return tuple(LABELS[name].index(value) for name, value in zip(list(LABELS)[1:], shown, strict=True))


def mirrored(frames: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [n, side, side, 3] and their labels [n, 100, 4, 5] with left and right exchanged."""
    seen = labels.reshape(-1, GRID, GRID, 2, 2, len(LABELS))[:, :, ::-1, :, ::-1].reshape(labels.shape).copy()
    side = seen[..., list(LABELS).index("side")]
    left, right = (LABELS["side"].index(name) for name in ("left", "right"))
    side[...] = np.where(side == left, right, np.where(side == right, left, side))
    return frames[:, :, ::-1], seen


def token_labels(labels: np.ndarray) -> np.ndarray:
    """Labels of whole cells, [n, 5], from those of their patches [n, 4, 5]: the thing shown, if it is one thing."""
    shown = np.where(labels[..., 1:2] > 0, labels, 0)
    best = shown[np.arange(len(labels)), shown[..., 1].argmax(1)]
    several = (shown[..., 1] > 0) & (shown[..., 1:3] != best[:, None, 1:3]).any(-1)
    mixed = (labels[..., 1] == IGNORED).any(1) & (best[:, 1] == 0)
    best[several.any(1) | mixed, 1:] = IGNORED
    best[:, 0] = labels[:, 0, 0]
    return best


@torch.no_grad()
def look_near(model: Any) -> None:
    """Let a random tower start with patches that know where they are and look at those around them.

    Position embeddings become sinusoids along both axes; in the first two layers, queries and keys read them. From
    plain random weights the tower learns colours but hardly a shape: a thing lies across patches at any offset.
    """
    tower = family_of(model.config).tower(model)
    width, heads = tower.config.hidden_size, tower.config.num_attention_heads
    side, quarter = tower.config.image_size // tower.config.patch_size, width // 4
    angles = torch.arange(side)[:, None] * 2 * torch.pi / torch.logspace(*np.log10((3, 2.5 * side)), quarter)
    along = torch.cat((angles.sin(), angles.cos()), 1)  # [side, width / 2]
    grid = torch.cat((along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)), -1)
    tower.embeddings.position_embedding.weight.copy_(grid.reshape(side * side, width) / 2)
    size = width // heads
    for layer in tower.encoder.layers[:2]:
        for head in range(heads):  # every head reads some of the wave lengths: sines and cosines of both axes
            read = torch.cat([part * quarter + torch.arange(head, quarter, heads) for part in range(4)])
            near = torch.zeros(size, width)
            near[torch.arange(len(read)), read] = 1.6
            for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                matrix.weight[head * size : (head + 1) * size] = near


class Heads(nn.Module):
    """One linear read-out per label on normalised features; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.ModuleList(nn.Linear(width, len(values)) for values in LABELS.values())

    def forward(self, x: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss of features [n, d] against truth [n, 5], and accuracy per label where a thing is shown.

        Features of things count as much together as all others.
        """
        x, loss, accuracy = self.norm(x), x.new_zeros(()), {}
        for column, (name, head) in enumerate(zip(LABELS, self.out, strict=True)):
            target = truth[:, column].long()
            logits = head(x)
            each = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
            shown, empty = target > 0, target == 0
            if name == "surface":
                shown, empty = target >= 0, empty & False
            for group in (shown, empty):
                if group.any():
                    loss = loss + each[group].mean()
            accuracy[name] = float((logits.argmax(-1) == target)[shown].float().mean()) if shown.any() else 1.0
        return loss, accuracy
