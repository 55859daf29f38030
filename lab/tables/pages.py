"""The page of a stored accuracy or attention result, by its file name: PART-MODEL.json next to PART-MODEL.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.tables import accuracy, front_door, phenomena

Document = dict[str, Any]


def page(path: Path) -> str:
    """Return a stored result as Markdown. Raises ValueError for a file that no part writes."""
    part, model = part_of(path)
    stored = json.loads(path.read_text("utf-8"))
    return RENDERERS[part](of_one_model(stored), model)


def part_of(path: Path) -> tuple[str, str]:
    """Return part and model of a file name. Raises ValueError when it starts with no part's name."""
    for part in RENDERERS:
        if path.stem.startswith(f"{part}-"):
            return part, path.stem.removeprefix(f"{part}-")
    raise ValueError(f"{path.name} is no stored result: it starts with none of {', '.join(RENDERERS)}")


def of_one_model(stored: Document) -> Document:
    """Return what `evaluate` measured of the only model in a stored file; other documents as they are."""
    if "models" not in stored:
        return stored
    ((_, about),) = stored["models"].items()
    return {**about, "results": stored["results"]}


def accuracy_page(document: Document, model: str) -> str:
    """Return what `evaluate` measured of a model."""
    return accuracy.markdown(document, f"Accuracy of {model} under pruning")


def _systems(document: Document, model: str) -> str:
    versus = accuracy.differences_to(document, "flops", "sharp")
    page = accuracy.markdown(document, f"Every method on {model}, at equal FLOPs")
    return f"{page}\n## Difference to ShaRP\n\n{versus}\n"


def _ablation(document: Document, model: str) -> str:
    versus = accuracy.differences_to(document, "tokens", "sharp")
    page = accuracy.markdown(document, f"ShaRP's modules and readings on {model}")
    return f"{page}\n## Difference to ShaRP as it is\n\n{versus}\n"


def _positions(document: Document, model: str) -> str:
    return accuracy.markdown(document, f"Positions renumbered or kept on {model}, methods that prune before the LLM")


RENDERERS: dict[str, Callable[[Document, str], str]] = {
    "evaluate": accuracy_page,
    "systems": _systems,
    "positions": _positions,
    "ablation": _ablation,
    "phenomena": lambda document, model: phenomena.markdown(document),
    "front-door": lambda document, model: front_door.markdown(document),
}
