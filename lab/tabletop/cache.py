"""Training clips rendered once: `python -m lab.tabletop.cache --count 1000`, into a folder that git ignores.

What is there already is kept, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from lab.tabletop.generate import clip_plans
from lab.tabletop.plan import Plan, plan_crowd
from lab.tabletop.studio import Studio, Take
from lab.tabletop.truth import Truth
from lab.world.generate import clip_seed

FOLDER = Path("runs/tabletop")
CROWDED = 4  # with the scene's number, the seed of a crowd


def cached_path(folder: Path, split: str, seed: int) -> Path:
    """Where a clip's scenes are kept."""
    return folder / split / f"{seed:06}.npz"


def save_takes(path: Path, takes: Sequence[Take]) -> None:
    """Write filmed scenes; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    truth = json.dumps([take.truth.to_json() for take in takes])
    with part.open("wb") as file:
        np.savez(
            file,
            frames=np.concatenate([take.frames for take in takes]),
            patches=np.concatenate([take.patches for take in takes]),
            truth=np.array(truth),
        )
    os.replace(part, path)


def load_takes(path: Path) -> list[Take]:
    """The scenes `save_takes` wrote."""
    with np.load(path) as stored:
        frames, patches = stored["frames"], stored["patches"]
        scenes = [Truth.from_json(values) for values in json.loads(str(stored["truth"]))]
    per_interval = len(frames) // len(patches)
    takes, start = [], 0
    for truth in scenes:
        end = start + truth.length
        takes.append(Take(frames[start * per_interval : end * per_interval], truth, patches[start:end]))
        start = end
    return takes


def _plans(seed: int, split: str) -> tuple[Plan, ...]:
    if split == "crowd":
        return (plan_crowd(np.random.default_rng((clip_seed("train", seed), CROWDED))),)
    return clip_plans(seed, split)  # type: ignore[arg-type]  # refuses an unknown one


app = typer.Typer(add_completion=False)


@app.command()
def main(
    count: Annotated[int, typer.Option(help="clips, from number `first` on")],
    first: Annotated[int, typer.Option(help="number of the first clip")] = 0,
    every: Annotated[int, typer.Option(help="render every n-th clip, for several processes")] = 1,
    split: Annotated[str, typer.Option(help="train, validation or heldout; or crowd, scenes for the tower")] = "train",
    folder: Annotated[Path, typer.Option(help="where the clips are kept")] = FOLDER,
    backend: Annotated[str, typer.Option(help="egl or osmesa")] = "egl",
) -> None:
    """Render clips as the embedded models see them, with their truth and patch labels."""
    studio, started = Studio(backend), time.monotonic()
    for seed in range(first, first + count, every):
        path = cached_path(folder, split, seed)
        if path.is_file():
            continue
        save_takes(path, [studio.shoot(plan) for plan in _plans(seed, split)])
        if seed % 20 < every:
            print(f"{seed + 1 - first} of {count} clips, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    app()
