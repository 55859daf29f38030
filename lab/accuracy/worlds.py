"""The worlds that are asked about: kinds of question, clips by number, and the same clips as films."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.tabletop import generate as tabletop
from lab.tabletop.questions import ALL_KINDS
from lab.tabletop.studio import FILM_SIDE, Studio
from lab.world import generate as drawn
from lab.world.draw import SIDE
from lab.world.questions import KINDS
from lab.world.records import Split, SyntheticClip
from sharp_demo.backbones.files import read_json

KINDS_OF: dict[str, tuple[str, ...]] = {"drawn": tuple(KINDS), "tabletop": ALL_KINDS}


@dataclass(frozen=True)
class World:
    """Where the clips of an evaluation come from.

    Attributes
    ----------
    name : a key of KINDS_OF.
    side : of its films, in pixels.
    clip : (number, split, side of the frames, number of frames) to a clip.
    film : (number, path, split) writes the clip as a film and returns the path.
    """

    name: str
    side: int
    clip: Callable[[int, Split, int, int], SyntheticClip]
    film: Callable[[int, Path, Split], Path]


def open_world(name: str) -> World:
    """The world of that name. Raises InputError where nothing can render it."""
    if name == "drawn":
        return World(name, SIDE, drawn.make_clip, drawn.render_video)
    studio = Studio()
    return World(
        name,
        FILM_SIDE,
        lambda number, split, size, frames: tabletop.make_clip(studio, number, split, size, frames),
        lambda number, path, split: tabletop.render_video(studio, number, path, split),
    )


def world_of(folder: Path) -> str:
    """The world that a checkpoint's card says it was trained on; the drawn one where it says nothing."""
    return str(read_json(folder / "card.json").get("world", "drawn"))


def shipped_kinds(folder: Path, world: str) -> tuple[str, ...]:
    """The kinds of question of a world that a checkpoint's card lists; all of them where it lists none of these."""
    kinds = read_json(folder / "card.json").get("kinds", []) if world_of(folder) == world else []
    return tuple(kinds) or KINDS_OF[world]
