"""What the embedded models are trained with: shapes, stages, rates; in steps, never in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from lab.world.generate import clip_questions
from lab.world.questions import HARD_KINDS, KINDS
from sharp_demo.backbones.tiny import SENTENCES, TinyShape

# 7 x 7 tokens a frame: 112 pixels in patches of 8, pooled or merged 2 x 2.
SHAPE = TinyShape(
    width=160,
    mlp=320,
    layers=8,
    heads=4,
    kv_heads=2,
    vision_width=128,
    vision_mlp=256,
    vision_layers=3,
    vision_heads=4,
    image_size=112,
    patch_size=8,
    cells=49,
    merges=640,
    initializer_range=0.02,
)

# Conjunctions of two attributes are learned last, so they are asked most.
CORE = {
    "bg_of": 3.0,
    "color_in": 2.0,
    "shape_in": 2.0,
    "letter_in": 1.0,
    "bg_letter": 0.7,
    "flash": 0.5,
    "bg_flash": 0.5,
}
CORE |= {"first_bg": 0.4, "last_bg": 0.4, "count": 0.6, "exist_scene": 0.6}
EASY = CORE | {"count": 0.0, "exist_scene": 0.0}
ALL = CORE | dict.fromkeys(HARD_KINDS, 0.3)
# At the end every kind that can be learned is asked about equally often.
EVEN = dict.fromkeys(KINDS, 1.0) | dict.fromkeys(("first_bg", "last_bg", "after_bg", "before_bg"), 0.4)
EVEN |= dict.fromkeys(("exist", "motion", "hop_color"), 0.3)


@dataclass(frozen=True)
class Stage:
    """One stretch of the language model's training.

    `objects` and `background` are the tokens fed (None: all), see `packing.draw_sample`; `blind` is the chance that a
    step hides the video from the text (half of them from all but the last prompt token, in every layer; half from all
    text in layers 0 and 1); `tail` weighs the words after the deciding one (0: not trained); `rate` scales the
    learning rates at start and end.
    """

    name: str
    steps: int
    clips: int
    questions: int
    objects: int | None
    background: int | None
    kinds: dict[str, float]
    rate: tuple[float, float] = (1.0, 1.0)
    blind: float = 0.0
    tail: float = 0.0


STAGES = (
    Stage("2 objects", 140, 24, 8, 2, 3, EASY),
    Stage("5 objects", 110, 24, 8, 5, 8, CORE),
    Stage("10 objects", 110, 18, 10, 10, 24, CORE),
    Stage("all objects", 120, 14, 12, None, 40, ALL),
    Stage("blinded", 130, 14, 12, None, 40, ALL, (1.0, 0.6), blind=0.5),
    Stage("all tokens", 75, 6, 14, None, None, ALL, (0.6, 0.03), blind=0.4, tail=0.1),
    # A colour word alone does not tell how its sentence goes on: that takes training of its own.
    Stage("sentences", 100, 14, 12, None, 40, EVEN, (0.5, 0.25), blind=0.3, tail=0.5),
    Stage("sentences, all tokens", 30, 6, 14, None, None, EVEN, (0.25, 0.02), blind=0.3, tail=0.5),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, apart from the family and the seed."""

    shape: TinyShape = SHAPE
    tower_steps: int = 300
    tower_images: int = 32
    tower_muon: float = 0.02
    pool_clips: int = 900
    token_steps: int = 75
    stages: tuple[Stage, ...] = STAGES
    muon: float = 0.015
    adam: float = 2e-3
    warmup: int = 20
    save_every: int = 25
    validation_clips: int = 120
    heldout_clips: int = 240
    corpus_clips: int = 250


def corpus(clips: int) -> str:
    """What the tokenizer is learned from: free English and the questions and answers of training clips."""
    lines = [SENTENCES.strip(), "user", "assistant", "system", "You are a helpful assistant."]
    for seed in range(clips):
        for question in clip_questions(seed, "train"):
            lines += [question.text, question.answer]
    return "\n".join(lines)
