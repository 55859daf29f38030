"""The tested set: constraints and requirements agree, every licence is known, and the audit leaves nothing out."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
COPYLEFT = {"GPL-3.0-only"}
LICENCES = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_chain", ROOT / "tools/supply_chain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    parsed = [re.fullmatch(r"([a-z0-9-]+)==(\S+)", line) for line in lines]
    assert all(parsed), "every line is name==version"
    return {found[1]: Version(found[2]) for found in parsed if found}


def listed() -> dict[str, tuple[str, str, str]]:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+?) \| (app|tests) \|$", (ROOT / "docs/licences.md").read_text(), re.M)
    return {name: (number, licence, needed) for name, number, licence, needed in rows}


def wanted(*names: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for name in names for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_constraints_are_public_versions_in_order() -> None:
    assert list(pins()) == sorted(pins())
    assert all(number.local is None and not number.is_devrelease for number in pins().values())


@pytest.mark.parametrize("requirement", wanted("requirements.txt", "requirements-dev.txt"), ids=str)
def test_every_requirement_has_a_constraint_within_its_range(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{requirement} excludes the tested {pin}"


def test_space_and_constraints_name_the_same_gradio() -> None:
    (named,) = re.findall(r"^sdk_version: (\S+)$", (ROOT / "README.md").read_text(), re.M)
    assert Version(named) == pins()["gradio"]


def test_constraints_hold_everything_that_is_needed(tool: ModuleType) -> None:
    needed = set(tool.closure(wanted("requirements.txt", "requirements-dev.txt")))
    if f"# Tested with: {tool.tested_with()}\n" in (ROOT / "constraints.txt").read_text():
        assert needed == set(pins())
    else:  # another Python or platform may need a few others
        assert len(needed & set(pins())) > 0.9 * len(needed)


def test_every_package_is_listed_with_a_known_licence(tool: ModuleType) -> None:
    assert {name: Version(number) for name, (number, _, _) in listed().items()} == pins()
    for name, (number, licence, needed) in listed().items():
        parts = set(re.split(r" AND | OR ", licence.replace("(", "").replace(")", "")))
        assert parts <= (LICENCES if needed == "app" else LICENCES | COPYLEFT), f"{name}: {licence}"
        try:
            here = version(name)
        except PackageNotFoundError:  # needed on another platform
            continue
        if Version(here).public == number:
            assert tool.licence_of(distribution(name)) == licence


def test_the_tool_follows_requirements_and_refuses_what_is_missing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str, number: str, *lines: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        head = ("Metadata-Version: 2.4", f"Name: {name}", f"Version: {number}")
        (folder / "METADATA").write_text("\n".join([*head, *lines, "", ""]))

    install(
        *("toy-a", "1.0+cpu", "License-Expression: MIT", "Requires-Dist: toy-b>=1"),
        "Requires-Dist: toy-c; extra == 'more'",
        "Requires-Dist: toy-d; python_version < '3'",
    )
    install("toy-b", "2.0", "License: Apache 2.0", "Requires-Dist: toy-a[more]")
    install("toy-c", "3", "Classifier: License :: OSI Approved :: MIT License")
    install("toy-e", "1", "Requires-Dist: toy-d")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "app.txt").write_text("# nothing here\ntoy-b>=1  # why\n")
    found = tool.packages(["app.txt"], tmp_path)
    assert [(p.name, p.version, p.licence) for p in found] == [
        ("toy-a", "1.0", "MIT"),
        ("toy-b", "2.0", "Apache-2.0"),
        ("toy-c", "3", "MIT"),
    ]
    assert "\ntoy-a==1.0\ntoy-b==2.0\ntoy-c==3\n" in tool.constraints_page(found)
    with pytest.raises(ValueError, match="toy-d is needed"):
        tool.closure([Requirement("toy-e")])


def make(*arguments: str) -> str:
    command = ["make", "--dry-run", "--always-make", *arguments]
    # Variables given to the make that runs these tests are not meant for this one.
    clean = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "USE_SYSTEM")
    }
    return subprocess.run(command, cwd=ROOT, env=clean, check=True, capture_output=True, text=True).stdout


def test_installing_takes_the_tested_set_unless_told_otherwise(tmp_path: Path) -> None:
    venv = f"VENV={tmp_path}"
    assert make("install", venv).count("-c constraints.txt -r requirements.txt") == 2
    assert "constraints" not in make("install", venv, "CONSTRAINTS=")


def test_the_audit_skips_nothing_and_is_no_part_of_the_tests(tmp_path: Path) -> None:
    (line,) = [line for line in make("audit", f"VENV={tmp_path}").splitlines() if "--requirement" in line]
    assert {"--strict", "--no-deps", "constraints.txt"} <= set(line.split())
    assert not {"--ignore-vuln", "--dry-run", "--skip-editable"} & set(line.split())
    assert "pip-audit" not in make("test", f"VENV={tmp_path}")
