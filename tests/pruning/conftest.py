"""The embedded models on an example clip: states of a model that sees something."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharp_demo.backbones.load import load
from sharp_demo.settings import Settings
from sharp_demo.video import decode
from tests.pruning.prompts import Prompt

CLIP = Path(__file__).resolve().parents[2] / "assets/clips/letter-in-a-scene.mp4"


@pytest.fixture(scope="session", params=["tiny-llava-onevision", "tiny-qwen2-vl"])
def world(request: pytest.FixtureRequest) -> Prompt:
    """A question about an example clip, for each embedded model."""
    backbone = load(request.param, Settings(device="cpu", dtype="float32", attention="sdpa"))
    return Prompt(backbone, decode(CLIP, frames=16).frames, "Which letter is in the orange scene?")
