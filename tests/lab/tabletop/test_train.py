"""Training on rendered clips: what is fed tells the answers, and a resumed run equals an uninterrupted one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lab.tabletop import train as training
from lab.tabletop.cache import cached_path, save_takes
from lab.tabletop.packing import SLOTS, Pool, draw_sample
from lab.tabletop.questions import KINDS, UNANSWERABLE, UNKNOWN
from lab.tabletop.recipe import SHAPE, STAGES, Recipe, corpus
from lab.tabletop.records import Question
from lab.tabletop.score import falsely_untold
from lab.tabletop.studio import Take
from lab.tabletop.truth import MIXED, OFF, TABLE, Truth
from lab.tabletop.vision import CELLS, IGNORED, LABELS, look_near, scene_labels, token_labels
from lab.world.packing import Prompts
from lab.world.records import INTERVALS
from lab.world.score import Verdict
from sharp_demo.backbones.processor import Processor
from sharp_demo.backbones.tiny import write_checkpoint
from sharp_demo.errors import InputError
from tests.lab.tabletop.scenes import CLIP, SAND, TILES, WOOD

LENGTHS = (3, 4, 5, 6, 8, 10, 16)


def stretched(scene: Truth, length: int, surface: str) -> Truth:
    """A scene of another length on another surface, whose things stay where they end."""
    tracks = []
    for track in scene.tracks:
        last = max(track.boxes)
        when = [i for i in range(length) if i in track.boxes or i > last]
        at = {i: min(i, last) for i in when}
        boxes, cells = {i: track.boxes[at[i]] for i in when}, {i: track.cells[at[i]] for i in when}
        tracks.append(replace(track, boxes=boxes, cells=cells, air=tuple(i for i in track.air if i < length)))
    return replace(scene, length=length, surface=surface, tracks=tuple(tracks))


@pytest.fixture(scope="module")
def pool() -> Pool:
    scenes: list[Truth | None] = [
        stretched(scene, length, surface)
        for length in LENGTHS
        for scene, surface in ((WOOD, "wood"), (SAND, "sand"), (TILES, "tiles"), (WOOD, "felt"), (TILES, "denim"))
    ]
    scenes.append(None)
    frames = sum(INTERVALS if scene is None else scene.length for scene in scenes)
    return Pool(scenes, torch.arange(frames * CELLS).reshape(frames, CELLS, 1, 1))


def test_a_pooled_clip_has_sixteen_intervals_of_surfaces_that_differ(pool: Pool):
    for seed in range(20):
        scenes, rows = pool.clip(np.random.default_rng(seed))
        assert sum(scene.length for scene in scenes) == INTERVALS
        assert len(rows) == SLOTS
        assert len({scene.surface for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("things", [2, 5, None])
def test_what_is_fed_tells_the_answers_that_are_asked_for(pool: Pool, things: int | None):
    kinds = dict.fromkeys((*KINDS, UNANSWERABLE), 1.0)
    for seed in range(12):
        background = None if things is None else 6
        sample = draw_sample(
            np.random.default_rng(seed), pool, questions=6, kinds=kinds, things=things, background=background, foreign=0
        )
        assert len(sample.slots) == len(sample.rows)
        assert (np.diff(sample.slots) > 0).all()
        assert len(sample.slots) == SLOTS if things is None else len(sample.slots) < 60
        for question in sample.questions:
            cells = {interval * CELLS + row * 10 + col for interval, row, col in question.evidence_cells}
            assert not cells or cells & set(sample.slots.tolist())


def test_nothing_can_be_told_of_a_foreign_clip(pool: Pool):
    sample = draw_sample(
        np.random.default_rng(1), pool, questions=6, kinds={"color_of": 1.0}, things=3, background=4, foreign=1.0
    )
    assert {question.answer for question in sample.questions} == {UNKNOWN}
    assert sample.rows.min() >= pool.foreign[0] * CELLS


def test_a_pool_refuses_features_of_other_scenes():
    with pytest.raises(ValueError, match="the scenes last 16 intervals, the features 3"):
        Pool(CLIP, torch.zeros(3, CELLS, 4, 8))


def test_labels_say_what_each_patch_shows():
    patches = np.full((WOOD.length, 20, 20), TABLE, np.uint8)
    patches[:, :4] = OFF
    patches[1, 2:4, 8:10] = 3  # the star, in the air
    patches[1, 4, 8] = MIXED
    labels = scene_labels(WOOD, patches)
    assert labels.shape == (WOOD.length, CELLS, 4, len(LABELS))
    names = [[values[index] for values, index in zip(LABELS.values(), patch, strict=True)] for patch in labels[1, 14]]
    assert names == [["wood", "star", "white", "falls", "middle"]] * 4
    assert labels[1, 24, 0].tolist() == [0, *[IGNORED] * 4]
    assert labels[0, 14].tolist() == [[0] * 5] * 4


def test_a_token_is_of_one_thing_or_left_out():
    one, other, empty = [2, 3, 1, 1, 1], [2, 4, 1, 1, 1], [2, 0, 0, 0, 0]
    mixed = [2, *[IGNORED] * 4]
    rows = np.array([[one, empty, empty, mixed], [one, other, empty, empty], [empty, empty, empty, mixed], [empty] * 4])
    assert token_labels(rows).tolist() == [one, mixed, mixed, empty]


def test_every_stage_asks_for_kinds_that_exist_and_every_kind_is_trained():
    asked = {kind for stage in STAGES for kind, weight in stage.kinds.items() if weight > 0}
    assert asked == {*KINDS, UNANSWERABLE}
    assert "I cannot tell" in corpus()


def test_a_tower_starts_with_patches_that_look_at_those_around_them(tmp_path: Path):
    small = replace(SHAPE, vision_layers=2)
    folder = write_checkpoint(tmp_path / "blank", "llava-onevision", small)
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
    look_near(model)
    tower = model.model.vision_tower
    x = tower.embeddings.position_embedding.weight
    attention = tower.encoder.layers[0].self_attn
    scores = (attention.q_proj(x) * attention.k_proj(x)[10 * 20 + 10]).sum(-1).view(20, 20)
    assert scores.argmax() == 10 * 20 + 10
    assert scores[8:13, 8:13].mean() > 2 * scores.mean()


def render(folder: Path, split: str, numbers: Sequence[int]) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        takes = [
            Take(
                rng.integers(0, 255, (scene.length, 160, 160, 3), np.uint8), scene,
                rng.choice([0, TABLE, OFF, MIXED], (scene.length, 20, 20)).astype(np.uint8),
            )
            for scene in CLIP
        ]  # fmt: skip
        save_takes(cached_path(folder, split, number), takes)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr("lab.tabletop.packing.scene_lengths", lambda rng: [6, 4, 6])
    stages = tuple(replace(stage, steps=2, clips=2, questions=3) for stage in STAGES[:2])
    recipe = Recipe(
        shape=replace(SHAPE, width=32, mlp=32, layers=2, vision_width=32, vision_mlp=32, vision_layers=1),
        pool_clips=2, crowds=1, foreign_clips=1, tower_steps=2, tower_images=2, tower_foreign=1, token_steps=1,
        stages=stages, validation_clips=1, heldout_clips=0, save_every=1,
    )  # fmt: skip
    clips = tmp_path / "clips"
    with pytest.raises(InputError, match="2 of 2 files of train are not in"):
        training.train(tmp_path / "out", recipe=recipe, work=tmp_path / "whole", clips=clips)
    render(clips, "train", range(2))
    render(clips, "crowd", range(1))
    render(clips, "validation", range(1))
    settings = {"recipe": recipe, "clips": clips}
    whole = training.train(tmp_path / "a", work=tmp_path / "whole", **settings)
    training.train(tmp_path / "b", work=tmp_path / "parts", stop_after=2, **settings)
    parts = training.train(tmp_path / "b", work=tmp_path / "parts", resume=True, **settings)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    learned = [[row["loss"] for row in log if "stage" in row] for log in (whole, parts)]
    assert learned[0] == learned[1]
    assert whole[-1]["event"] == "validation"
    assert whole[-1]["falsely_untold"] == 0  # no kind was learned


def test_cannot_tell_is_false_where_there_is_an_answer(tmp_path: Path):
    processor = Processor.from_pretrained(write_checkpoint(tmp_path / "blank", "llava-onevision", SHAPE))
    unknown = Prompts(processor, 160).answer(UNKNOWN)[0]
    question = Question("What color is the cube on the sand?", "Red is its color.", "Red", "color_of", (0, 1))
    untold = replace(question, answer=UNKNOWN, word="I", kind=UNANSWERABLE)
    verdicts = [Verdict(question, False, False, unknown), Verdict(question, True, True, unknown + 1)]
    verdicts += [Verdict(untold, True, True, unknown), Verdict(replace(question, kind="drop"), False, False, unknown)]
    assert falsely_untold(processor, verdicts, ("color_of", UNANSWERABLE)) == 0.5
    assert falsely_untold(processor, verdicts, ("color_of", "drop")) == 0.6667
    assert falsely_untold(processor, verdicts, ()) == 0
