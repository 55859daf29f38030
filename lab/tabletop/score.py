"""Exact match of a model on cached clips, and on foreign ones, where it must say that it cannot tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.tabletop.cache import cached_path, load_takes
from lab.tabletop.foreign import foreign_clip
from lab.tabletop.questions import UNANSWERABLE, UNKNOWN, UNKNOWN_WORD, Fact, clip_questions, facts_of, put
from lab.tabletop.records import Question
from lab.tabletop.studio import MODEL_SIDE
from lab.tabletop.truth import Truth
from lab.world.generate import clip_seed
from lab.world.packing import Prompts
from lab.world.records import INTERVALS, Split
from lab.world.score import Verdict, verdicts_on
from lab.world.vision import patch_features
from sharp_demo.backbones.processor import Processor


@torch.no_grad()
def judge(model: Any, processor: Processor, folder: Path, split: Split, seeds: Sequence[int]) -> Iterator[Verdict]:
    """Ask one question of each kind about these clips, which `cache` has rendered into `folder`."""
    prompts = Prompts(processor, MODEL_SIDE)
    for seed in seeds:
        takes = load_takes(cached_path(folder, split, seed))
        frames = np.concatenate([take.frames for take in takes])
        questions = clip_questions([take.truth for take in takes], seed, split)
        yield from _ask(model, processor, prompts, frames, questions)


@torch.no_grad()
def judge_foreign(
    model: Any, processor: Processor, split: Split, seeds: Sequence[int], truths: Sequence[Sequence[Truth]]
) -> Iterator[Verdict]:
    """Ask about foreign clips what may be asked about these scenes; the expected answer is always "I cannot tell"."""
    prompts = Prompts(processor, MODEL_SIDE)
    for seed in seeds:
        rng = np.random.default_rng((clip_seed(split, seed), 3))
        facts = facts_of(truths[seed % len(truths)])
        texts = [put(facts[int(i)], rng, held_out=rng.random() < 0.5).text for i in rng.integers(len(facts), size=4)]
        untold = [
            Fact(UNANSWERABLE, UNKNOWN_WORD, (("text", text),), (0, INTERVALS - 1), spread=True) for text in texts
        ]
        frames = foreign_clip(seed, split)[1]
        yield from _ask(model, processor, prompts, frames, [put(fact, rng) for fact in untold])


def falsely_untold(processor: Processor, verdicts: Iterable[Verdict], kinds: Collection[str]) -> float:
    """Share of the questions of these kinds that have an answer but get "I cannot tell"."""
    unknown = Prompts(processor, MODEL_SIDE).answer(UNKNOWN)[0]
    answerable = [v for v in verdicts if v.question.kind in kinds and v.question.kind != UNANSWERABLE]
    return round(sum(v.first == unknown for v in answerable) / max(1, len(answerable)), 4)


def _ask(
    model: Any, processor: Processor, prompts: Prompts, frames: np.ndarray, questions: Sequence[Question]
) -> Iterator[Verdict]:
    patches = patch_features(model, processor.video, frames.reshape(INTERVALS, -1, *frames.shape[1:]))
    return verdicts_on(model, prompts, patches, questions)
