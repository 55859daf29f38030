"""Exact match of a model on generated clips, by kind and by position of the evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.world.generate import clip_questions, clip_scenes
from lab.world.packing import SLOTS, Batch, Prompts, Sample, pack
from lab.world.records import INTERVALS, Question, Split
from lab.world.vision import interval_frames, patch_features, per_interval, visual_tokens
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.processor import Processor

BLIND_LAYERS = 2


def hidden_states(model: Any, batch: Batch, patches: Tensor, blind: str = "") -> Tensor:
    """Final hidden states [B, L, d] of packed rows.

    `patches` [v, 4, d] are the patch features of the batch's visual tokens. `blind` hides the video from the text:
    "question" (all but the last prompt token, in every layer), "shallow" (all text, in layers 0 and 1) or "" (no).
    Without it the result equals the model's own forward on each question alone.
    """
    text = family_of(model.config).text_model(model)
    embeds = text.embed_tokens(batch.ids)
    embeds = embeds.masked_scatter(batch.visual[..., None], visual_tokens(model, patches).to(embeds.dtype))
    if hasattr(model.model, "image_newline"):
        embeds = torch.where(batch.newline[..., None], model.model.image_newline, embeds)
    positions = batch.positions if len(batch.positions) > 1 else batch.positions[0]
    rotary = text.rotary_emb(embeds, positions)
    open_mask = batch.mask()
    masks = [open_mask] * len(text.layers)
    if blind == "question":
        masks = [batch.blinded(open_mask, last_prompt_sees=True)] * len(masks)
    elif blind == "shallow":
        masks[:BLIND_LAYERS] = [batch.blinded(open_mask, last_prompt_sees=False)] * BLIND_LAYERS
    hidden = embeds
    for layer, mask in zip(text.layers, masks, strict=True):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return text.norm(hidden)


@dataclass(frozen=True)
class Verdict:
    """A question, whether greedy decoding says the expected sentence, whether its first word is right, and that word.

    `first` is the token that greedy decoding says first.
    """

    question: Question
    exact: bool
    word: bool
    first: int


@torch.no_grad()
def judge(
    model: Any,
    processor: Processor,
    split: Split,
    seeds: Iterable[int],
    per_kind: int = 1,
    decoded: Callable[[int], np.ndarray] | None = None,
) -> Iterator[Verdict]:
    """Ask every question of these clips; pixels go through the real tower, questions share one packed row.

    `decoded(seed)` gives the sampled frames [T, H, W, 3] of a clip's film; without it the frames are drawn. An answer
    is exact when each of its tokens, its end included, is the model's first choice after the ones before: that is
    when greedy decoding says it.
    """
    prompts = Prompts(processor)
    for seed in seeds:
        if decoded is None:
            pairs = [(scene, i) for scene in clip_scenes(seed, split) for i in range(scene.length)]
            frames = interval_frames(pairs, per_interval(model.config))
        else:
            frames = decoded(seed)
            frames = frames.reshape(INTERVALS, -1, *frames.shape[1:])
        patches = patch_features(model, processor.video, frames)
        yield from verdicts_on(model, prompts, patches, clip_questions(seed, split, per_kind))


def verdicts_on(model: Any, prompts: Prompts, patches: Tensor, questions: Sequence[Question]) -> Iterator[Verdict]:
    """Ask one clip all its questions, packed into one row.

    patches : the tower's features of the clip, [intervals, patches of one, d].
    """
    slots = np.arange(SLOTS)
    batch = pack(prompts, [Sample(slots, slots, tuple(questions))], tail=1.0).to(patches.device)
    hidden = hidden_states(model, batch, patches.flatten(0, 1))
    asked = batch.target[0] >= 0
    said = model.lm_head(hidden[0, asked]).argmax(-1)
    right = said == batch.target[0, asked]
    segment, first = batch.segment[0, asked], batch.deciding[0, asked]
    for number, question in enumerate(questions, 1):
        own = segment == number
        yield Verdict(question, bool(right[own].all()), bool(right[own & first].all()), int(said[own & first][0]))


def tables(verdicts: Iterable[Verdict], kinds: Iterable[str] | None = None) -> dict[str, Any]:
    """{"n", "accuracy", "by_kind", "by_position"}, shares of exact answers, over `kinds` (default: all)."""
    chosen = [v for v in verdicts if kinds is None or v.question.kind in set(kinds)]
    by_kind, by_position = defaultdict(list), defaultdict(list)
    for verdict in chosen:
        by_kind[verdict.question.kind].append(verdict.exact)
        by_position[verdict.question.position].append(verdict.exact)
    return {
        "n": len(chosen),
        "accuracy": _share([v.exact for v in chosen]),
        "by_kind": {kind: {"n": len(v), "accuracy": _share(v)} for kind, v in sorted(by_kind.items())},
        "by_position": {place: {"n": len(v), "accuracy": _share(v)} for place, v in sorted(by_position.items())},
    }


def _share(values: list[bool]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
