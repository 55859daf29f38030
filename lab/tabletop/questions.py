"""Every question a rendered clip can answer, with its answer and evidence, read off what was simulated and seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lab.tabletop.plan import COLORS, SHAPES, SURFACES
from lab.tabletop.records import Question
from lab.tabletop.truth import Track, Truth
from lab.world.generate import clip_seed
from lab.world.questions import third
from lab.world.records import INTERVALS, Position, Split

# The deciding word comes first, so that one decoding step shows whether the evidence survived the pruning.
SAY = {
    "color": "{} is its color.",
    "shape": "{} is its shape.",
    "surface": "{} is the surface.",
    "side": "{} is its side.",
    "way": "{} is its way.",
    "count": "{} of them.",
    "camera": "{} is the camera.",
    "yes": "{}, there is.",
    "no": "{}, there is not.",
}
UNKNOWN_WORD = "I"
UNKNOWN = "I cannot tell: I only know films of colored things on a table, and what they show."
NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
CAMERA = {"still": "still", "pan": "sliding", "orbit": "circling", "zoom": "zooming"}


@dataclass(frozen=True)
class Kind:
    """A kind of question: what it asks for, how it is asked in training, and how only the benchmark asks it."""

    asks: str
    say: str
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]


KINDS = {
    "color_of": Kind(
        "colour of a shape on a surface",
        "color",
        (
            "What color is the {shape} on the {surface}?",
            "On the {surface}, what color is the {shape}?",
            "Which color does the {shape} on the {surface} have?",
        ),
        ("The {shape} on the {surface}: what is its color?",),
    ),
    "shape_of": Kind(
        "shape of a colour on a surface",
        "shape",
        (
            "What shape is the {color} thing on the {surface}?",
            "On the {surface}, what shape is the {color} thing?",
            "Which shape does the {color} thing on the {surface} have?",
        ),
        ("The {color} thing on the {surface}: what is its shape?",),
    ),
    "surface_of": Kind(
        "surface under a thing named by colour and shape",
        "surface",
        (
            "What is the {color} {shape} on?",
            "Which surface is the {color} {shape} on?",
            "Where is the {color} {shape}?",
        ),
        ("The {color} {shape}: which surface is it on?",),
    ),
    "side_of": Kind(
        "side of the picture on which a thing is",
        "side",
        (
            "Is the {color} {shape} on the left or on the right?",
            "On which side is the {color} {shape}, left or right?",
        ),
        ("Left or right: where is the {color} {shape}?",),
    ),
    "drop": Kind(
        "colour of what drops onto a surface",
        "color",
        (
            "What color is the thing that drops onto the {surface}?",
            "Something drops onto the {surface}. What color is it?",
            "Which color does the thing that falls on the {surface} have?",
        ),
        ("The thing that drops onto the {surface}: what is its color?",),
    ),
    "drop_shape": Kind(
        "shape of what drops onto a surface",
        "shape",
        (
            "What shape is the thing that drops onto the {surface}?",
            "Something drops onto the {surface}. What shape is it?",
            "Which shape does the thing that falls on the {surface} have?",
        ),
        ("The thing that drops onto the {surface}: what is its shape?",),
    ),
    "first_drop": Kind(
        "colour of what drops first",
        "color",
        ("What color is the first thing that drops?", "What color is the thing that drops first?"),
        ("Which color does the first thing that falls have?",),
    ),
    "last_drop": Kind(
        "colour of what drops last",
        "color",
        ("What color is the last thing that drops?", "What color is the thing that drops last?"),
        ("Which color does the last thing that falls have?",),
    ),
    "enter": Kind(
        "colour of what comes into view from a side",
        "color",
        (
            "What color is the thing that comes in on the {surface}?",
            "Something comes in on the {surface}. What color is it?",
        ),
        ("The thing that comes in on the {surface}: what is its color?",),
    ),
    "leave": Kind(
        "colour of what leaves the picture",
        "color",
        (
            "What color is the thing that leaves the {surface}?",
            "Something leaves the {surface}. What color is it?",
        ),
        ("The thing that leaves the {surface}: what is its color?",),
    ),
    "touch": Kind(
        "colour of what a moving thing touches first",
        "color",
        (
            "What color is the first thing that the {color} {shape} touches?",
            "The {color} {shape} touches something first. What color is it?",
        ),
        ("Which color does the thing that the {color} {shape} touches first have?",),
    ),
    "way": Kind(
        "direction in which a thing moves",
        "way",
        (
            "Which way does the {color} {shape} move, left or right?",
            "Does the {color} {shape} move to the left or to the right?",
        ),
        ("Left or right: which way does the {color} {shape} move?",),
    ),
    "first_surface": Kind(
        "surface at the start",
        "surface",
        ("What is the first surface?", "Which surface comes first?", "Where does the film begin?"),
        ("Which surface is the first one?",),
    ),
    "second_surface": Kind(
        "second surface of three or more",
        "surface",
        ("What is the second surface?", "Which surface comes second?"),
        ("Which surface is the second one?",),
    ),
    "last_surface": Kind(
        "surface at the end",
        "surface",
        ("What is the last surface?", "Which surface comes last?", "Where does the film end?"),
        ("Which surface is the last one?",),
    ),
    "after": Kind(
        "surface after another",
        "surface",
        ("What comes after the {surface}?", "Which surface comes after the {surface}?"),
        ("After the {surface}, which surface comes?",),
    ),
    "before": Kind(
        "surface before another",
        "surface",
        ("What comes before the {surface}?", "Which surface comes before the {surface}?"),
        ("Before the {surface}, which surface comes?",),
    ),
    "count_surfaces": Kind(
        "number of surfaces",
        "count",
        ("How many surfaces are there?", "How many surfaces does the film show?"),
        ("The film shows how many surfaces?",),
    ),
    "count_things": Kind(
        "number of things on a surface",
        "count",
        ("How many things are on the {surface}?", "On the {surface}, how many things are there?"),
        ("The {surface}: how many things are on it?",),
    ),
    "more": Kind(
        "which of two surfaces has more things",
        "surface",
        ("Are there more things on the {surface} or on the {other}?",),
        ("Which has more things on it, the {surface} or the {other}?",),
    ),
    "camera": Kind(
        "what the camera does",
        "camera",
        ("What does the camera do on the {surface}?", "How does the camera move on the {surface}?"),
        ("On the {surface}, what does the camera do?",),
    ),
    "exist_surface": Kind(
        "is a surface shown",
        "yes",
        ("Is there {surface} in the film?", "Does the film show {surface}?"),
        ("In the film, is there {surface}?",),
    ),
}
UNANSWERABLE = "unanswerable"  # asked about a surface that is not there, or about anything else
ALL_KINDS = (*KINDS, UNANSWERABLE)
OFF_TOPIC = (
    "What is the man doing?",
    "Who is in the room?",
    "How many people are there?",
    "What is the woman wearing?",
    "Where does the dog go?",
    "What happens in this video?",
    "What is the weather like?",
    "Which team wins?",
    "What does the sign say?",
    "Is it day or night?",
    "Why is the child running?",
    "What is the person cooking?",
)
OFF_TOPIC_HELD_OUT = (
    "What is the child doing?",
    "Who is the woman?",
    "How many dogs are there?",
    "Where does the man go?",
    "What is the person wearing?",
    "Which car wins?",
)


@dataclass(frozen=True)
class _Seen:
    """A track with the scene it is in and the interval at which that scene starts."""

    track: Track
    scene: Truth
    start: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.track.color, self.track.shape


@dataclass(frozen=True)
class Fact:
    """A question before it is put into words."""

    kind: str
    word: str
    slots: tuple[tuple[str, str], ...]
    frames: tuple[int, int]
    evidence: tuple[tuple[int, Track, int], ...] = ()  # (start of the scene, track, interval of the scene)
    spread: bool = False


def clip_questions(truth: Sequence[Truth], seed: int, split: Split, per_kind: int = 1) -> list[Question]:
    """At most `per_kind` questions of each kind about a clip, in random order, drawn from its seed.

    Half of those outside training are asked in words that training does not use.
    """
    rng = np.random.default_rng((clip_seed(split, seed), 1))
    facts = [*facts_of(truth), *unanswerable(rng, truth, held_out=split != "train")]
    taken: Counter[str] = Counter()
    picked = []
    for index in rng.permutation(len(facts)):
        fact = facts[index]
        if taken[fact.kind] < per_kind:
            taken[fact.kind] += 1
            picked.append(put(fact, rng, held_out=split != "train" and rng.random() < 0.5))
    return picked


def put(fact: Fact, rng: np.random.Generator, held_out: bool = False) -> Question:
    """A fact as a question, in one of the phrasings of its kind."""
    cells, boxes = [], []
    for start, track, interval in fact.evidence:
        cells += [(start + interval, row, col) for row, col in track.cells[interval]]
        boxes.append((start + interval, *track.boxes[interval]))
    if fact.kind == UNANSWERABLE:
        text, answer = dict(fact.slots)["text"], UNKNOWN
    else:
        kind = KINDS[fact.kind]
        choices = kind.held_out if held_out else kind.phrasings
        text = choices[int(rng.integers(len(choices)))].format(**dict(fact.slots))
        say = "no" if fact.word == "no" else kind.say
        answer = SAY[say].format(fact.word.capitalize())
    word = answer.split()[0].rstrip(",")
    position: Position = "all" if fact.spread else third(fact.frames)
    return Question(text, answer, word, fact.kind, fact.frames, tuple(cells), position, tuple(boxes))


def facts_of(truth: Sequence[Truth]) -> list[Fact]:
    """Every question of every kind whose answer is unique in this clip."""
    starts = np.cumsum([0, *(scene.length for scene in truth)]).tolist()
    seen = [
        _Seen(track, scene, start)
        for scene, start in zip(truth, starts[:-1], strict=True)
        for track in scene.tracks
        if track.seen
    ]
    return [
        *_looks(seen),
        *_drops(seen),
        *_passing(seen),
        *_touches(truth, starts, seen),
        *_scenes(truth, starts, seen),
    ]


def unanswerable(rng: np.random.Generator, truth: Sequence[Truth], held_out: bool = False) -> Iterator[Fact]:
    """Questions that the clip does not answer: about a surface that it does not show, or about something else."""
    missing = [name for name in SURFACES if name not in {scene.surface for scene in truth}]
    whole = (0, INTERVALS - 1)
    kinds = ("color_of", "shape_of", "drop", "count_things")
    for name in rng.permutation(missing)[:2].tolist():
        kind = KINDS[kinds[int(rng.integers(len(kinds)))]]
        words = kind.held_out if held_out and rng.random() < 0.5 else kind.phrasings
        slots = {"surface": name, "color": str(rng.choice(list(COLORS))), "shape": str(rng.choice(SHAPES))}
        text = words[int(rng.integers(len(words)))].format(**slots)
        yield Fact(UNANSWERABLE, UNKNOWN_WORD, (("text", text),), whole, spread=True)
    topics = OFF_TOPIC_HELD_OUT if held_out else OFF_TOPIC
    text = topics[int(rng.integers(len(topics)))]
    yield Fact(UNANSWERABLE, UNKNOWN_WORD, (("text", text),), whole, spread=True)


def _slots(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


def _about(kind: str, word: str, one: _Seen, intervals: Iterable[int], **slots: str) -> Fact:
    chosen = tuple(intervals)
    frames = (one.start + min(chosen), one.start + max(chosen))
    return Fact(kind, word, _slots(**slots), frames, tuple((one.start, one.track, i) for i in chosen))


def _looks(seen: Sequence[_Seen]) -> Iterator[Fact]:
    pairs = Counter(one.pair for one in seen)
    shapes = Counter((one.start, one.track.shape) for one in seen)
    colors = Counter((one.start, one.track.color) for one in seen)
    for one in seen:
        color, shape = one.pair
        surface, when = one.scene.surface, one.track.seen
        if shapes[one.start, shape] == 1:
            yield _about("color_of", color, one, when, shape=shape, surface=surface)
        if colors[one.start, color] == 1:
            yield _about("shape_of", shape, one, when, color=color, surface=surface)
        if pairs[one.pair] == 1:
            yield _about("surface_of", surface, one, when, color=color, shape=shape)
            middles = [(one.track.boxes[i][0] + one.track.boxes[i][2]) / 2 for i in when]
            if max(middles) < 0.42 or min(middles) > 0.58:
                side = "left" if max(middles) < 0.42 else "right"
                yield _about("side_of", side, one, when, color=color, shape=shape)


def _drops(seen: Sequence[_Seen]) -> Iterator[Fact]:
    drops = [one for one in seen if one.track.air]
    by_scene = Counter(one.start for one in drops)
    for one in drops:
        if by_scene[one.start] == 1:
            color, shape = one.pair
            yield _about("drop", color, one, one.track.air, surface=one.scene.surface)
            yield _about("drop_shape", shape, one, one.track.air, surface=one.scene.surface)
    order = sorted(drops, key=lambda one: one.start + one.track.air[0])
    if len(order) > 1:
        moments = [one.start + one.track.air[0] for one in order]
        if moments[0] < moments[1]:
            yield _about("first_drop", order[0].track.color, order[0], order[0].track.air)
        if moments[-1] > moments[-2]:
            yield _about("last_drop", order[-1].track.color, order[-1], order[-1].track.air)


def _passing(seen: Sequence[_Seen]) -> Iterator[Fact]:
    pairs = Counter(one.pair for one in seen)
    enters = [one for one in seen if one.track.act in ("slide", "cross") and one.track.seen[0] > 0]
    leaves = [one for one in seen if one.track.act in ("cross", "leave") and one.track.seen[-1] < one.scene.length - 1]
    for kind, movers, at in (("enter", enters, 0), ("leave", leaves, -1)):
        by_scene = Counter(one.start for one in movers)
        for one in movers:
            if by_scene[one.start] == 1:
                yield _about(kind, one.track.color, one, (one.track.seen[at],), surface=one.scene.surface)
    for one in seen:
        boxes = one.track.boxes
        if one.track.act == "stand" or one.track.act == "drop" or pairs[one.pair] > 1 or len(boxes) < 2:
            continue
        first, last = one.track.seen[0], one.track.seen[-1]
        along = (boxes[last][0] + boxes[last][2] - boxes[first][0] - boxes[first][2]) / 2
        if one.scene.camera in ("still", "zoom") and abs(along) > 0.12:
            color, shape = one.pair
            yield _about("way", "right" if along > 0 else "left", one, one.track.seen, color=color, shape=shape)


def _touches(truth: Sequence[Truth], starts: Sequence[int], seen: Sequence[_Seen]) -> Iterator[Fact]:
    pairs = Counter(one.pair for one in seen)
    for scene, start in zip(truth, starts[:-1], strict=True):
        done: set[int] = set()
        for second, a, b in scene.touches:
            interval = min(int(second / scene.seconds), scene.length - 1)
            for mover, other in ((a, b), (b, a)):
                one, two = scene.tracks[mover], scene.tracks[other]
                if one.act == "stand" or mover in done:
                    continue
                done.add(mover)
                moments = [i for i in (interval, interval + 1) if i in one.boxes and i in two.boxes]
                if pairs[one.color, one.shape] == 1 and moments:
                    i = moments[0]
                    yield Fact(
                        "touch",
                        two.color,
                        _slots(color=one.color, shape=one.shape),
                        (start + i, start + i),
                        ((start, one, i), (start, two, i)),
                    )


def _scenes(truth: Sequence[Truth], starts: Sequence[int], seen: Sequence[_Seen]) -> Iterator[Fact]:
    spans = [(start, start + scene.length - 1) for scene, start in zip(truth, starts[:-1], strict=True)]
    names, whole = [scene.surface for scene in truth], (0, INTERVALS - 1)
    yield Fact("count_surfaces", NUMBERS[len(truth)], (), whole, spread=True)
    yield Fact("first_surface", names[0], (), spans[0])
    yield Fact("last_surface", names[-1], (), spans[-1])
    if len(truth) > 2:
        yield Fact("second_surface", names[1], (), spans[1])
    for i in range(len(truth) - 1):
        both = (spans[i][0], spans[i + 1][1])
        yield Fact("after", names[i + 1], _slots(surface=names[i]), both)
        yield Fact("before", names[i], _slots(surface=names[i + 1]), both)
    counts = [sum(one.start == start for one in seen) for start in starts[:-1]]
    for i, (name, span) in enumerate(zip(names, spans, strict=True)):
        things = tuple((one.start, one.track, one.track.seen[0]) for one in seen if one.start == span[0])
        if 0 < counts[i] < len(NUMBERS):
            yield Fact("count_things", NUMBERS[counts[i]], _slots(surface=name), span, things)
        # What the camera mostly does, stand still, is asked about as rarely as any other motion.
        if truth[i].camera != "still" or (span[0] + len(names)) % 2:
            yield Fact("camera", CAMERA[truth[i].camera], _slots(surface=name), span)
        for j in range(i):
            if counts[i] != counts[j]:
                best = names[i] if counts[i] > counts[j] else names[j]
                a, b = (i, j) if (counts[i] > counts[j]) == bool((i + j) % 2) else (j, i)
                yield Fact("more", best, _slots(surface=names[a], other=names[b]), whole, spread=True)
        yield Fact("exist_surface", "yes", _slots(surface=name), span)
    missing = [name for name in SURFACES if name not in names]
    turn = sum(scene.length * (i + 1) + len(scene.tracks) for i, scene in enumerate(truth)) % len(missing)
    for name in [*missing[turn:], *missing[:turn]][: len(names)]:
        yield Fact("exist_surface", "no", _slots(surface=name), whole, spread=True)
