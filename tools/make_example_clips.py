"""Render the example clips from held-out seeds: `python tools/make_example_clips.py [FOLDER]` (default assets/clips).

The first seed of the range whose clip asks a question of the kind, with its evidence in the third of the clip named
here, is taken: no method and no model is asked. Two more are chosen because the pruning methods disagree on them, with
the page's defaults, and are labelled so. Writes FOLDER/<name>.mp4 and FOLDER/examples.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from lab.world.generate import clip_questions, make_clip, render_video  # noqa: E402
from lab.world.records import GRID, INTERVALS, Question  # noqa: E402
from sharp_demo.backbones.features import encode_video, model_inputs  # noqa: E402
from sharp_demo.backbones.load import Backbone, load  # noqa: E402
from sharp_demo.engine import Engine  # noqa: E402
from sharp_demo.engine.generation import prefill  # noqa: E402
from sharp_demo.pruning.registry import make_method  # noqa: E402
from sharp_demo.pruning.sharp.bias import BiasCache  # noqa: E402
from sharp_demo.records import MethodDone, MethodSpec, Request  # noqa: E402
from sharp_demo.settings import Settings  # noqa: E402

FIRST_SEED = 500_000  # of the held-out split, far from the clips that accuracy is measured on
FIRST_CHOSEN_SEED = 600_000
METHODS = ("vanilla", "fastv", "feather", "sharp")
RETENTION = 0.2  # the page's default
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
    whole = "the whole clip" if question.position == "all" else "a whole scene"
    seen = f"{tokens} of {INTERVALS * 49} tokens" if tokens else whole
    return f"Evidence: {seen}, {first / 2:g} to {(last + 1) / 2:g} s. Expected: {question.answer}"


def evidence(question: Question) -> list[dict[str, Any]]:
    """Where the clip shows the answer: stretches in seconds, and the box of each token that matters."""
    half = 0.5  # seconds an interval lasts
    if not question.evidence_cells:
        first, last = question.evidence_frames
        return [{"start": first * half, "end": (last + 1) * half}]
    return [
        {
            "start": interval * half,
            "end": (interval + 1) * half,
            "box": [round(share / GRID, 4) for share in (col, row, col + 1, row + 1)],
        }
        for interval, row, col in question.evidence_cells
    ]


@torch.inference_mode()
def answers(backbone: Backbone, cache: BiasCache, seed: int, question: Question) -> list[bool]:
    """Whether each of `METHODS` begins its answer with the deciding word, on the clip's own frames."""
    frames = make_clip(seed).frames
    prompt = backbone.processor.prompt(question.text, frames=len(frames))
    inputs = model_inputs(prompt, encode_video(backbone.model, backbone.processor.video.pixels(frames)))
    right = []
    for name in METHODS:
        with make_method(name, RETENTION)(backbone.model, backbone.processor, cache):
            logits, _, _ = prefill(backbone.model, inputs)
        first = backbone.processor.decode([int(logits.argmax())])
        right.append(bool(first) and question.answer.lower().startswith(first.lower()))
    return right


def through_the_page(film: Path, question: Question, settings: Settings) -> list[bool]:
    """The same through the front door, by the whole answer."""
    request = Request(str(film), question.text, tuple(MethodSpec(name) for name in METHODS), RETENTION)
    stream = Engine(settings).stream(request)
    done = {event.result.method: event.result.answer for event in stream if isinstance(event, MethodDone)}
    return [question.correct(done[name]) for name in METHODS]


def disagreements(settings: Settings) -> Iterator[tuple[int, Question, list[bool]]]:
    """Held-out questions that vanilla answers and some, but not all, of the others do not; one a clip."""
    assert settings.model is not None
    backbone, cache = load(settings.model, settings), BiasCache()
    kinds = json.loads((backbone.folder / "card.json").read_text("utf-8"))["kinds"]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in count(FIRST_CHOSEN_SEED):
            for question in clip_questions(seed, "heldout"):
                if question.kind not in kinds or not differ(answers(backbone, cache, seed, question)):
                    continue
                right = through_the_page(render_video(seed, Path(scratch) / "film.mp4"), question, settings)
                if differ(right):
                    yield seed, question, right
                    break


def differ(right: list[bool]) -> bool:
    """Vanilla is right, and the pruned methods are not of one mind."""
    return right[0] and any(right[1:]) and not all(right[1:])


def listed(name: str, question: Question, label: str = "") -> dict[str, Any]:
    """The clip's entry of examples.json."""
    return {
        "video": f"{name}.mp4",
        "question": question.text,
        "note": label + note(question),
        "evidence": evidence(question),
    }


def chosen(folder: Path) -> list[dict[str, Any]]:
    """Two clips on which different methods lose the answer."""
    rows: list[dict[str, Any]] = []
    seen: list[list[bool]] = []
    for seed, question, right in disagreements(Settings(device="cpu", model="tiny-llava-onevision")):
        print(seed, question.kind, dict(zip(METHODS, right, strict=True)), flush=True)
        if right in seen:
            continue
        seen.append(right)
        name = f"chosen-{len(seen)}"
        render_video(seed, folder / f"{name}.mp4")
        rows.append(listed(name, question, "Chosen because the methods disagree on it. "))
        if len(rows) == 2:
            break
    return rows


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # the old clips stay until all new ones are there
        write_all(Path(scratch))
        for old in folder.glob("*.mp4"):
            old.unlink()
        for made in Path(scratch).iterdir():
            made.replace(folder / made.name)


def write_all(folder: Path) -> None:
    """Every film and examples.json."""
    rows, seeds = [], count(FIRST_SEED)
    for name, kind, position in EXAMPLES:
        seed, question = next(
            (seed, question)
            for seed in seeds
            for question in clip_questions(seed, "heldout")
            if (question.kind, question.position) == (kind, position)
        )
        render_video(seed, folder / f"{name}.mp4")
        rows.append(listed(name, question))
    rows = chosen(folder) + rows  # the page opens with the first: one that tells the methods apart
    (folder / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "clips")
