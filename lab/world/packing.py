"""Many questions about one clip in one row: the video is paid for once, and a question sees no other question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.world.generate import MODEL_SIDE
from lab.world.questions import all_questions
from lab.world.records import GRID, INTERVALS, Question
from lab.world.scene import Scene, scene_bounds, scene_lengths
from lab.world.vision import CELLS, labels, per_interval
from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.processor import Processor

SLOTS = INTERVALS * CELLS


@dataclass(frozen=True)
class Sample:
    """One clip as the language model meets it.

    `slots` are the visual tokens fed, ascending, by their places in the clip; `rows` are theirs in the feature pool.
    """

    slots: np.ndarray
    rows: np.ndarray
    questions: tuple[Question, ...]


class Prompts:
    """The token ids around a clip and their positions, read off the checkpoint's own processor."""

    def __init__(self, processor: Processor, side: int = MODEL_SIDE) -> None:
        self.processor = processor
        self.config = processor.config
        self.frames = INTERVALS * per_interval(self.config)
        self.grid = processor.video.grid(self.frames, side, side)
        self._questions: dict[str, list[int]] = {}
        self._answers: dict[str, list[int]] = {}
        inputs = self._inputs("?")
        layout = visual_layout(self.config, inputs["input_ids"], inputs.get("video_grid_thw"))
        start, self.slots = int(layout.index[0]), len(layout)
        ids = inputs["input_ids"][0]
        self.prefix: list[int] = ids[:start].tolist()
        self.newlines = family_of(self.config).newlines
        self.after = start + self.slots + self.newlines
        positions = inputs["position_ids"][1:, 0] if "position_ids" in inputs else torch.arange(len(ids))[None]
        self.context_positions = positions[:, : self.after].numpy()  # [axes, prefix + slots + newlines]
        self.text_start = int(positions[0, self.after])

    def question(self, text: str) -> list[int]:
        """Ids of everything between the video and the answer."""
        if text not in self._questions:
            self._questions[text] = self._inputs(text)["input_ids"][0, self.after :].tolist()
        return self._questions[text]

    def answer(self, text: str) -> list[int]:
        """Ids of the answer and of the token that ends it."""
        if text not in self._answers:
            tokenizer = self.processor.tokenizer
            self._answers[text] = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
        return self._answers[text]

    def _inputs(self, text: str) -> dict[str, Tensor]:
        return self.processor.prompt(text, frames=self.frames, grid=self.grid)


@dataclass(frozen=True, eq=False)
class Batch:
    """B packed rows of L tokens.

    ids [B, L] (0 under visual tokens); positions [axes, B, L]; segment [B, L]: 0 context, 1.. question, -1 padding;
    visual, newline, deciding (the last prompt token): bool [B, L]; target [B, L] next token or -100; weight [B, L];
    rows: pool rows of the visual tokens in row-major order.
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    visual: Tensor
    newline: Tensor
    deciding: Tensor
    target: Tensor
    weight: Tensor
    rows: Tensor

    def to(self, device: Any) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def mask(self) -> Tensor:
        """What each token may see, bool [B, 1, L, L]: the context and its own question, backwards; padding itself."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        keys, queries = self.segment[:, None, :], self.segment[:, :, None]
        seen = causal & ((keys == 0) | (keys == queries)) & (keys >= 0)
        return (seen | torch.eye(length, dtype=torch.bool, device=self.ids.device))[:, None]

    def blinded(self, mask: Tensor, *, last_prompt_sees: bool) -> Tensor:
        """`mask` with the text after the video blind to it, but for the last prompt token (and the answer) if asked."""
        text = (self.segment > 0) | self.newline
        if last_prompt_sees:
            text = text & (self.target < 0)
        return mask & ~(text[:, None, :, None] & self.visual[:, None, None, :])


def pack(prompts: Prompts, samples: Sequence[Sample], *, tail: float) -> Batch:
    """Pack samples; `tail` weighs the words after the deciding one, which are left out when it is 0."""
    built = [_row(prompts, sample, tail) for sample in samples]
    length, axes = max(len(row["ids"]) for row in built), len(prompts.context_positions)
    empty = {"segment": -1, "target": -100}
    columns = {
        name: torch.stack([_padded(row[name], length, empty.get(name, 0)) for row in built])
        for name in built[0]
        if name != "positions"
    }
    positions = torch.zeros(axes, len(built), length, dtype=torch.long)
    for b, row in enumerate(built):
        positions[:, b, : row["positions"].shape[1]] = torch.from_numpy(row["positions"])
    rows = torch.from_numpy(np.concatenate([sample.rows for sample in samples]))
    return Batch(positions=positions, rows=rows, **columns)


def _padded(values: np.ndarray, length: int, empty: float) -> Tensor:
    return torch.from_numpy(np.pad(values, (0, length - len(values)), constant_values=empty))


