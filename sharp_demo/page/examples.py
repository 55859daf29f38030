"""The example clips of the page, and how to tell one by its content."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sharp_demo.settings import Settings
from sharp_demo.views.evidence import Evidence


@dataclass(frozen=True)
class Example:
    """One example clip with its question and a line on what to look for."""

    video: Path
    question: str
    note: str
    evidence: tuple[Evidence, ...] = ()


def load_examples(settings: Settings) -> list[Example]:
    """Return the examples listed in `assets/clips/examples.json` whose files are there."""
    folder = settings.assets / "clips"
    listing = folder / "examples.json"
    if not listing.is_file():
        return []
    rows = json.loads(listing.read_text("utf-8"))
    examples = [
        Example(
            folder / row["video"],
            row["question"],
            row.get("note", ""),
            tuple(
                Evidence(**{**one, "box": tuple(one["box"]) if "box" in one else None})
                for one in row.get("evidence", ())
            ),
        )
        for row in rows
    ]
    return [example for example in examples if example.video.is_file()]


def example_of(examples: Sequence[Example], video: str) -> Example | None:
    """Return the example whose film this file is, byte for byte; None for an upload, or one that is gone by now."""
    if not Path(video).is_file():
        return None
    return next((one for one in examples if filecmp.cmp(one.video, video, shallow=False)), None)


def evidence_for(examples: Sequence[Example], video: str, question: str) -> tuple[Evidence, ...]:
    """Return where the evidence is when this very clip and question are an example's; else nothing is known."""
    example = example_of([one for one in examples if one.question == question], video)
    return example.evidence if example else ()
