"""The model card of an embedded checkpoint, written from its training log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from lab.world.questions import DESCRIPTIONS, GIST_KINDS, HARD_KINDS, NEEDLE_KINDS
from lab.world.recipe import Recipe
from sharp_demo.backbones.families import family_named

VISION = ("tower", "tokens")  # stages whose accuracy is by label, not by kind of question

CARD = Template("""# tiny-$family

A $class of $parameters parameters (weights in bfloat16, $megabytes MB), in the unmodified transformers architecture,
trained from random weights on synthetic clips. **It answers only questions about such clips.** Real footage needs a
real model, and the ranking of pruning methods on it says nothing about 7B models.

| accuracy (exact match of the whole sentence) | questions | all | early | middle | late evidence |
|---|---|---|---|---|---|
$totals

## Data
Films of eight seconds at 24 frames a second, made from a seed: three to five scenes, each with its own background
colour, and about 22 small objects (8 colours, 6 shapes) that each appear for half a second or one second in one of
7 x 7 cells; one letter a scene for half a second, now and then a flash or a rolling ball. What decides an answer is
one or two of the 784 visual tokens, among look-alikes. Training, validation and held-out clips come from disjoint
ranges of seeds; held-out clips are never trained on, and nothing was decided on them.

Every event lasts whole half seconds, so a sampler that takes $frames frames at bin centres sees it: one layout frame
($per_frame) is one half second. A reply begins with the word that decides ("Red is its color."), so that the first
decoding step shows whether the evidence survived the pruning; the rest of the sentence follows from it.

## Recipe
$tower_steps steps of $tower_images pictures for the vision tower alone, naming background, shape, colour and letter of
every patch; then frozen. $pool_clips training clips pass through it once, and their scenes are recombined into new
clips. In $token_steps steps projector or merger learns to keep the same labels in a visual token; from
random weights the language model learned to find objects by their colour and shape, but not to say them. The language
model then goes through these stages, many questions about a clip packed in one row:

| stage | steps | clips x questions | objects fed | empty tokens fed | blinded | learning rate |
|---|---|---|---|---|---|---|
$stages

In a blinded step the video is hidden from the text: from all but the last prompt token in every layer, or from all
text in the first two layers. Without this the first two layers fetch every answer and later cuts cost nothing.
Optimizers: Muon ($muon, tower $tower_muon) for matrices, AdamW ($adam) for the rest. Seed $seed.
Command: `python -m lab.world.train --backbone $family --seed $seed --threads $threads`. Trained on
$where in $minutes minutes (torch $torch, transformers $transformers, commits: $commits).
Log: `docs/results/train-tiny-$family.json`; how the recipe came about: `docs/results/training-notes.md`.

## Curves
Share of right first words on the fly, on fresh clips of the training range; tower: the last batch.

$curves

## Accuracy by kind of question
Exact match of the whole sentence, greedy; n questions. Shipped are the kinds with at least 90 % on validation clips.

| kind | asks for | shipped | validation | held-out |
|---|---|---|---|---|
$kinds

## Limits
- Knows some 90 words; any other question gets an answer that means nothing.
- Look-ups of a one-cell detail are what attention is good at: methods that score by attention win here by construction.
- Kinds that are not shipped were trained like the others and were not learned; they are listed, not hidden.
- One seed and one run. Pruning results were not looked at while the recipe was made.
""")


def write_card(
    folder: Path,
    family: str,
    recipe: Recipe,
    log: Sequence[dict[str, Any]],
    *,
    parameters: int,
    frames_per_token: int,
) -> None:
    """Write README.md into a trained checkpoint's folder; every number comes from `log`, the rest from the recipe.

    `frames_per_token` is the number of sampled frames that one layout frame covers.
    """
    start = next(row for row in log if row.get("event") == "start")
    validation = next(row for row in log if row.get("event") == "validation")
    heldout = next(row for row in log if row.get("event") == "heldout")
    shipped = set(validation["shipped_kinds"])
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    fields = start | {
        "family": family,
        "class": family_named(family).title,
        "parameters": f"{parameters / 1e6:.2f} M",
        "megabytes": f"{size / 1e6:.1f}",
        "totals": "\n".join(
            (
                _totals("held-out clips, shipped kinds", heldout["shipped"]),
                _totals("held-out clips, all kinds", heldout["all"]),
                _totals("validation clips, shipped kinds", validation["shipped"]),
            )
        ),
        "frames": 16 * frames_per_token,
        "per_frame": "a sampled frame" if frames_per_token == 1 else f"{frames_per_token} sampled frames",
        **{key: getattr(recipe, key) for key in ("tower_steps", "tower_images", "pool_clips", "token_steps")},
        **{key: getattr(recipe, key) for key in ("muon", "tower_muon", "adam")},
        "stages": "\n".join(
            _row(
                *(stage.name, stage.steps, f"{stage.clips} x {stage.questions}", _or_all(stage.objects)),
                *(_or_all(stage.background), f"{stage.blind:.0%}", f"{stage.rate[0]:g} to {stage.rate[1]:g}"),
            )
            for stage in recipe.stages
        ),
        "commits": ", ".join(dict.fromkeys(row["commit"] for row in log if "commit" in row)),
        "where": "a GPU" if start["device"] == "cuda" else "a CPU",
        "minutes": round(sum(row["seconds"] for row in _last_of_each_start(log)) / 60),
        "curves": _curves(log),
        "kinds": "\n".join(
            _row(
                *(kind, DESCRIPTIONS[kind], "yes" if kind in shipped else "no"),
                *(_share(result["by_kind"].get(kind)) for result in (validation, heldout["all"])),
            )
            for kind in (*NEEDLE_KINDS, *GIST_KINDS, *HARD_KINDS)
        ),
    }
    (folder / "README.md").write_text(CARD.substitute(fields), encoding="utf-8")


def _row(*values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def _or_all(value: int | None) -> str:
    return "all" if value is None else str(value)


def _share(result: dict[str, Any] | None) -> str:
    return f"{result['accuracy']:.1%} ({result['n']})" if result and result["n"] else "none asked"


def _totals(name: str, result: dict[str, Any]) -> str:
    places = (result["by_position"].get(place) for place in ("early", "middle", "late"))
    return _row(name, result["n"], f"{result['accuracy']:.1%}", *map(_share, places))


def _last_of_each_start(log: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    # Each resume restarts the clock: the last row before it falls back holds that stretch's time.
    for row, after in zip(log, [*log[1:], {"seconds": -1}], strict=True):
        if after["seconds"] < row["seconds"]:
            yield row


def _curves(log: Sequence[dict[str, Any]]) -> str:
    lines = []
    for part in ("vision", "language"):
        rows = [row for row in log if "stage" in row and (row["stage"] in VISION) == (part == "vision")]
        every = max(1, len(rows) // 12)
        rows = [row for i, row in enumerate(rows) if i % every == every - 1 or row is rows[-1]]
        names = sorted({name for row in rows for name in row["accuracy"]})
        lines += [_row("stage", "step", "loss", *names), "|" + "---|" * (3 + len(names))]
        lines += [
            _row(row["stage"], row["step"], row["loss"], *(row["accuracy"].get(name, "") for name in names))
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines).rstrip()
