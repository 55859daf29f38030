"""Fixtures for everybody: tiny random checkpoints of both families, written once and loaded as any model is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.tiny import TinyShape, write_checkpoint
from sharp_demo.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cpu_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that know no embedded model and run in float32 on the CPU."""
    return Settings(device="cpu", dtype="float32", attention="sdpa", assets=tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def tiny_llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-OneVision, 4 layers, 9 tokens a frame (3 x 3, pooled from 5 x 5)."""
    return write_checkpoint(tmp_path_factory.mktemp("llava") / "tiny", "llava-onevision", TinyShape())


@pytest.fixture(scope="session")
def tiny_qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL, 4 layers, at most 12 tokens per temporal patch (3 x 4 for 60 x 80 frames)."""
    return write_checkpoint(tmp_path_factory.mktemp("qwen") / "tiny", "qwen2-vl", TinyShape())


@pytest.fixture(scope="session")
def tiny_llava(tiny_llava_folder: Path, cpu_settings: Settings) -> Backbone:
    return load(str(tiny_llava_folder), cpu_settings)


@pytest.fixture(scope="session")
def tiny_qwen(tiny_qwen_folder: Path, cpu_settings: Settings) -> Backbone:
    return load(str(tiny_qwen_folder), cpu_settings)


@pytest.fixture(params=["llava", "qwen"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    """Each of the two in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")
