"""Tiny random checkpoints of all families with a card, so that clips fall on whole frames."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.accuracy.asking import Film
from lab.world.generate import make_clip
from lab.world.records import SyntheticClip
from sharp_demo.backbones.families import FAMILIES
from sharp_demo.backbones.family import TrainableFamily
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.settings import Settings


@pytest.fixture(scope="session", params=[family.name for family in FAMILIES if isinstance(family, TrainableFamily)])
def folder(
    request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint folder of each family that the laboratory trains: 16 layout frames of 3 x 3 tokens."""
    tiny = tiny_of(request.param)
    source, frames = tiny.folder, 16 * tiny.processor.family.frames_per_token(tiny.model.config)
    copied = tmp_path_factory.mktemp("cards") / request.param
    shutil.copytree(source, copied)
    card = {"trained": False, "default_frames": frames, "kinds": ["bg_of", "color_in", "letter_in"]}
    (copied / "card.json").write_text(json.dumps(card))
    return copied


@pytest.fixture(scope="session")
def backbone(folder: Path, cpu_settings: Settings) -> Backbone:
    return load(str(folder), cpu_settings)


@pytest.fixture(scope="session")
def clip(backbone: Backbone) -> SyntheticClip:
    return make_clip(7, "validation", size=40, frames=backbone.default_frames)


@pytest.fixture(scope="session")
def film(backbone: Backbone, clip: SyntheticClip) -> Film:
    return Film(backbone, clip.frames, BiasCache())
