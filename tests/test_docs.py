"""Documentation that repeats the code is generated from it; what it promises runs."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import SpaceHardware

from sharp_demo.backbones.families import hub_models
from sharp_demo.cost import exact_tflops, paper_tflops, shape_named
from sharp_demo.engine.zerogpu import gpu_seconds
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.framefusion import FrameFusion
from sharp_demo.pruning.matching import flops_matched_retention
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import METHODS
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    for path, text in generate.pages().items():
        assert path.read_text() == text, f"{path.name} is out of date: run make docs"


def test_generator_refuses_a_page_without_its_block(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match="found 0"):
        generate.with_block("no markers here", "methods", "x")


def test_local_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_contributing_names_nothing_that_is_gone() -> None:
    """Paths are there, attributes and hooks are those of the classes, other names occur in the code."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:sharp_demo|tests|tools|docs|lab)/[\w./]*)`", page):
        assert (ROOT / path).exists() or path == "tests/pruning/test_NAME.py", path
    guide = page.split("## Add a method")[1].split("\n## ")[0]
    code = "".join(path.read_text() for folder in ("sharp_demo", "tests") for path in (ROOT / folder).rglob("*.py"))
    for name in re.findall(r"`(\w+)(?:\(\.\.\.\))?`", guide):
        assert re.search(rf"\b{name}\b", code), name
    for line in re.findall(r"^- (`\w+`(?:, `\w+`)*):", guide, re.MULTILINE):
        for name in re.findall(r"\w+", line):
            assert name in Method.__annotations__ or hasattr(Method, name), name


def test_deployment_page_names_settings_arguments_and_hardware_that_exist() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    assert set(re.findall(r"SHARP_([A-Z_]+)", page)) <= {name.upper() for name in Settings.model_fields}
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) == arguments
    assert set(re.findall(r"--build-arg (\w+)", page)) <= arguments
    (flavors,) = re.findall(r"^\| `--flavor` \| (.*) \|$", page, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", flavors)) <= {hardware.value for hardware in SpaceHardware}
    for path in re.findall(r"(?:tools|docs|sharp_demo)/[\w./]+\w", page):
        assert (ROOT / path).is_file()
    for model in re.findall(r"\w[\w-]*/[\w.-]+-(?:hf|Instruct)\b", page):
        assert model in hub_models()


def test_deployment_page_gives_the_estimate_of_the_code() -> None:
    shape = shape_named("llava-onevision-7b")
    prefill = exact_tflops(shape, [32 * 196] * shape.layers)
    seconds = gpu_seconds(2 * 8.03e9, frames=32, prefill_tflops=4 * prefill, answer_tokens=2 * 64, timing_s=2)
    assert f"two methods, 64 tokens: {seconds}." in (ROOT / "docs/deploy.md").read_text()


def test_sharp_page_answers_forty_questions_and_names_every_option() -> None:
    page = (ROOT / "docs/sharp.md").read_text()
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", page, re.MULTILINE))) == list(range(1, 41))
    for option in fields(ShaRP):
        assert f"`{option.name}`" in page or option.name == "retention", option.name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_page_has_a_section_or_a_line_for_every_method(method: type) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    assert re.search(rf"^## .*{re.escape(method.title)}", text, re.MULTILINE | re.IGNORECASE)


def test_framefusions_table_on_the_methods_page_is_what_the_code_gives() -> None:
    """Recomputed row by row from FastV's shares: an even number of tokens, all in layer 0, FastV's row, matched."""
    page = (ROOT / "docs/methods.md").read_text()
    header = "| table | mean | even | all in layer 0 | FastV's row | FLOPs-matched |"
    printed = page.split(header)[1].split("\n\n")[0].strip().splitlines()[1:]
    expected = []
    for table, config, n, shares in (
        (1, "llava-onevision-7b", 6272, (0.25, 0.2, 0.15, 0.1)),
        (2, "qwen2-vl-7b", 2880, (0.2, 0.1)),
    ):
        shape = shape_named(config)
        for share in shares:
            mean = (2 + 26 * share) / 28
            method = FrameFusion(retention=mean)
            nothing_merges = method.visual_per_layer(shape.layers, n)
            costs = (
                paper_tflops(shape, [round(mean * n)] * 28),
                paper_tflops(shape, nothing_merges, method.mlp_per_layer(nothing_merges)),
                paper_tflops(shape, FastV(retention=share).visual_per_layer(shape.layers, n)),
            )
            matched = flops_matched_retention(method, shape, n, share)
            cells = (f"{100 * mean:.1f} %", *(f"{cost:.2f}" for cost in costs), f"{100 * matched:.1f} %")
            expected.append(f"| {table} | {' | '.join(cells)} |")
    assert printed == expected
