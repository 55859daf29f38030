"""The whole way of a visitor's clip: a film on disk, decoded, preprocessed, asked through the engine as by `compare`.

What a model answers about drawn frames, and what about the same frames after H.264 and the decoder, question by
question; without pruning, since it is the way in that is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.accuracy.asking import Asked, Film
from lab.accuracy.evaluate import Plan, choose_clips, setup_of
from lab.accuracy.worlds import open_world
from lab.stats import ClipBootstrap
from lab.world.records import SyntheticClip
from sharp_demo.backbones.load import Backbone
from sharp_demo.engine import Engine
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.records import MethodDone, MethodSpec, Request

MAX_NEW_TOKENS = 32  # far more than any answer has


@dataclass
class Answers:
    """Verdicts question by question: from the drawn frames, and from the film on disk."""

    clip: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    filmed: list[bool] = field(default_factory=list)


def front_door(
    backbone: Backbone, engine: Engine, plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Ask about the plan's clips both ways; a JSON-ready document. The plan's variants and retentions do not matter.

    `engine` serves the same model.
    """
    plan = plan.for_model(backbone)
    world = open_world(plan.world)
    clips, answers, cache = choose_clips(backbone, plan, world), Answers(), BiasCache()
    with tempfile.TemporaryDirectory(prefix="films-") as folder:
        for done, clip in enumerate(clips):
            progress(done, len(clips))
            path = world.film(clip.seed, Path(folder) / f"{clip.seed}.mp4", plan.split)
            ask_both_ways(engine, Film(backbone, clip.frames, cache), clip, path, answers)
            path.unlink()
    progress(len(clips), len(clips))
    bootstrap = ClipBootstrap(np.array(answers.clip), seed=plan.seed)
    drawn, filmed = np.array(answers.drawn, float), np.array(answers.filmed, float)
    lost, interval = bootstrap.difference(filmed, drawn)
    return {
        "setup": setup_of(backbone, plan),
        "clips": len(clips),
        "questions": len(answers.clip),
        "drawn": round(float(drawn.mean()), 6),
        "filmed": round(float(filmed.mean()), 6),
        "difference": round(lost, 6),
        "ci95": [round(bound, 6) for bound in interval],
        "differ": [
            [clip, kind, bool(before), bool(after)]
            for clip, kind, before, after in zip(answers.clip, answers.kind, answers.drawn, answers.filmed, strict=True)
            if before != after
        ],
    }


@torch.inference_mode()
def ask_both_ways(engine: Engine, film: Film, clip: SyntheticClip, path: Path, answers: Answers) -> None:
    """Add every question of a clip to the answers; `path` is the clip as a film."""
    for question in clip.questions:
        answers.clip.append(clip.seed)
        answers.kind.append(question.kind)
        answers.drawn.append(Asked(film, question.text).is_right(Vanilla(), question)[0])
        request = Request(str(path), question.text, (MethodSpec("vanilla"),), max_new_tokens=MAX_NEW_TOKENS, timing_s=0)
        (result,) = [event.result for event in engine.stream(request) if isinstance(event, MethodDone)]
        answers.filmed.append(question.correct(result.answer))
