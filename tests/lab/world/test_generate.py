"""Clips: a seed decides everything, answers follow from the ground truth, evidence is where it is said to be."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lab.world import generate
from lab.world.draw import CELL, SIDE, background, draw_frame
from lab.world.generate import clip_questions, clip_scenes, clip_seed, make_clip, render_video
from lab.world.questions import COUNT_WORDS, DESCRIPTIONS, KINDS, SAY, all_questions
from lab.world.records import GRID, INTERVALS, Question
from lab.world.scene import BACKGROUNDS, COLORS, DIRECTIONS, LETTERS, SHAPES, Scene, scene_bounds
from sharp_demo.backbones.llava_onevision import LlavaOnevisionVideo
from sharp_demo.errors import InputError
from sharp_demo.settings import Settings
from sharp_demo.video import decode

SEEDS = range(40)


def raster(scenes: tuple[Scene, ...]) -> list[dict]:
    """Everything on screen, one row per interval and item: the ground truth without any look-up of the product."""
    rows, start = [], 0
    for number, scene in enumerate(scenes):
        for item in scene.items:
            for i, (row, col) in enumerate(item.cells):
                rows.append(
                    {"scene": number, "ground": scene.background, "kind": item.kind, "name": item.name}
                    | {"color": item.color, "at": (start + item.first + i, row, col), "id": id(item)}
                )
        start += scene.length
    return rows


def expected(question: Question, scenes: tuple[Scene, ...]) -> set[str]:
    """Every answer that the ground truth allows, read from the question's words alone."""
    rows, grounds, text = raster(scenes), [scene.background for scene in scenes], question.text
    words = re.findall(r"\w+", text)
    color = next((w for w in words if w in COLORS), "")
    shape = next((w for w in words if w in SHAPES), "")
    ground = next((w for w in words if w in BACKGROUNDS), "")
    letter = next((w for w in words if w in LETTERS), "")
    objects = [r for r in rows if r["kind"] == "object"]
    plates = [r for r in rows if r["kind"] == "plate"]
    if text.startswith("How many scenes"):
        return {COUNT_WORDS[len(scenes)]}
    if re.fullmatch(r"Is there an? \w+ scene\?", text):
        return {"Yes" if ground in grounds else "No"}
    if text.startswith("Is there"):
        return {"Yes" if any(r["color"] == color and r["name"] == shape for r in objects) else "No"}
    if "ball" in text:
        path = sorted(r["at"] for r in rows if r["kind"] == "ball")
        step = (path[1][1] - path[0][1], path[1][2] - path[0][2])
        return {next(name for name, value in DIRECTIONS.items() if value == step).capitalize()}
    if "flash" in text:
        field = "color" if text.startswith("What color") else "ground"
        return {r[field].capitalize() for r in rows if r["kind"] == "flash"}
    if text in ("Which letter comes first?", "Which letter comes last?"):
        return {sorted(plates, key=lambda r: r["at"])[0 if "first" in words else -1]["name"]}
    if text.startswith("Which letter"):
        return {r["name"] for r in plates if r["ground"] == ground}
    if letter and text.startswith("What is"):
        return {r["ground"].capitalize() for r in plates if r["name"] == letter}
    if letter:
        scene = next(r["scene"] for r in plates if r["name"] == letter)
        return {r["color"].capitalize() for r in objects if r["scene"] == scene and r["name"] == shape}
    if text.startswith("What color"):
        return {r["color"].capitalize() for r in objects if r["ground"] == ground and r["name"] == shape}
    if text.startswith("What shape"):
        color, ground = re.fullmatch(r"What shape is the (\w+) object in the (\w+) scene\?", text).groups()
        return {r["name"].capitalize() for r in objects if r["ground"] == ground and r["color"] == color}
    if shape:
        return {r["ground"].capitalize() for r in objects if r["color"] == color and r["name"] == shape}
    for word, at in (("first", 0), ("second", 1), ("last", -1)):
        if word in words:
            return {grounds[at].capitalize()}
    step = 1 if "after" in words else -1
    return {grounds[grounds.index(ground) + step].capitalize()}


def test_a_seed_decides_the_clip_and_no_two_splits_share_one() -> None:
    one, again = make_clip(5), make_clip(5)
    assert np.array_equal(one.frames, again.frames)
    assert one.questions == again.questions
    assert one.scenes == again.scenes
    others = [make_clip(5, "train"), make_clip(5, "validation"), make_clip(6)]
    assert all(not np.array_equal(one.frames, other.frames) for other in others)
    ranges = [(clip_seed(split, 0), clip_seed(split, generate.SEEDS - 1)) for split in generate.SPLITS]
    assert all(first[1] < second[0] for first, second in pairwise(ranges))


@pytest.mark.parametrize("number", [-1, generate.SEEDS])
def test_a_number_outside_its_split_is_refused(number: int) -> None:
    with pytest.raises(InputError, match="outside 0"):
        make_clip(number)


