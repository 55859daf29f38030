"""Every question a clip can answer, with its answer and evidence: plain look-ups in the ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lab.world.records import INTERVALS, Position, Question
from lab.world.scene import BACKGROUNDS, COLORS, SHAPES, Item, Scene, scene_bounds

Cell = tuple[int, int, int]

COUNT_WORDS = ("Zero", "One", "Two", "Three", "Four", "Five")
# The deciding word comes first, so that one decoding step shows whether the evidence survived the pruning.
SAY = {
    "background": "{} is the background.",
    "color": "{} is its color.",
    "shape": "{} is its shape.",
    "letter": "{} is the letter.",
    "count": "{} scenes.",
    "yes": "{}, there is.",
    "no": "{}, there is not.",
    "way": "{} is its way.",
}
NEEDLE_KINDS = ("bg_of", "color_in", "shape_in", "letter_in", "bg_letter", "flash", "bg_flash")
GIST_KINDS = ("first_bg", "last_bg", "count", "exist_scene")
HARD_KINDS = ("second_bg", "after_bg", "before_bg", "first_letter", "last_letter", "exist", "motion", "hop_color")
KINDS = NEEDLE_KINDS + GIST_KINDS + HARD_KINDS
DESCRIPTIONS = {
    "bg_of": "background of an object named by colour and shape",
    "color_in": "colour of a shape in a scene",
    "shape_in": "shape of a colour in a scene",
    "letter_in": "letter in a scene",
    "bg_letter": "background of a letter",
    "flash": "colour of the brief flash",
    "bg_flash": "background of the brief flash",
    "first_bg": "background at the start",
    "last_bg": "background at the end",
    "count": "number of scenes",
    "exist_scene": "is there a scene of this colour",
    "second_bg": "background of the second scene",
    "after_bg": "background after a scene",
    "before_bg": "background before a scene",
    "first_letter": "letter that comes first",
    "last_letter": "letter that comes last",
    "exist": "is there an object of this colour and shape",
    "motion": "direction in which the ball moves",
    "hop_color": "colour of a shape in the scene of a letter (two steps)",
}


@dataclass(frozen=True)
class _Seen:
    """An item with the clip-wide intervals and cells it is seen in."""

    item: Item
    scene: Scene
    cells: tuple[Cell, ...]


def all_questions(scenes: Sequence[Scene]) -> list[Question]:
    """Every question of every kind whose answer is unique in this clip."""
    scenes = tuple(scenes)
    seen = [
        _Seen(item, scene, tuple((start + item.first + i, *cell) for i, cell in enumerate(item.cells)))
        for scene, (start, _) in zip(scenes, scene_bounds(scenes), strict=True)
        for item in scene.items
    ]
    return [*_objects(seen), *_letters(seen), *_events(seen), *_scenes(scenes), *_existence(scenes, seen)]


def pick_questions(rng: np.random.Generator, questions: Sequence[Question], per_kind: int = 1) -> list[Question]:
    """At most `per_kind` questions of each kind, in random order."""
    taken: Counter[str] = Counter()
    picked = []
    for index in rng.permutation(len(questions)):
        question = questions[index]
        if taken[question.kind] < per_kind:
            taken[question.kind] += 1
            picked.append(question)
    return picked


def third(frames: tuple[int, int]) -> Position:
    """Third of the clip in which an interval span lies, by its middle."""
    thirds: tuple[Position, ...] = ("early", "middle", "late")
    return thirds[int((sum(frames) + 1) * 3 / (2 * INTERVALS))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _ask(kind: str, text: str, say: str, word: str, cells: Sequence[Cell]) -> Question:
    frames = (min(cell[0] for cell in cells), max(cell[0] for cell in cells))
    word = word.capitalize()
    return Question(text, SAY[say].format(word), word, kind, frames, tuple(cells), third(frames))


def _ask_scene(kind: str, text: str, say: str, word: str, bounds: tuple[int, int], spread: bool = False) -> Question:
    frames, word = (bounds[0], bounds[1] - 1), word.capitalize()
    return Question(text, SAY[say].format(word), word, kind, frames, (), "all" if spread else third(frames))


def _objects(seen: Sequence[_Seen]) -> Iterator[Question]:
    objects = [one for one in seen if one.item.kind == "object"]
    pairs = Counter((one.item.color, one.item.name) for one in objects)
    shapes = Counter((one.scene.background, one.item.name) for one in objects)
    colors = Counter((one.scene.background, one.item.color) for one in objects)
    for one in objects:
        color, shape, ground = one.item.color, one.item.name, one.scene.background
        if pairs[color, shape] == 1:
            text = f"What is the background of the {color} {shape}?"
            yield _ask("bg_of", text, "background", ground, one.cells)
        if shapes[ground, shape] == 1:
            text = f"What color is the {shape} in the {ground} scene?"
            yield _ask("color_in", text, "color", color, one.cells)
            plate = next(p for p in seen if p.scene is one.scene and p.item.kind == "plate")
            text = f"What color is the {shape} in the scene with the letter {plate.item.name}?"
            yield _ask("hop_color", text, "color", color, (*one.cells, *plate.cells))
        if colors[ground, color] == 1:
            text = f"What shape is the {color} object in the {ground} scene?"
            yield _ask("shape_in", text, "shape", shape, one.cells)


def _letters(seen: Sequence[_Seen]) -> Iterator[Question]:
    plates = [one for one in seen if one.item.kind == "plate"]
    for one in plates:
        letter, ground = one.item.name, one.scene.background
        yield _ask("letter_in", f"Which letter is in the {ground} scene?", "letter", letter, one.cells)
        yield _ask("bg_letter", f"What is the background of the letter {letter}?", "background", ground, one.cells)
    yield _ask("first_letter", "Which letter comes first?", "letter", plates[0].item.name, plates[0].cells)
    yield _ask("last_letter", "Which letter comes last?", "letter", plates[-1].item.name, plates[-1].cells)


def _events(seen: Sequence[_Seen]) -> Iterator[Question]:
    flashes = [one for one in seen if one.item.kind == "flash"]
    balls = [one for one in seen if one.item.kind == "ball"]
    if len(flashes) == 1:
        one = flashes[0]
        yield _ask("flash", "What color is the brief flash?", "color", one.item.color, one.cells)
        text = "What is the background of the brief flash?"
        yield _ask("bg_flash", text, "background", one.scene.background, one.cells)
    if len(balls) == 1:
        yield _ask("motion", "Which way does the ball move?", "way", balls[0].item.name, balls[0].cells)


def _scenes(scenes: tuple[Scene, ...]) -> Iterator[Question]:
    bounds, grounds = scene_bounds(scenes), [scene.background for scene in scenes]
    whole = (0, INTERVALS)
    yield _ask_scene("count", "How many scenes are there?", "count", COUNT_WORDS[len(scenes)], whole, spread=True)
    for kind, at, words in (("first_bg", 0, "first"), ("second_bg", 1, "second"), ("last_bg", -1, "last")):
        text = f"What is the background of the {words} scene?"
        yield _ask_scene(kind, text, "background", grounds[at], bounds[at])
    for i in range(len(scenes) - 1):
        both = (bounds[i][0], bounds[i + 1][1])
        text = "What is the background {} the {} scene?"
        yield _ask_scene("after_bg", text.format("after", grounds[i]), "background", grounds[i + 1], both)
        yield _ask_scene("before_bg", text.format("before", grounds[i + 1]), "background", grounds[i], both)


def _existence(scenes: tuple[Scene, ...], seen: Sequence[_Seen]) -> Iterator[Question]:
    whole = (0, INTERVALS)
    shown = {scene.background: bounds for scene, bounds in zip(scenes, scene_bounds(scenes), strict=True)}
    missing = [color for color in BACKGROUNDS if color not in shown]
    for color in shown:
        yield _ask_scene("exist_scene", f"Is there {_article(color)} {color} scene?", "yes", "yes", shown[color])
    for color in missing[: len(shown)]:
        yield _ask_scene("exist_scene", f"Is there {_article(color)} {color} scene?", "no", "no", whole, spread=True)
    objects = [one for one in seen if one.item.kind == "object"]
    pairs = Counter((one.item.color, one.item.name) for one in objects)
    unique = [one for one in objects if pairs[one.item.color, one.item.name] == 1]
    for one in unique:
        yield _ask(
            "exist", f"Is there {_article(one.item.color)} {one.item.color} {one.item.name}?", "yes", "yes", one.cells
        )
    # Look-alikes only: the colour is there and the shape is there, never both in one object.
    colors, shapes = {color for color, _ in pairs}, {shape for _, shape in pairs}
    absent = [(c, s) for c in COLORS for s in SHAPES if c in colors and s in shapes and (c, s) not in pairs]
    for color, shape in absent[:: max(1, len(absent) // max(1, len(unique)))]:
        yield _ask_scene("exist", f"Is there {_article(color)} {color} {shape}?", "no", "no", whole, spread=True)
