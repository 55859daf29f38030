"""Write the folder of a Hugging Face Space: python tools/make_space.py FOLDER --hardware cpu|gpu|zerogpu [--model ID].

A Space reads its hardware-dependent choices from two files, README.md (front matter) and requirements.txt, so these are
written for the hardware; everything else is copied. docs/deploy.md says how to send the folder.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("app.py", "LICENSE", "docs", "sharp_demo", "assets")
UNWANTED = "__pycache__"
LARGE_MODEL = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
LARGEST_FILE = 10 * 10**6  # a larger one is rejected by a plain git push


@dataclass(frozen=True)
class Hardware:
    """What a kind of Space needs.

    `torch`: the version, empty for the tested one. `index`: where torch comes from, apart from PyPI. `preload`: the
    checkpoint that is downloaded when the Space is built, not when it starts.
    """

    suggested: str
    torch: str = ""
    index: str = ""
    preload: str = ""


HARDWARE = {
    "cpu": Hardware("cpu-upgrade", index="https://download.pytorch.org/whl/cpu"),
    # CUDA 12 runs on the drivers of all GPUs offered; PyPI's newest torch brings CUDA 13.
    "gpu": Hardware("l4x1", torch="2.10.0", index="https://download.pytorch.org/whl/cu128", preload=LARGE_MODEL),
    # ZeroGPU offers torch 2.8.0, 2.9.1, 2.10.0 and 2.11.0, and Python 3.12.12 or 3.10.13.
    "zerogpu": Hardware("zero-a10g", torch="2.10.0", preload=LARGE_MODEL),
}


def front_matter(card: dict[str, Any], hardware: Hardware, model: str) -> dict[str, Any]:
    """Return the card of a Space on this hardware; `model` is preloaded, empty for none."""
    preload = {"preload_from_hub": [model]} if model else {}
    return {**card, "suggested_hardware": hardware.suggested, **preload}


def requirements(lines: list[str], tested: dict[str, str], hardware: Hardware) -> str:
    """Return requirements.txt with the tested version of every direct requirement (a Space reads no constraints)."""
    pinned = [f"--extra-index-url {hardware.index}"] if hardware.index else []
    for line in (line.partition("#")[0].strip() for line in lines):
        if line:
            wanted = Requirement(line)
            name = wanted.name.lower()
            version = hardware.torch if name == "torch" and hardware.torch else tested[name]
            pinned.append(f"{wanted.name}=={version}" + (f"; {wanted.marker}" if wanted.marker else ""))
    return "\n".join([*pinned, ""])


def write(folder: Path, hardware: Hardware, model: str) -> None:
    """Write the Space into a new folder.

    Raises ValueError when it exists, or when a file is too large for a push; then nothing is written.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder")
    large = [path for path in copied() if path.stat().st_size > LARGEST_FILE]
    if large:
        raise ValueError(f"{large[0]} is larger than {LARGEST_FILE // 10**6} MB, which a Space rejects")
    _, card, page = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    tested = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    folder.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(UNWANTED))
        else:
            shutil.copy(ROOT / name, folder / name)
    chosen = front_matter(yaml.safe_load(card), hardware, model)
    head = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{head}---\n{page}", "utf-8")
    (folder / "requirements.txt").write_text(requirements(lines, tested, hardware), "utf-8")


def copied() -> list[Path]:
    """Return every file that a Space gets unchanged."""
    paths = [path for name in COPIED for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    return [path for path in paths if path.is_file() and UNWANTED not in path.parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hardware", choices=sorted(HARDWARE), required=True)
    parser.add_argument("--model", help="checkpoint to download when the Space is built; none: --model ''")
    asked = parser.parse_args()
    hardware = HARDWARE[asked.hardware]
    try:
        write(asked.folder, hardware, hardware.preload if asked.model is None else asked.model)
    except ValueError as error:
        sys.exit(f"make_space.py: {error}")


if __name__ == "__main__":
    main()