def test_frames_that_no_sampler_takes_are_refused() -> None:
    with pytest.raises(InputError, match="16, 32 or 96"):
        make_clip(0, frames=20)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_follows_from_the_ground_truth(seed: int) -> None:
    scenes = clip_scenes(seed, "validation")
    for question in all_questions(scenes):
        assert expected(question, scenes) == {question.word}, question
        assert question.answer in {sentence.format(question.word) for sentence in SAY.values()}
        assert question.correct(question.answer.lower().rstrip("."))
        assert not question.correct(question.word + " is wrong.")


@pytest.mark.parametrize("seed", SEEDS)
def test_evidence_cells_hold_what_the_answer_names(seed: int) -> None:
    scenes = clip_scenes(seed, "validation")
    at = {row["at"]: row for row in raster(scenes)}
    for question in all_questions(scenes):
        first, last = question.evidence_frames
        assert 0 <= first <= last < INTERVALS
        assert all(first <= cell[0] <= last for cell in question.evidence_cells)
        shown = {
            str(at[cell][key]).capitalize() for cell in question.evidence_cells for key in ("ground", "name", "color")
        }
        if question.evidence_cells and question.kind != "exist":
            assert question.word in shown
        if question.kind in ("bg_of", "color_in", "shape_in", "letter_in", "bg_letter", "flash", "bg_flash"):
            assert 1 <= len(question.evidence_cells) <= 2
            assert len({at[cell]["id"] for cell in question.evidence_cells}) == 1


@pytest.mark.parametrize("seed", range(6))
def test_evidence_is_visible_in_the_rendered_frames(seed: int) -> None:
    clip, scenes = make_clip(seed), clip_scenes(seed, "heldout")
    cell = clip.frames.shape[1] // GRID
    for row in raster(scenes):
        frame, r, c = row["at"]
        scene = scenes[row["scene"]]
        blank = generate.resize(background(scene.background, scene.texture)[None], clip.frames.shape[1])[0]
        window = np.s_[r * cell : (r + 1) * cell, c * cell : (c + 1) * cell]
        difference = np.abs(clip.frames[frame][window].astype(int) - blank[window]).max(-1)
        assert (difference > 24).sum() > 30, row
        if row["kind"] == "object":
            near = np.abs(clip.frames[frame][window].astype(int) - COLORS[row["color"]]).max(-1)
            assert (near < 40).sum() >= 12, row


def test_nothing_else_is_drawn() -> None:
    scenes = clip_scenes(3, "heldout")
    taken = {row["at"] for row in raster(scenes)}
    start = 0
    for scene in scenes:
        blank = background(scene.background, scene.texture).astype(int)
        for i in range(scene.length):
            difference = np.abs(draw_frame(scene, i, 6).astype(int) - blank).max(-1)
            cells = difference.reshape(GRID, CELL, GRID, CELL).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
            drawn = {(start + i, *map(int, at)) for at in np.argwhere((cells > 24).mean(-1) > 0.1)}
            assert drawn == {cell for cell in taken if cell[0] == start + i}
        start += scene.length


def test_questions_cover_every_kind_and_every_third_of_the_clip() -> None:
    asked = [question for seed in range(150) for question in clip_questions(seed, "heldout")]
    kinds = Counter(question.kind for question in asked)
    assert set(kinds) == set(KINDS) == set(DESCRIPTIONS)
    needles = Counter(q.position for q in asked if len(q.evidence_cells) in (1, 2) and q.kind in KINDS[:5])
    assert set(needles) == {"early", "middle", "late"}
    assert max(needles.values()) < 1.35 * min(needles.values())
    words = Counter(question.word for question in asked if question.kind in ("exist", "exist_scene"))
    assert 0.5 < words["Yes"] / words["No"] < 2


@pytest.mark.parametrize("frames", [16, 32])
def test_the_film_shows_the_clip_through_the_front_door(frames: int, tmp_path: Path) -> None:
    path = render_video(4, tmp_path / "clip.mp4")
    assert path.stat().st_size < 300_000
    decoded = decode(path, frames, Settings())
    assert decoded.frames.shape[1:3] == (SIDE, SIDE)
    assert decoded.info.codec == "h264"
    assert decoded.info.frame_count == 192
    clip = make_clip(4, frames=frames)
    video = LlavaOnevisionVideo((0.0,) * 3, (1.0,) * 3, 1.0, size=(112, 112))
    seen = video.pixels(decoded.frames)["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()
    errors = np.abs(seen - clip.frames).mean((1, 2, 3))
    assert errors.max() < 6
    cuts = [i + 1 for i, jump in enumerate(np.abs(np.diff(seen.mean((1, 2)), axis=0)).max(-1)) if jump > 12]
    per_interval = frames // INTERVALS
    assert cuts == [first * per_interval for first, _ in scene_bounds(clip_scenes(4, "heldout"))[1:]]
    for question in clip.questions:
        for frame, row, col in question.evidence_cells:
            window = np.s_[frame * per_interval, row * 16 : row * 16 + 16, col * 16 : col * 16 + 16]
            assert np.abs(seen[window] - clip.frames[window]).mean() < 16, question
