"""The embedded models through the real front door: a film on disk, decoded, preprocessed, asked through `compare`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.accuracy.evaluate import CLIPS_PER_SEED, Plan
from lab.accuracy.front_door import front_door
from lab.accuracy.variants import parse_variants
from lab.provenance import weights_digest
from lab.publish import FRONT_DOOR_PER_CLIP, FRONT_DOOR_SEED
from lab.world.generate import make_clip, render_video
from sharp_demo.backbones.load import load
from sharp_demo.engine import Engine
from sharp_demo.settings import ROOT, Settings

FIRST_CLIP = FRONT_DOOR_SEED * CLIPS_PER_SEED  # no other figure uses these clips
MODELS = ("tiny-llava-onevision", "tiny-qwen2-vl")
MAX_LOSS = 0.02


@pytest.mark.parametrize("model", MODELS)
def test_a_film_on_disk_loses_next_to_nothing(model: str) -> None:
    settings = Settings(model=model, device="cpu", dtype="float32", attention="sdpa")
    plan = Plan(parse_variants("vanilla"), questions=16, seed=FRONT_DOOR_SEED, per_clip=FRONT_DOOR_PER_CLIP)
    seen = front_door(load(model, settings), Engine(settings), plan)
    assert (seen["clips"], seen["questions"]) == (2, 16)
    assert seen["drawn"] >= 0.9
    assert seen["filmed"] >= seen["drawn"] - 1 / 16
    assert len(seen["differ"]) >= abs(round(16 * seen["difference"]))


@pytest.mark.parametrize("model", MODELS)
def test_fifty_stored_films_lose_at_most_two_points(model: str) -> None:
    """The stored run of `make results` was made with the shipped weights, and its figures hold."""
    stored = json.loads((ROOT / f"docs/results/front-door-{model}.json").read_text())
    assert stored["setup"]["model"]["weights_sha256"] == weights_digest(Settings().embedded[model])
    assert (stored["setup"]["split"], stored["setup"]["seed"]) == ("heldout", FRONT_DOOR_SEED)
    assert stored["clips"] >= 50
    assert stored["questions"] >= 400
    assert stored["filmed"] >= stored["drawn"] - MAX_LOSS


def test_compare_answers_a_generated_film(tmp_path: Path) -> None:
    """The command itself, in a process of its own, gives the trained answer."""
    question = next(q for q in make_clip(FIRST_CLIP).questions if q.kind == "bg_of")
    path, out = render_video(FIRST_CLIP, tmp_path / "film.mp4"), tmp_path / "out.json"
    command = ["compare", str(path), question.text, "--model", MODELS[0], "--methods", "vanilla", "--json", str(out)]
    subprocess.run([sys.executable, "-m", "sharp_demo", *command], check=True, capture_output=True)
    (result,) = json.loads(out.read_text())["results"]
    assert question.correct(result["answer"])
