"""The embedded models through the real front door: a film on disk, decoded, preprocessed, asked through `compare`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sharp_demo.bench.asking import Asked, Film
from sharp_demo.clips.generate import make_clip, render_video
from sharp_demo.engine import Engine
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.records import MethodDone, MethodSpec, Request
from sharp_demo.settings import Settings

FIRST_SEED = 900_000  # of the held-out split; no other figure uses these clips
MODELS = ("tiny-llava-onevision", "tiny-qwen2-vl")
MAX_LOSS = 0.02


@pytest.fixture(scope="module", params=MODELS)
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(Settings(model=request.param, device="cpu", dtype="float32", attention="sdpa"))


def shipped_kinds(model: str) -> set[str]:
    return set(json.loads((Settings().embedded[model] / "card.json").read_text())["kinds"])


@torch.inference_mode()
def ask(engine: Engine, folder: Path, clips: int) -> tuple[int, int, int]:
    """Questions asked, right from the drawn frames, right from the film on disk."""
    model = engine.default_model
    kinds, asked, drawn, filmed = shipped_kinds(model), 0, 0, 0
    cache = BiasCache()
    for seed in range(FIRST_SEED, FIRST_SEED + clips):
        path = render_video(seed, folder / f"{seed}.mp4")
        loaded = engine._load(model)
        clip = make_clip(seed, frames=loaded.backbone.default_frames)
        film = Film(loaded.backbone, clip.frames, cache)
        for question in clip.questions:
            if question.kind not in kinds:
                continue
            asked += 1
            drawn += Asked(film, question.text).is_right(Vanilla(), question)[0]
            request = Request(str(path), question.text, (MethodSpec("vanilla"),), max_new_tokens=32)
            done = [event.result for event in engine.stream(request) if isinstance(event, MethodDone)]
            filmed += question.correct(done[0].answer)
    return asked, drawn, filmed


def test_a_film_on_disk_loses_next_to_nothing(engine: Engine, tmp_path: Path) -> None:
    asked, drawn, filmed = ask(engine, tmp_path, clips=2)
    assert asked >= 15
    assert drawn >= 0.9 * asked
    assert filmed >= drawn - 1, f"{filmed} of {asked} right from the film, {drawn} from the drawn frames"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_forty_films_lose_at_most_two_points(engine: Engine, tmp_path: Path) -> None:
    asked, drawn, filmed = ask(engine, tmp_path, clips=40)
    print(f"{engine.default_model}: {asked} questions, drawn {drawn / asked:.4f}, from the film {filmed / asked:.4f}")
    assert asked >= 400
    assert filmed / asked >= drawn / asked - MAX_LOSS


def test_compare_answers_a_generated_film(tmp_path: Path) -> None:
    """The command itself, in a process of its own, gives the trained answer."""
    question = next(q for q in make_clip(FIRST_SEED).questions if q.kind == "bg_of")
    path, out = render_video(FIRST_SEED, tmp_path / "film.mp4"), tmp_path / "out.json"
    command = ["compare", str(path), question.text, "--model", MODELS[0], "--methods", "vanilla", "--json", str(out)]
    subprocess.run([sys.executable, "-m", "sharp_demo", *command], check=True, capture_output=True)
    (result,) = json.loads(out.read_text())["results"]
    assert question.correct(result["answer"])
