"""Results of the examples that were computed before: `assets/stored`, made by tools/make_stored_results.py."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sharp_demo import strings
from sharp_demo.page.board import Board, Column
from sharp_demo.page.examples import Example
from sharp_demo.records import MethodSpec, ModelInfo, Request, Result
from sharp_demo.views.overlay import Sprite

DIGITS = 5  # significant digits of a stored score


@dataclass(frozen=True)
class Stored:
    """One finished comparison. `request.video` is a file name; `sampled` counts the frames the sprite holds."""

    request: Request
    model: ModelInfo
    results: tuple[Result, ...]
    sprite: Sprite
    sampled: int

    def board(self, example: Example) -> Board:
        """Return the page's state of this comparison, marked as stored."""
        columns = [
            Column(
                label=result.label,
                method=result.method,
                status="done",
                stage=strings.STORED,
                answer=result.answer,
                result=result,
            )
            for result in self.results
        ]
        return Board(
            phase="done",
            message=strings.stored(self.model.name, self.model.device, self.model.dtype),
            request=replace(self.request, video=str(example.video)),
            stored=True,
            evidence=example.evidence,
            columns=columns,
            model=self.model,
            sprite=self.sprite,
            sampled=self.sampled,
            layout=self.results[0].layout,
        )


def path_of(assets: Path, example: Example) -> Path:
    return assets / "stored" / f"{example.video.stem}.json.gz"


def write_stored(path: Path, stored: Stored) -> None:
    """Write one comparison; the same content gives the same bytes."""
    sprite = {**vars(stored.sprite), "jpeg": base64.b64encode(stored.sprite.jpeg).decode("ascii")}
    document = {
        "request": stored.request.to_dict(),
        "model": asdict(stored.model),
        "results": [_rounded(result.to_dict()) for result in stored.results],
        "sprite": sprite,
        "sampled": stored.sampled,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode("utf-8"), mtime=0))


def read_stored(path: Path) -> Stored | None:
    """Return a comparison that `write_stored` wrote; None where there is none."""
    if not path.is_file():
        return None
    document = json.loads(gzip.decompress(path.read_bytes()))
    request, sprite = document["request"], document["sprite"]
    return Stored(
        request=Request(**{**request, "methods": tuple(MethodSpec(**spec) for spec in request["methods"])}),
        model=ModelInfo(**document["model"]),
        results=tuple(map(Result.from_dict, document["results"])),
        sprite=Sprite(**{**sprite, "jpeg": base64.b64decode(sprite["jpeg"])}),
        sampled=document["sampled"],
    )


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    scores = {
        name: [None if value is None else float(f"{value:.{DIGITS}g}") for value in values]
        for name, values in result["scores"].items()
    }
    return {**result, "scores": scores}
