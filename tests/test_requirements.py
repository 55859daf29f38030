"""The requirement files name what the design allows, and nothing that forces CUDA or replaces torch."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = ("torchvision", "torchaudio", "flash-attn", "ray", "lmms-eval", "qwen-vl-utils")


def requirements(name: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    parsed = [Requirement(line) for line in lines if line]
    return {requirement.name.lower(): requirement for requirement in parsed}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_nothing_forces_cuda(name: str) -> None:
    names = set(requirements(name))
    assert not names & set(FORBIDDEN)
    assert not any("nvidia" in name or "cuda" in name or name == "triton" for name in names)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("torch", ["2.8.0", "2.10.0", "2.13.0", "2.13.0+cpu"], ["2.7.1", "2.14.0", "2.15.0"]),
        ("transformers", ["5.23.0", "5.23.1", "5.24.0"], ["5.22.0", "5.25.0"]),
        ("gradio", ["6.31.0", "6.40.0"], ["6.30.0", "7.0.0"]),
    ],
)
def test_bounds(name: str, allowed: list[str], refused: list[str]) -> None:
    specifier: SpecifierSet = requirements("requirements.txt")[name].specifier
    assert all(specifier.contains(version) for version in allowed)
    assert not any(specifier.contains(version) for version in refused)


@pytest.mark.parametrize(
    ("machine", "platform", "wanted"),
    [("x86_64", "linux", True), ("aarch64", "linux", False), ("arm64", "darwin", False), ("x86_64", "darwin", False)],
)
def test_decord_only_where_it_has_wheels(machine: str, platform: str, wanted: bool) -> None:
    marker = requirements("requirements.txt")["decord"].marker
    assert marker is not None
    assert marker.evaluate({"platform_machine": machine, "sys_platform": platform}) is wanted


def test_gpu_extra_is_flash_attn_alone_and_says_how() -> None:
    extra = requirements("requirements-gpu.txt")
    assert list(extra) == ["flash-attn"]
    text = (ROOT / "requirements-gpu.txt").read_text()
    assert "github.com/Dao-AILab/flash-attention/releases" in text
    assert "--no-build-isolation" in text


def test_package_metadata_takes_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert SpecifierSet(project["project"]["requires-python"]).contains("3.11")
    assert not SpecifierSet(project["project"]["requires-python"]).contains("3.10")
