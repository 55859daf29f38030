"""Write what the environment in which all tests passed consists of: python tools/supply_chain.py [--check].

constraints.txt: every package that the app and the tests need, itself or through another one, with its version.
docs/licences.md: the same packages with their licences. With --check nothing is written; a difference is an error.
Run it in the environment that was tested, after `make test`.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
APP, TESTS = ("requirements.txt",), ("requirements.txt", "requirements-dev.txt")

# What SPDX calls otherwise than older metadata does.
SPDX: Mapping[str, str] = {
    "APACHE": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "MIT License": "MIT",
    "GPL-3.0": "GPL-3.0-only",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
}

# Read in the packages' own files, where the metadata is silent.
UNSAID: Mapping[str, str] = {"axe-playwright-python": "MIT AND MPL-2.0"}


@dataclass(frozen=True)
class Package:
    """One installed package: `version` without a local part such as +cpu, `licence` as SPDX names it."""

    name: str
    version: str
    licence: str


def required(lines: Iterable[str]) -> list[Requirement]:
    """Return the requirements of a requirements file's lines; comments and options are left out."""
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(line) for line in stripped if line and not line.startswith("-")]


def closure(wanted: Iterable[Requirement]) -> dict[str, Distribution]:
    """Return every installed package that `wanted` leads to here, by its canonical name.

    Raises ValueError when one that this platform needs is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ends = [(requirement, frozenset({""})) for requirement in wanted]
    while open_ends:
        requirement, extras = open_ends.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name, own = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if (name, own) in seen:
            continue
        seen.add((name, own))
        try:
            found[name] = distribution(requirement.name)
        except PackageNotFoundError:
            raise ValueError(f"{requirement.name} is needed and not installed") from None
        open_ends += [(Requirement(line), own) for line in found[name].requires or ()]
    return dict(sorted(found.items()))


def licence_of(package: Distribution) -> str:
    """Return the licence a package's metadata names, or else its files; "unknown" when neither is known."""
    meta = package.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in meta.get_all("Classifier", []) if line.startswith("License")]
    named = [line for line in classifiers if line != "OSI Approved"]
    free_text = (meta.get("License") or "").strip()
    short = free_text if free_text and "\n" not in free_text and len(free_text) < 60 else ""
    for text in (meta.get("License-Expression") or "", short, *named):
        if text:
            return SPDX.get(text, text)
    return UNSAID.get(canonicalize_name(package.name), "unknown")


def tested_with() -> str:
    """Return Python's minor version and the platform, on which the packages needed may depend."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}, {platform.machine()}"


def packages(files: Iterable[str], root: Path = ROOT) -> list[Package]:
    """Return what these requirements files lead to in this environment, sorted by name."""
    lines = [line for file in files for line in (root / file).read_text("utf-8").splitlines()]
    return [
        Package(name, Version(found.version).public, licence_of(found))
        for name, found in closure(required(lines)).items()
    ]


def constraints_page(listed: list[Package]) -> str:
    """Return constraints.txt."""
    head = [
        "# The set of versions that all tests passed with: pip install -c constraints.txt -r requirements.txt",
        "# Written by tools/supply_chain.py; the ranges that are supported are in requirements.txt.",
        f"# Tested with: {tested_with()}",
    ]
    return "\n".join([*head, *(f"{package.name}=={package.version}" for package in listed), ""])


def licences_page(listed: list[Package], app: list[Package]) -> str:
    """Return docs/licences.md."""
    needed = {package.name for package in app}
    rows = [
        f"| {package.name} | {package.version} | {package.licence} | {'app' if package.name in needed else 'tests'} |"
        for package in listed
    ]
    return "\n".join([LICENCES_HEAD, "| package | version | licence | needed by |", "|---|---|---|---|", *rows, ""])


LICENCES_HEAD = """# Licences of the dependencies

The project itself is under [Apache-2.0](../LICENSE). None of these packages is part of its source; they are installed
from PyPI. Versions are those of [constraints.txt](../constraints.txt), licences what each package says of itself.
Written by `tools/supply_chain.py`. Packages that only the tests need are in no image and on no Space.

The wheels of the three decoders contain FFmpeg, whose terms are not the package's own; each build says of itself:
`opencv-python-headless` "LGPL version 2.1 or later"; `av` "LGPL version 3 or later", with x264 and x265, which are
GPL-2.0; `decord` "nonfree and unredistributable" (it was built with `--enable-gpl --enable-nonfree`). Installing decord
from PyPI is fine; an image that contains it must not be passed on: build one for others with
`--build-arg DECORD=0`, and PyAV decodes in its place ([deploy.md](deploy.md)).

A CUDA build of torch brings NVIDIA's libraries under NVIDIA's own terms. On ZeroGPU Hugging Face adds `spaces`
(Apache-2.0); requirements-gpu.txt adds `flash-attn` (BSD-3-Clause). Model checkpoints have licences of their own.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a difference")
    check = parser.parse_args().check
    listed, app = packages(TESTS), packages(APP)
    pages = {
        ROOT / "constraints.txt": constraints_page(listed),
        ROOT / "docs/licences.md": licences_page(listed, app),
    }
    stale = {path: text for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} differs from this environment: run {Path(__file__).name}", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
