"""What a model of the rendered world is trained with: shapes, stages, rates; in steps, never in seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lab.tabletop.plan import COLORS, SHAPES, SURFACES
from lab.tabletop.questions import CAMERA, KINDS, NUMBERS, OFF_TOPIC, SAY, UNANSWERABLE, UNKNOWN
from lab.world import recipe
from lab.world.recipe import Stage
from sharp_demo.backbones.tiny import SENTENCES, TinyShape

# 10 x 10 tokens a frame, 1,600 a clip: 160 pixels in patches of 8, pooled or merged 2 x 2.
SHAPE: TinyShape = replace(recipe.SHAPE, image_size=160, cells=100)

# Conjunctions of two attributes are learned last, so they are asked most.
CORE = {"color_of": 3.0, "shape_of": 3.0, "surface_of": 3.0, "drop": 1.5, "drop_shape": 1.5, UNANSWERABLE: 1.0}
CORE |= {"first_surface": 0.4, "last_surface": 0.4, "enter": 0.8, "leave": 0.5, "side_of": 0.6, "exist_surface": 0.4}
CORE |= {"first_drop": 0.4, "last_drop": 0.4}
MORE = CORE | {"count_surfaces": 0.3, "second_surface": 0.5, "touch": 0.1, "after": 0.3, "before": 0.3}
EVENTS = CORE | {"drop": 3.0, "drop_shape": 2.0, "side_of": 1.5}
ALL = dict.fromkeys(KINDS, 1.0) | {UNANSWERABLE: 1.5, "color_of": 2.0, "shape_of": 2.0, "surface_of": 1.5}
ALL |= {"touch": 0.1, "way": 0.1, "camera": 0.1, "more": 0.1, "count_things": 0.3, "after": 0.6, "before": 0.6}
ALL |= {"drop": 1.5}

STAGES = (
    Stage("3 things", 150, 22, 8, 3, 4, CORE),
    Stage("6 things", 110, 20, 8, 6, 10, CORE),
    Stage("12 things", 100, 16, 10, 12, 24, MORE),
    Stage("all things, some looks", 265, 14, 10, 40, 40, MORE, (1.0, 0.7), blind=0.3),
    # What the crowd does not teach, two attributes asked at once, comes in a few hundred steps of few things.
    Stage("6 things again", 225, 22, 8, 6, 10, EVENTS, (0.8, 0.6)),
    Stage("all things, some looks", 50, 14, 10, 40, 40, MORE, (0.8, 0.5), blind=0.15),
    Stage("sentences", 50, 14, 10, 40, 40, ALL, (0.5, 0.3), blind=0.1, tail=0.3),
    Stage("all tokens", 50, 4, 14, None, None, ALL, (0.3, 0.02), blind=0.1, tail=0.3),
)


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """Everything that decides a training run, apart from the seed.

    The tower is trained on `crowds`, scenes with more things in them than any clip has, half of the frames mirrored.
    `foreign_clips` of no table are pooled with the rendered ones; `tower_foreign` of their frames are in every batch of
    the tower, and `foreign` is their share of the clips that the language model meets.
    """

    shape: TinyShape = SHAPE
    tower_images: int = 16
    pool_clips: int = 250
    tower_steps: int = 700
    token_steps: int = 100
    stages: tuple[Stage, ...] = STAGES
    validation_clips: int = 60
    heldout_clips: int = 80
    crowds: int = 750
    foreign_clips: int = 60
    tower_foreign: int = 2
    foreign: float = 0.08


def corpus() -> str:
    """What the tokenizer is learned from: free English and every phrasing and answer of training."""
    lines = [
        SENTENCES.strip(),
        "user",
        "assistant",
        "system",
        "You are a helpful assistant.",
        *OFF_TOPIC,
        *[UNKNOWN] * 9,
    ]
    rng = np.random.default_rng(0)
    words = {"color": tuple(COLORS), "shape": SHAPES, "surface": SURFACES, "other": SURFACES}
    for kind in KINDS.values():
        for phrasing in kind.phrasings:
            for _ in range(12):
                lines.append(phrasing.format(**{name: rng.choice(values) for name, values in words.items()}))
    for word in (*COLORS, *SHAPES, *SURFACES, *NUMBERS, *CAMERA.values(), "left", "right", "yes", "no"):
        lines += [f"{word} {word.capitalize()} is its"] * 6
    lines += [text.format("Red") for text in SAY.values() for _ in range(6)]
    return "\n".join(lines)
