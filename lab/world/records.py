"""What a synthetic clip is: frames, questions with exact answers, and where the evidence of each answer sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "heldout"]
Position = Literal["early", "middle", "late", "all"]
Cell = tuple[int, int, int]  # interval, row, column of a clip

INTERVALS = 16  # what happens in a clip lasts whole intervals of half a second
GRID = 7  # cells along one side of the drawn world's picture; one cell is one visual token of its models


@dataclass(frozen=True)
class Question:
    """A question about a clip, with its exact answer.

    Attributes
    ----------
    text : as a person asks it.
    answer : the whole sentence the model is trained to say; it begins with the deciding word.
    word : that word as it stands in `answer`, e.g. "Red" in "Red is its color.".
    kind : "bg_of", "color_in" ... ; see questions.KINDS.
    evidence_frames : (first, last) interval that holds evidence, both inclusive. Intervals are the layout frames of
        both embedded models: one sampled frame, or a temporal patch of two.
    evidence_cells : (interval, row, col) of every token without which the answer is unknown; empty where any
        background token of the right scene will do.
    position : third of the clip in which the evidence lies; "all" where it is spread over the clip.
    """

    text: str
    answer: str
    word: str
    kind: str
    evidence_frames: tuple[int, int]
    evidence_cells: tuple[Cell, ...] = ()
    position: Position = "all"

    def correct(self, reply: str) -> bool:
        """Whether a reply is the expected sentence, word for word (capitals, outer blanks and full stop aside)."""
        return reply.strip().rstrip(".").lower() == self.answer.rstrip(".").lower()


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A generated clip at model resolution.

    Attributes
    ----------
    seed, split : what it was made from.
    frames : uint8 [T, H, W, 3]; T = 16, or 32 with two frames an interval.
    questions : about this clip, several kinds, in random order.
    scenes : [first, end) of each scene in intervals.
    things : every cell that holds a thing.
    grid : cells along one side of the picture.
    """

    seed: int
    split: str
    frames: np.ndarray
    questions: tuple[Question, ...]
    scenes: tuple[tuple[int, int], ...]
    things: tuple[Cell, ...] = ()
    grid: int = GRID
