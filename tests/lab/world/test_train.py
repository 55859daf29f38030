"""Training: packed rows equal the own forward of the model, a resumed run an uninterrupted one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lab.world import train as training
from lab.world.generate import clip_scenes, make_clip
from lab.world.packing import SLOTS, Pool, Prompts, Sample, draw_sample, pack
from lab.world.questions import KINDS
from lab.world.recipe import ALL, SHAPE, STAGES, Recipe, corpus
from lab.world.score import hidden_states, judge
from lab.world.vision import CELLS, interval_frames, patch_features, per_interval, visual_tokens
from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.tiny import write_checkpoint
from sharp_demo.settings import Settings

FAMILIES = ("llava-onevision", "qwen2-vl")
SMALL = replace(SHAPE, width=32, mlp=32, layers=3, heads=2, kv_heads=1, vision_width=16, vision_mlp=16, vision_layers=1)
RECIPE = Recipe(
    shape=replace(SMALL, vision_heads=2),
    tower_steps=6,
    tower_images=2,
    pool_clips=24,
    token_steps=2,
    stages=(
        replace(STAGES[0], steps=2, clips=2, questions=2),
        replace(STAGES[4], steps=3, clips=2, questions=2, blind=1.0),
        replace(STAGES[5], steps=1, clips=1, questions=2),
    ),
    save_every=1,
    validation_clips=1,
    heldout_clips=1,
    corpus_clips=5,
)


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """An untrained model in the shape of RECIPE, large weights so that logits differ."""
    folder = tmp_path_factory.mktemp("small") / request.param
    shape = replace(RECIPE.shape, initializer_range=0.1)
    write_checkpoint(folder, request.param, shape, sentences=corpus(5), card={"default_frames": 16})
    return load(str(folder), Settings(device="cpu", dtype="float32", attention="sdpa"))


@torch.no_grad()
def test_packed_questions_equal_the_models_own_forward(small: Backbone) -> None:
    scenes = clip_scenes(1, "validation")
    pairs = [(scene, i) for scene in scenes for i in range(scene.length)]
    frames = interval_frames(pairs, per_interval(small.model.config))
    clip = make_clip(1, "validation", frames=frames.shape[0] * frames.shape[1])
    assert np.array_equal(frames.reshape(clip.frames.shape), clip.frames)
    patches = patch_features(small.model, small.processor.video, frames)
    own = encode_video(small.model, small.processor.video.pixels(clip.frames)).features[:SLOTS]
    torch.testing.assert_close(visual_tokens(small.model, patches.flatten(0, 1)), own, rtol=1e-4, atol=1e-5)
    questions = tuple(clip.questions[:3])
    slots = np.arange(SLOTS)
    batch = pack(Prompts(small.processor), [Sample(slots, slots, questions)], tail=1.0)
    hidden = hidden_states(small.model, batch, patches.flatten(0, 1))[0]
    logits = small.model.lm_head(hidden[batch.deciding[0]])
    for question, row in zip(questions, logits, strict=True):
        alone = small.model(**small.processor(clip.frames, question.text)).logits[0, -1]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blinded_text_does_not_see_the_video(small: Backbone) -> None:
    questions = make_clip(1, "validation").questions[:2]
    slots = np.arange(0, SLOTS, 60)
    batch = pack(Prompts(small.processor), [Sample(slots, slots, tuple(questions))], tail=0.0)
    generator = torch.Generator().manual_seed(0)
    wide = RECIPE.shape.vision_width
    patches, others = (torch.randn(len(slots), 4, wide, generator=generator) for _ in range(2))
    rows = (batch.segment[0] > 0) & ~batch.deciding[0]
    for blind, same in (("question", True), ("", False)):
        one, two = (hidden_states(small.model, batch, p, blind)[0] for p in (patches, others))
        assert torch.equal(one[rows], two[rows]) == same
        assert not torch.equal(one[batch.deciding[0]], two[batch.deciding[0]])


def test_a_question_is_asked_only_when_its_evidence_is_fed() -> None:
    clips = [clip_scenes(seed, "train") for seed in range(40)]
    pool = Pool(clips, torch.zeros(16 * len(clips), CELLS, 1, 1))
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sample = draw_sample(rng, pool, questions=8, kinds=ALL, objects=3, background=6)
        assert len(sample.slots) == len(sample.rows) < 40
        assert sorted(set(sample.slots.tolist())) == sample.slots.tolist()
        for question in sample.questions:
            assert {f * CELLS + r * 7 + c for f, r, c in question.evidence_cells} <= set(sample.slots.tolist())
        assert len(draw_sample(rng, pool, questions=2, kinds=ALL, objects=None, background=None).slots) == SLOTS


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}


def _timeless(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [row for row in log if row.get("event") != "resume"]
    return [{key: value for key, value in row.items() if key not in ("seconds", "commit")} for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.train(family, tmp_path / "whole", recipe=RECIPE, work=tmp_path / "a")
    options = {"recipe": RECIPE, "work": tmp_path / "b", "resume": True}

    def interrupted(real: Callable[..., Any], calls: int) -> Callable[..., Any]:
        left = iter(range(calls))

        def once(*args: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        return once

    with monkeypatch.context() as patch:
        patch.setattr(training, "tower_batch", interrupted(training.tower_batch, 5))
        with pytest.raises(KeyboardInterrupt):
            training.train(family, tmp_path / "parts", **options)
    training.train(family, tmp_path / "parts", stop_after=3, **options)
    assert not (tmp_path / "parts").exists()
    resumed = training.train(family, tmp_path / "parts", **options)
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")
    assert _timeless(resumed) == _timeless(whole)
    assert [row.get("event") for row in whole if "event" in row] == ["start", "pool", "validation", "heldout"]
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert card["trained"]
    assert card["default_frames"] == (32 if family == "qwen2-vl" else 16)
    text = (tmp_path / "whole" / "README.md").read_text()
    assert all(f"| {kind} |" in text for kind in KINDS)


def test_the_command_names_the_backbones_it_knows() -> None:
    result = CliRunner().invoke(training.app, ["--backbone", "gpt"])
    assert result.exit_code == 2
    assert "qwen2-vl" in result.output


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_checkpoint_answers_clips_it_never_saw(family: str) -> None:
    settings = Settings(device="cpu", dtype="float32", attention="sdpa")
    backbone = load(f"tiny-{family}", settings)
    card = json.loads((backbone.folder / "card.json").read_text())
    assert backbone.info.trained
    assert len(card["kinds"]) >= 8
    verdicts = list(judge(backbone.model, backbone.processor, "heldout", range(900_000, 900_005)))
    shipped = [verdict for verdict in verdicts if verdict.question.kind in card["kinds"]]
    assert len(shipped) >= 40
    assert sum(verdict.exact for verdict in shipped) / len(shipped) >= 0.9
    # What the teacher-forced verdict calls exact is what generate says, and the other way round.
    clip = make_clip(900_000, frames=backbone.default_frames)
    for verdict in verdicts[:4]:
        inputs = backbone.processor(clip.frames, verdict.question.text)
        ids = backbone.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert verdict.question.correct(backbone.processor.decode(ids)) == verdict.exact


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_files_are_small(family: str) -> None:
    folder = Path(__file__).parents[3] / "assets" / "models" / f"tiny-{family}"
    assert max(file.stat().st_size for file in folder.iterdir()) < 10_000_000
