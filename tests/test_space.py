"""A Space accepts the front matter, of the repository and of every folder that tools/make_space.py writes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.version import Version

from sharp_demo.backbones.families import hub_models
from tests.test_supply_chain import pins

ROOT = Path(__file__).resolve().parent.parent

# https://huggingface.co/docs/hub/spaces-config-reference, "All the accepted parameters are listed below".
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
FIELDS: dict[str, type] = {
    **dict.fromkeys(("title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version"), str),
    **dict.fromkeys(("suggested_hardware", "suggested_storage", "app_file", "app_build_command", "base_path"), str),
    **dict.fromkeys(("header", "short_description", "thumbnail", "license", "startup_duration_timeout"), str),
    **dict.fromkeys(("fullWidth", "pinned", "hf_oauth", "disable_embedding"), bool),
    **dict.fromkeys(("models", "datasets", "tags", "preload_from_hub", "hf_oauth_scopes"), list),
    "app_port": int,
    "hf_oauth_expiration_minutes": int,
    "custom_headers": dict,
}
# https://huggingface.co/docs/hub/spaces-zerogpu, "Supported versions".
ZEROGPU_PYTHON = {"3.10.13", "3.12.12"}
ZEROGPU_TORCH = {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}


def card_of(page: Path) -> dict[str, Any]:
    _, head, _ = page.read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head)


def check(card: dict[str, Any], folder: Path) -> None:
    for name, value in card.items():
        assert name in FIELDS, f"{name} is no field of a Space"
        assert type(value) is FIELDS[name], f"{name} must be {FIELDS[name].__name__}"
    assert card["sdk"] == "gradio", "ZeroGPU takes no other SDK"
    assert re.fullmatch(r"\d+\.\d+\.\d+", card["sdk_version"])
    assert card["python_version"] in ZEROGPU_PYTHON
    assert {card["colorFrom"], card["colorTo"]} <= COLORS
    assert not card["emoji"].isascii()
    assert card["header"] in ("mini", "default")
    assert len(card["short_description"]) <= 60
    assert card["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    assert (folder / card["app_file"]).is_file()
    assert re.fullmatch(r"\d+[mh]", card["startup_duration_timeout"])
    assert set(card["models"]) == set(hub_models())
    for line in card.get("preload_from_hub", []):
        # "owner/name [files, comma-separated] [revision]"
        assert re.fullmatch(r"[\w.-]+/[\w.-]+( [^\s,]+(,[^\s,]+)*( [0-9a-f]{40})?)?", line)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_space", ROOT / "tools/make_space.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_repository_itself_is_a_space() -> None:
    card = card_of(ROOT / "README.md")
    check(card, ROOT)
    assert card["license"] == "apache-2.0"


def test_the_check_refuses_what_a_space_would_not_take() -> None:
    good = card_of(ROOT / "README.md")
    for wrong in (
        *({"colour": "red"}, {"python_version": "3.12"}, {"emoji": "x"}, {"colorTo": "black"}, {"fullWidth": "true"}),
        *({"short_description": "x" * 61}, {"suggested_hardware": "h100"}, {"preload_from_hub": ["no repository"]}),
    ):
        with pytest.raises(AssertionError):
            check({**good, **wrong}, ROOT)


@pytest.mark.parametrize("kind", ["cpu", "gpu", "zerogpu"])
def test_a_folder_for_every_hardware(kind: str, tool: ModuleType, tmp_path: Path) -> None:
    folder, hardware = tmp_path / "space", tool.HARDWARE[kind]
    tool.write(folder, hardware, hardware.preload)
    card = card_of(folder / "README.md")
    check(card, folder)
    assert ("preload_from_hub" in card) is (kind != "cpu")

    lines = (folder / "requirements.txt").read_text().splitlines()
    options = [line for line in lines if line.startswith("-")]
    pinned = {line.name: line for line in map(Requirement, lines[len(options) :])}
    wanted = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    for requirement in (Requirement(line) for line in wanted if line):
        (exact,) = pinned[requirement.name].specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version)
        assert str(pinned[requirement.name].marker) == str(requirement.marker)
    (torch,) = pinned["torch"].specifier
    if kind == "zerogpu":
        assert torch.version in ZEROGPU_TORCH
    if kind == "cpu":
        assert options == ["--extra-index-url https://download.pytorch.org/whl/cpu"]
        assert Version(torch.version) == pins()["torch"]

    for name in ("app.py", "assets", "sharp_demo"):
        left = {path.relative_to(ROOT) for path in [ROOT / name, *(ROOT / name).rglob("*")]}
        right = {path.relative_to(folder) for path in [folder / name, *(folder / name).rglob("*")]}
        assert {path for path in left if "__pycache__" not in path.parts} == right
    assert not (folder / "tests").exists()


def test_the_folder_runs_by_itself(tool: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    tool.write(folder, tool.HARDWARE["cpu"], "")
    code = (
        "import app, sharp_demo, sys; from sharp_demo.settings import Settings; "
        "print(sharp_demo.__file__, *Settings().embedded); assert 'spaces' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / "sharp_demo/__init__.py"), "tiny-llava-onevision", "tiny-qwen2-vl"]


def test_nothing_is_overwritten_and_no_file_is_too_large(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="exists"):
        tool.write(tmp_path, tool.HARDWARE["cpu"], "")
    monkeypatch.setattr(tool, "LARGEST_FILE", 10**6)
    with pytest.raises(ValueError, match=r"safetensors is larger than 1 MB"):
        tool.write(tmp_path / "new", tool.HARDWARE["cpu"], "")
    assert not (tmp_path / "new").exists(), "what was refused leaves nothing that the next try would trip over"
