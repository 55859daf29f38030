"""Fixtures for everybody: tiny random checkpoints of both families, written once and loaded as any model is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lab.provenance import commit, machine
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.tiny import TinyShape, write_checkpoint
from sharp_demo.settings import Settings

pytest_plugins = ["tests.serving"]
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
