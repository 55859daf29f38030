"""Questions about a scene made by hand: each answer is what the scene shows, and its evidence lies where it happens."""

import numpy as np
import pytest

from lab.tabletop.plan import SURFACES
from lab.tabletop.questions import (
    ALL_KINDS,
    KINDS,
    OFF_TOPIC,
    OFF_TOPIC_HELD_OUT,
    UNANSWERABLE,
    UNKNOWN,
    Fact,
    clip_questions,
    facts_of,
    put,
)
from tests.lab.tabletop.scenes import CLIP, SAND, TILES, WOOD

RNG = np.random.default_rng


def answers(kind: str, **slots: str) -> set[str]:
    return {fact.word for fact in facts_of(CLIP) if fact.kind == kind and slots.items() <= dict(fact.slots).items()}


@pytest.mark.parametrize(
    ("kind", "slots", "expected"),
    [
        ("color_of", {"shape": "cube", "surface": "wood"}, {"red"}),
        ("color_of", {"shape": "cone", "surface": "sand"}, {"red"}),
        ("shape_of", {"color": "red", "surface": "sand"}, set()),  # a cone and a ring
        ("shape_of", {"color": "blue", "surface": "wood"}, {"cone"}),
        ("surface_of", {"color": "black", "shape": "cylinder"}, {"tiles"}),
        ("side_of", {"color": "red", "shape": "cube"}, {"left"}),
        ("side_of", {"color": "blue", "shape": "cone"}, {"right"}),
        ("drop", {"surface": "wood"}, {"white"}),
        ("drop_shape", {"surface": "tiles"}, {"cube"}),
        ("drop", {"surface": "sand"}, set()),
        ("first_drop", {}, {"white"}),
        ("last_drop", {}, {"yellow"}),
        ("enter", {"surface": "wood"}, {"green"}),
        ("enter", {"surface": "tiles"}, {"purple"}),
        ("leave", {"surface": "wood"}, {"green"}),
        ("leave", {"surface": "tiles"}, set()),
        ("touch", {"color": "green", "shape": "ball"}, {"red"}),
        ("way", {"color": "green", "shape": "ball"}, {"right"}),
        ("way", {"color": "purple", "shape": "ball"}, set()),  # the camera circles
        ("first_surface", {}, {"wood"}),
        ("second_surface", {}, {"sand"}),
        ("last_surface", {}, {"tiles"}),
        ("after", {"surface": "wood"}, {"sand"}),
        ("before", {"surface": "tiles"}, {"sand"}),
        ("count_surfaces", {}, {"Three"}),
        ("count_things", {"surface": "sand"}, {"Two"}),
        ("count_things", {"surface": "wood"}, {"Four"}),
        ("camera", {"surface": "sand"}, {"sliding"}),
        ("exist_surface", {"surface": "sand"}, {"yes"}),
    ],
)
def test_answers_are_what_the_scenes_show(kind: str, slots: dict[str, str], expected: set[str]):
    assert answers(kind, **slots) == expected


def test_there_is_no_surface_that_is_not_shown():
    absent = {dict(fact.slots)["surface"] for fact in facts_of(CLIP) if fact.word == "no"}
    assert len(absent) == 3
    assert not absent & {scene.surface for scene in CLIP}


def test_the_larger_count_wins_whichever_is_named_first():
    for fact in facts_of(CLIP):
        if fact.kind == "more":
            counts = {"wood": 4, "sand": 2, "tiles": 3}
            assert fact.word == max(dict(fact.slots).values(), key=lambda name: counts[name])


def test_evidence_lies_in_the_scene_and_boxes_hold_its_cells():
    for fact in facts_of(CLIP):
        question = put(fact, RNG(0))
        first, last = question.evidence_frames
        assert 0 <= first <= last < 16
        for interval, row, col in question.evidence_cells:
            assert first <= interval <= last
            inside = [box for box in question.evidence_boxes if box[0] == interval]
            assert any(l - 0.1 <= col / 10 <= r and t - 0.1 <= row / 10 <= b for _, l, t, r, b in inside)  # noqa: E741
    touch = next(fact for fact in facts_of(CLIP) if fact.kind == "touch")
    assert set(put(touch, RNG(0)).evidence_cells) == {(3, 5, 1), (3, 5, 2)}


def test_early_and_middle_evidence_exist():
    places = {(fact.kind, put(fact, RNG(0)).position) for fact in facts_of(CLIP)}
    assert {("first_surface", "early"), ("first_drop", "early"), ("second_surface", "middle")} <= places


def test_every_kind_can_be_asked_in_several_ways_and_held_out_ones_are_not_trained():
    found = {fact.kind for fact in facts_of(CLIP)}
    assert found == set(KINDS)
    for kind in KINDS.values():
        assert not set(kind.phrasings) & set(kind.held_out)
        assert kind.held_out
    trained = {text for kind in KINDS.values() for text in kind.phrasings}
    assert not trained & {text for kind in KINDS.values() for text in kind.held_out}
    assert not set(OFF_TOPIC) & set(OFF_TOPIC_HELD_OUT)


def test_held_out_phrasings_are_asked_outside_training_only():
    def worded(kind: str, text: str, held_out: bool) -> bool:
        choices = KINDS[kind].held_out if held_out else KINDS[kind].phrasings
        return any(text.startswith(one.split("{")[0]) for one in choices)

    trained = [q for seed in range(20) for q in clip_questions(CLIP, seed, "train") if q.kind in KINDS]
    assert all(worded(q.kind, q.text, False) for q in trained)
    judged = [q for seed in range(20) for q in clip_questions(CLIP, seed, "heldout") if q.kind in KINDS]
    share = np.mean([worded(q.kind, q.text, True) and not worded(q.kind, q.text, False) for q in judged])
    assert 0.3 < share < 0.7


def test_questions_follow_from_the_seed_and_answer_themselves():
    assert clip_questions(CLIP, 5, "heldout") == clip_questions(CLIP, 5, "heldout")
    for question in clip_questions(CLIP, 5, "heldout"):
        assert question.kind in ALL_KINDS
        assert question.correct(question.answer)
        assert "{" not in question.text
        assert question.answer.startswith(question.word)


def test_what_cannot_be_answered_names_a_surface_that_is_not_there():
    shown = {WOOD.surface, SAND.surface, TILES.surface}
    asked = [q for seed in range(40) for q in clip_questions(CLIP, seed, "heldout", per_kind=3)]
    unanswerable = [q for q in asked if q.kind == UNANSWERABLE]
    assert {q.answer for q in unanswerable} == {UNKNOWN}
    named = [set(SURFACES) & set(q.text.replace("?", "").replace(":", "").replace(".", "").split())
             for q in unanswerable]  # fmt: skip
    assert any(named)
    assert all(not names & shown for names in named)
    assert all(isinstance(fact, Fact) for fact in facts_of(CLIP))
