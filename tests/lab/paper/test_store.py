"""Answers on disk: what a killed process leaves behind, and what tells two answers apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab.paper.runs import MethodRun
from lab.paper.store import Store, answer_key
from sharp_demo.errors import InputError
from tests.lab.paper.questions import question


def test_half_a_line_is_no_answer_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path, "0")
    store.put({"key": "one", "answer": "A"})
    store.put({"key": "two", "answer": "B"})
    store.path.write_bytes(store.path.read_bytes()[:-7])
    again = Store(tmp_path, "0")
    assert [record["key"] for record in again] == ["one"]
    again.put({"key": "two", "answer": "C"})
    assert {record["key"]: record["answer"] for record in Store(tmp_path)} == {"one": "A", "two": "C"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put({"key": "one", "answer": "A"})
    with store.path.open("a") as stream:
        stream.write("{broken\n")
    with pytest.raises(InputError, match=r"answers\.jsonl, line 2"):
        Store(tmp_path)


def test_processes_share_a_folder_and_failures_are_no_answers(tmp_path: Path) -> None:
    first, second = Store(tmp_path, "shard-1-of-2"), Store(tmp_path, "shard-2-of-2")
    first.put({"key": "one", "answer": "A"})
    second.put({"key": "two", "error": "no luck"})
    together = Store(tmp_path)
    assert len(together) == 1
    assert together.get("two") is None
    assert "no luck" in second.path.read_text()


def test_what_an_answer_depends_on() -> None:
    asked, run = question(3), MethodRun("row", "sharp", 0.2)
    key = answer_key("model", None, asked, run)
    assert answer_key("model", None, replace(asked, video="/elsewhere/a.mp4"), replace(run, label="other")) == key
    others = [
        answer_key("other", None, asked, run),
        answer_key("model", 8, asked, run),
        *(
            answer_key("model", None, replace(asked, **{name: value}), run)
            for name, value in (("doc_id", 4), ("prompt", "?"), ("video", "b.mp4"), ("max_new_tokens", 9))
        ),
        *(
            answer_key("model", None, asked, replace(run, **{name: value}))  # type: ignore[arg-type]
            for name, value in (("method", "fastv"), ("retention", 0.3), ("match", "flops"), ("options", {"posc": 0}))
        ),
    ]
    assert len({key, *others}) == 1 + len(others)
