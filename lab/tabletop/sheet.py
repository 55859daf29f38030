"""A contact sheet of rendered clips: `python -m lab.tabletop.sheet sheet.png`, six moments of each clip in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from lab.tabletop.generate import clip_plans
from lab.tabletop.studio import MODEL_SIDE, Studio
from lab.world.records import INTERVALS, Split

MOMENTS = np.linspace(0, INTERVALS - 1, 6).astype(int)
COLUMNS = 2  # clips side by side


def contact_sheet(studio: Studio, seeds: range, split: Split = "validation") -> np.ndarray:
    """Rows of COLUMNS clips, six moments each, uint8 [H, W, 3]."""
    strips = []
    for seed in seeds:
        frames = np.concatenate([studio.shoot(plan, MODEL_SIDE).frames for plan in clip_plans(seed, split)])
        strips.append(np.pad(np.concatenate(frames[MOMENTS], 1), ((2, 2), (2, 2), (0, 0))))
    return np.concatenate([np.concatenate(strips[i : i + COLUMNS], 1) for i in range(0, len(strips), COLUMNS)])


def main(
    path: Annotated[Path, typer.Argument(help="the picture to write")],
    count: Annotated[int, typer.Option(help="clips, an even number")] = 24,
    first: Annotated[int, typer.Option(help="number of the first clip")] = 0,
    backend: Annotated[str, typer.Option(help="egl or osmesa")] = "egl",
) -> None:
    """Render the contact sheet."""
    Image.fromarray(contact_sheet(Studio(backend), range(first, first + count))).save(path)


if __name__ == "__main__":
    typer.run(main)
