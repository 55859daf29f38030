"""Render the example clips from held-out seeds: `python tools/make_example_clips.py [FOLDER]` (default assets/clips).

The first seed of the range whose clip asks a question of the kind, with its evidence in the third of the clip named
here, is taken: no method and no model is asked. Writes FOLDER/<name>.mp4 and FOLDER/examples.json.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sharp_demo.clips.generate import clip_questions, render_video  # noqa: E402
from sharp_demo.clips.records import INTERVALS, Question  # noqa: E402

FIRST_SEED = 500_000  # of the held-out split, far from the clips that accuracy is measured on
EXAMPLES = (
    ("background-of-an-object", "bg_of", "early"),
    ("color-in-a-scene", "color_in", "middle"),
    ("shape-in-a-scene", "shape_in", "late"),
    ("letter-in-a-scene", "letter_in", "early"),
    ("background-of-a-letter", "bg_letter", "middle"),
    ("brief-flash", "flash", "late"),
    ("where-it-flashed", "bg_flash", "early"),
    ("last-scene", "last_bg", "late"),
)


def note(question: Question) -> str:
    """What to watch for, and the expected answer."""
    tokens = len(question.evidence_cells)
    first, last = question.evidence_frames
    seen = f"{tokens} of {INTERVALS * 49} tokens" if tokens else "a whole scene"
    return f"Evidence: {seen}, {first / 2:g} to {(last + 1) / 2:g} s. Expected: {question.answer}"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.mp4"):
        old.unlink()
    rows, seeds = [], count(FIRST_SEED)
    for name, kind, position in EXAMPLES:
        seed, question = next(
            (seed, question)
            for seed in seeds
            for question in clip_questions(seed, "heldout")
            if (question.kind, question.position) == (kind, position)
        )
        render_video(seed, folder / f"{name}.mp4")
        rows.append({"video": f"{name}.mp4", "question": question.text, "note": note(question)})
    (folder / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "clips")
