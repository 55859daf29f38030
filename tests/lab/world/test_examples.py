"""The example clips that are shipped: what their labels say about them still holds with the shipped models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sharp_demo.engine import Engine
from sharp_demo.records import MethodDone, MethodSpec, Request
from sharp_demo.settings import Settings

METHODS = ("vanilla", "fastv", "feather", "sharp")
EXAMPLES: list[dict[str, Any]] = json.loads((Settings().assets / "clips" / "examples.json").read_text("utf-8"))
CHOSEN = [one for one in EXAMPLES if one["note"].startswith("Chosen because the methods disagree on it. ")]
DRAWN = [one for one in EXAMPLES if one not in CHOSEN]


@pytest.fixture(scope="module", params=["tiny-llava-onevision", "tiny-qwen2-vl"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(Settings(model=request.param, device="cpu", dtype="float32", attention="sdpa"))


def right(engine: Engine, example: dict[str, Any], methods: tuple[str, ...] = METHODS) -> dict[str, bool]:
    """Whether each method's answer, with the page's defaults, is the one that the note tells to expect."""
    film, expected = Settings().assets / "clips" / example["video"], example["note"].split("Expected: ")[1]
    request = Request(str(film), example["question"], tuple(MethodSpec(name) for name in methods))
    done = [event.result for event in engine.stream(request) if isinstance(event, MethodDone)]
    return {result.method: result.answer.strip() == expected for result in done}


def test_there_are_eight_drawn_and_two_chosen_clips() -> None:
    assert (len(DRAWN), len(CHOSEN)) == (8, 2)
    assert len({one["video"] for one in EXAMPLES}) == 10


def test_vanilla_answers_every_drawn_example(engine: Engine) -> None:
    wrong = [one["question"] for one in DRAWN if not right(engine, one, ("vanilla",))["vanilla"]]
    assert not wrong


@pytest.mark.parametrize("example", CHOSEN, ids=[one["video"] for one in CHOSEN])
def test_methods_disagree_on_what_was_chosen_for_that(example: dict[str, Any]) -> None:
    """Chosen with LLaVA-OneVision, the model that the page starts with."""
    verdicts = right(Engine(Settings(model="tiny-llava-onevision", device="cpu", dtype="float32")), example)
    assert verdicts.pop("vanilla")
    assert len(set(verdicts.values())) == 2