def _row(prompts: Prompts, sample: Sample, tail: float) -> dict[str, np.ndarray]:
    head, n = len(prompts.prefix), len(sample.slots)
    context = head + n + prompts.newlines
    spots = np.concatenate((np.arange(head), head + sample.slots, np.arange(head + prompts.slots, prompts.after)))
    ids = [*prompts.prefix, *[0] * (context - head)]
    segment, target, weight = [0] * context, [-100] * context, [0.0] * context
    deciding, places = [False] * context, []
    for number, question in enumerate(sample.questions, 1):
        text, answer = prompts.question(question.text), prompts.answer(question.answer)
        spoken = len(answer) if tail else 1
        # The last token of the row predicts nothing, so the answer's own end is not fed.
        ids += [*text, *answer[: spoken - 1]]
        size = len(text) + spoken - 1
        segment += [number] * size
        target += [-100] * (len(text) - 1) + answer[:spoken]
        weight += [0.0] * (len(text) - 1) + [1.0] + [tail] * (spoken - 1)
        deciding += [False] * (len(text) - 1) + [True] + [False] * (spoken - 1)
        places.append(np.arange(prompts.text_start, prompts.text_start + size))
    text_positions = np.concatenate(places)
    axes = len(prompts.context_positions)
    total = len(ids)
    visual, newline = np.zeros(total, bool), np.zeros(total, bool)
    visual[head : head + n] = True
    newline[head + n : context] = True
    return {
        "ids": np.array(ids),
        "positions": np.concatenate(
            (prompts.context_positions[:, spots], np.broadcast_to(text_positions, (axes, len(text_positions)))), 1
        ),
        "segment": np.array(segment),
        "target": np.array(target),
        "weight": np.array(weight, np.float32),
        "deciding": np.array(deciding),
        "visual": visual,
        "newline": newline,
    }


class Pool:
    """Scenes with their cached features, and new clips put together from them."""

    def __init__(self, clips: Sequence[Sequence[Scene]], features: Tensor) -> None:
        self.features = features.reshape(-1, *features.shape[2:])  # [intervals * 49, 4, d]
        self.by_length: dict[int, list[tuple[Scene, int]]] = defaultdict(list)
        start = 0
        for scene in (scene for scenes in clips for scene in scenes):
            self.by_length[scene.length].append((scene, start))
            start += scene.length
        if start != len(features):
            raise ValueError(f"the scenes last {start} intervals, the features {len(features)}")

    def labels(self) -> np.ndarray:
        """Ground truth of every pooled token, int64 [rows, 5], columns as vision.LABELS."""
        pooled = sorted((row for rows in self.by_length.values() for row in rows), key=lambda row: row[1])
        return np.concatenate([labels(scene, i) for scene, _ in pooled for i in range(scene.length)])

    def clip(self, rng: np.random.Generator) -> tuple[tuple[Scene, ...], np.ndarray]:
        """A clip of pooled scenes, drawn as `make_scenes` draws: (scenes, pool row of each of the 784 slots)."""
        chosen: list[tuple[Scene, int]] = []
        for length in scene_lengths(rng):
            while True:
                scene, start = self.by_length[length][rng.integers(len(self.by_length[length]))]
                if all(s.background != scene.background and s.letter != scene.letter for s, _ in chosen):
                    chosen.append((scene, start))
                    break
        rows = np.concatenate([np.arange(start * CELLS, (start + scene.length) * CELLS) for scene, start in chosen])
        return tuple(scene for scene, _ in chosen), rows


def draw_sample(
    rng: np.random.Generator,
    pool: Pool,
    *,
    questions: int,
    kinds: dict[str, float],
    objects: int | None,
    background: int | None,
) -> Sample:
    """A clip from the pool with a few of its questions and, at true positions, a few of its tokens.

    `objects` of its objects, as many of its letters, every flash and ball, and `background` empty tokens
    are fed, at least one for each scene; None feeds all. Only questions whose evidence is fed are asked; `kinds`
    weighs them.
    """
    scenes, rows = pool.clip(rng)
    items = [
        [(start + item.first + i) * CELLS + row * GRID + col for i, (row, col) in enumerate(item.cells)]
        for kind in ("object", "plate", "flash", "ball")
        for item, start in _shuffled(rng, scenes, kind)[: _quota(kind, objects)]
    ]
    filled = {slot for slots in items for slot in slots}
    slots = np.arange(SLOTS)
    if background is not None:
        taken = {
            (start + item.first + i) * CELLS + row * GRID + col
            for scene, (start, _) in zip(scenes, scene_bounds(scenes), strict=True)
            for item in scene.items
            for i, (row, col) in enumerate(item.cells)
        }
        empty = np.array(sorted(set(range(SLOTS)) - taken))
        each = [rng.choice(empty[(empty >= a * CELLS) & (empty < b * CELLS)]) for a, b in scene_bounds(scenes)]
        more = rng.choice(empty, max(0, background - len(each)), replace=False)
        slots = np.array(sorted(filled | set(map(int, each)) | set(map(int, more))))
        filled = set(slots.tolist())
    else:
        filled = set(range(SLOTS))
    possible = defaultdict(list)
    for question in all_questions(scenes):
        cells = question.evidence_cells
        if question.kind in kinds and all(f * CELLS + row * GRID + col in filled for f, row, col in cells):
            possible[question.kind].append(question)
    names = list(possible)
    weights = np.array([kinds[name] for name in names])
    asked = []
    for name in rng.choice(names, questions, p=weights / weights.sum()):
        if possible[name]:
            asked.append(possible[name].pop(rng.integers(len(possible[name]))))
    return Sample(slots, rows[slots], tuple(asked))


def _shuffled(rng: np.random.Generator, scenes: Sequence[Scene], kind: str) -> list[tuple[Any, int]]:
    bounds = scene_bounds(tuple(scenes))
    found = [(item, start) for scene, (start, _) in zip(scenes, bounds, strict=True) for item in scene.of_kind(kind)]
    return [found[i] for i in rng.permutation(len(found))]


def _quota(kind: str, objects: int | None) -> int | None:
    if objects is None or kind in ("flash", "ball"):
        return None
    return objects
