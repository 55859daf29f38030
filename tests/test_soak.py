"""The soak's own judgement: what it calls flat, what it says of an hour too short, and visitors that fail."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("soak", ROOT / "tools/soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def hour(soak: ModuleType, **slopes: float) -> list[list[Any]]:
    """Rows of an hour, a minute apart, that fill for half of it and rise by `slopes` an hour after that."""
    flat = dict.fromkeys(soak.COLUMNS, 0.0) | {"outcome": "done", "shows": "?"}
    rows = []
    for minute in range(61):
        risen = {name: 100 + min(minute, 30) * 5 + slope * max(minute - 30, 0) / 60 for name, slope in slopes.items()}
        rows.append(list((flat | risen | {"at_s": minute * 60.0}).values()))
    return rows


def test_what_fills_and_then_stays_is_flat(soak):
    flat, lines = soak.verdict(hour(soak, resident_mb=soak.LIMITS["resident_mb"] - 1))
    assert flat
    assert [line.partition(":")[0] for line in lines] == list(soak.LIMITS)


@pytest.mark.parametrize("name", ["resident_mb", "descriptors", "threads", "files", "temporary", "page_mb"])
def test_what_goes_on_rising_is_not_flat(soak, name):
    flat, lines = soak.verdict(hour(soak, **{name: soak.LIMITS[name] + 1}))
    assert not flat
    assert [line.partition(":")[0] for line in lines if "NOT FLAT" in line] == [name]


def test_a_few_minutes_say_nothing(soak):
    flat, (line,) = soak.verdict(hour(soak)[:15])
    assert not flat
    assert "too short" in line
    assert not soak.verdict([])[0]


def test_a_page_that_could_not_be_looked_at_is_left_out(soak):
    rows = hour(soak, page_mb=0.0)
    for row in rows[40:50]:
        row[-2:] = [None, None]
    assert soak.verdict(rows)[0]
    document = {"segments": [{"seconds": 3600.0, "rows": rows}]}
    assert "The last segment is flat" in soak.markdown(document)


def test_a_visit_that_fails_is_counted(soak, capsys):
    class Gone:
        def upload(self, data: bytes) -> str:
            raise ConnectionResetError("gone")

    assert soak.visit(Gone(), [b"clip"], random.Random(0), 3) == "failed"
    assert "visitor 3: ConnectionResetError: gone" in capsys.readouterr().out
