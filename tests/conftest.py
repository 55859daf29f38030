"""Fixtures for everybody: tiny random checkpoints of all families, written once and loaded as any model is."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from lab.provenance import commit, machine
from sharp_demo.backbones.families import FAMILIES
from sharp_demo.backbones.family import Family
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.tiny import TinyShape, write_checkpoint
from sharp_demo.settings import Settings

pytest_plugins = ["tests.serving"]
USUAL = ("llava-onevision", "qwen2-vl")  # families of the embedded models
MERGING = [one.name for one in FAMILIES if type(one).tower_layers is not Family.tower_layers]
MEASURED = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, help="write what the tests measured to FILE.json, and a table to FILE.md")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[str, str, str], None]:
    """Record (what, figure, limit): shown after the tests, quiet or not, and written where --figures says."""
    figures = pytestconfig.stash.setdefault(MEASURED, [])
    return lambda what, figure, limit: figures.append({"what": what, "measured": figure, "limit": limit})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(MEASURED, [])
    if not figures:
        return
    terminalreporter.section("measured")
    for one in figures:
        terminalreporter.write_line(f"{one['what']}: {one['measured']} (limit {one['limit']})")
    if path := config.getoption("figures"):
        write_figures(path, figures)


def write_figures(path: Path, figures: list[dict[str, str]]) -> None:
    where = {**machine(), "threads": 1}  # of the server that is measured
    document = {"commit": commit(), "machine": where, "figures": figures}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    rows = [f"| {one['what']} | {one['measured']} | {one['limit']} |" for one in figures]
    lines = [
        "# Speed of the page",
        "",
        "Headless Chromium and the app on one machine, embedded model, made by",
        "",
        "```",
        "python -m pytest -q -m full tests/page/test_page_quality.py --figures docs/results/page-speed.json",
        "```",
        "",
        f"Machine: {where['cpu']}, {where['cores']} cores, shared; the app on one thread.",
        f"Commit: {document['commit']}.",
        "`make test-full` shows the same figures after its tests.",
        "",
        "| what | measured | limit |",
        "|---|---:|---:|",
        *rows,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cpu_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that know no embedded model and run in float32 on the CPU."""
    return Settings(
        device="cpu", dtype="float32", attention="sdpa", assets=tmp_path_factory.mktemp("assets"), timing_s=0.01
    )


@pytest.fixture(scope="session")
def tiny_folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint of the family with this name, 4 layers."""
    return cache(lambda name: write_checkpoint(tmp_path_factory.mktemp(name) / "tiny", name, TinyShape()))


@pytest.fixture(scope="session")
def tiny_of(tiny_folder_of: Callable[[str], Path], cpu_settings: Settings) -> Callable[[str], Backbone]:
    """That checkpoint loaded."""
    return cache(lambda name: load(str(tiny_folder_of(name)), cpu_settings))


@pytest.fixture(scope="session")
def tiny_llava_folder(tiny_folder_of: Callable[[str], Path]) -> Path:
    """LLaVA-OneVision, 9 tokens a frame (3 x 3, pooled from 5 x 5)."""
    return tiny_folder_of("llava-onevision")


@pytest.fixture(scope="session")
def tiny_qwen_folder(tiny_folder_of: Callable[[str], Path]) -> Path:
    """Qwen2-VL, at most 12 tokens per temporal patch (3 x 4 for 60 x 80 frames)."""
    return tiny_folder_of("qwen2-vl")


@pytest.fixture(scope="session")
def tiny_llava(tiny_of: Callable[[str], Backbone]) -> Backbone:
    return tiny_of("llava-onevision")


@pytest.fixture(scope="session")
def tiny_qwen(tiny_of: Callable[[str], Backbone]) -> Backbone:
    return tiny_of("qwen2-vl")


@pytest.fixture(scope="session")
def tiny_smol(tiny_of: Callable[[str], Backbone]) -> Backbone:
    """SmolVLM2, 9 tokens a frame (3 x 3, joined from 6 x 6), with a time before each frame."""
    return tiny_of("smolvlm2")


@pytest.fixture(
    params=[pytest.param(one.name, marks=pytest.mark.full if one.name not in USUAL else ()) for one in FAMILIES]
)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone]) -> Backbone:
    """One of each family in turn; the quick tests take two of them where the matrix has all."""
    return tiny_of(request.param)
