"""What a result was made with: commit, versions, machine and the model's very bytes."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sharp_demo.backbones.load import Backbone
from sharp_demo.engine.figures import versions
from sharp_demo.settings import ROOT

# The code that decides accuracies and attention.
MEASURING = ("sharp_demo/cost.py", "sharp_demo/backbones", "sharp_demo/pruning", "lab/accuracy", "lab/world")


def provenance(backbone: Backbone) -> dict[str, Any]:
    """JSON-ready: commit (with "+changes" where code differs), digest of the code, versions, machine, model."""
    info = backbone.info
    return {
        "commit": commit(),
        "code_sha256": code_digest(),
        "versions": versions(),
        "machine": machine(),
        "model": {
            "name": info.name,
            "trained": info.trained,
            "parameters": info.parameters,
            "weights_sha256": weights_digest(backbone.folder),
            "device": info.device,
            "dtype": info.dtype,
            "attention_backend": info.attention_backend,
        },
    }


def commit(root: Path = ROOT) -> str | None:
    """The commit of the code that runs; None outside a git checkout."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "sharp_demo", "lab", "assets")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores and threads; no host name."""
    described = {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def code_digest(root: Path = ROOT) -> str:
    """SHA-256 over the source files that measured figures depend on, in the order of their paths."""
    found = [root / name for name in MEASURING]
    files = [file for path in found for file in (path.rglob("*.py") if path.is_dir() else (path,))]
    return _digest(sorted(files))


def weights_digest(folder: Path) -> str:
    """SHA-256 over all safetensors of a checkpoint, in the order of their names."""
    return _digest(sorted(folder.glob("*.safetensors")))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
