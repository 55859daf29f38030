"""Answers on disk, one JSON line each, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.paper.runs import MethodRun
from sharp_demo.errors import InputError

PATTERN = "answers*.jsonl"


@dataclass(frozen=True)
class Question:
    """One question of a task, as lmms-eval asks it.

    Attributes
    ----------
    task, split, doc_id : where it stands. video : path of its film. prompt : the whole text, options and all.
    max_new_tokens : of the answer.
    """

    task: str
    split: str
    doc_id: int
    video: str
    prompt: str
    max_new_tokens: int


def answer_key(model: str, frames: int | None, question: Question, run: MethodRun) -> str:
    """What an answer depends on, as one word. Of the video only the file's name counts: folders may move."""
    asked = {**asdict(question), "video": Path(question.video).name}
    content = json.dumps([model, frames, asked, run.identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Store:
    """All answers of a folder; new ones are appended to a file of this process's own.

    Parameters
    ----------
    folder : made where it is missing. part : names the file, so that several processes may share the folder.

    A process that was killed may leave half a line at the end of its file: that answer counts as not given. Any other
    damage raises InputError. Lines with an `error` are failures: there for whoever reads the log, and no answers.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / f"answers{'-' if part else ''}{part}.jsonl"
        self._answers: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob(PATTERN)):
            for record in read_lines(path):
                if "error" not in record:
                    self._answers[record["key"]] = record
        _cut_half_a_line(self.path)

    def get(self, key: str) -> dict[str, Any] | None:
        return self._answers.get(key)

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._answers.values())

    def put(self, record: dict[str, Any]) -> None:
        """Append a record, which has a `key`, and see it on disk before going on."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if "error" not in record:
            self._answers[record["key"]] = record


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; half a line at its end is left out. Raises InputError for any other damage."""
    *whole, _ = path.read_text("utf-8", errors="replace").split("\n")
    for number, line in enumerate(whole, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "key" not in record:
            raise InputError(f"{path}, line {number}: this is no answer; remove the line to ask once more")
        yield record


def _cut_half_a_line(path: Path) -> None:
    """Remove what a killed process left at the end of its file."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)
