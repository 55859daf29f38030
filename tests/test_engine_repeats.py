"""Repeated prefills of one request: one cache at a time, and a stop between two of them or between stages."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharp_demo.engine import Engine, generation
from sharp_demo.records import Decoded, Done, MethodDone, MethodSpec, Request, Started
from sharp_demo.settings import Settings
from tests.pruning.prompts import scenes
from tests.video.clips import write_clip


@pytest.fixture
def engine(cpu_settings: Settings, tiny_llava_folder: Path) -> Engine:
    return Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    video = str(write_clip(tmp_path / "a.mp4", "h264", list(scenes()), fps=4))
    return Request(video, "What moves?", methods=(MethodSpec("vanilla"),), frames=4, max_new_tokens=2, prefills=3)


def test_a_repeat_drops_the_cache_before_it_and_a_stop_ends_the_repeats(
    engine: Engine, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    stop_after: list[int] = []
    plain = generation.prefill

    def watched(*args: Any) -> Any:
        assert not any(cache() is not None for cache in alive)
        logits, cache, positions = plain(*args)
        alive.append(weakref.ref(cache))
        if len(alive) in stop_after:
            assert engine.stop("mine")
        return logits, cache, positions

    for _ in engine.stream(replace(asked, prefills=1)):  # the model is loaded and warm
        pass
    monkeypatch.setattr(generation, "prefill", watched)
    list(engine.stream(asked, run_id="mine"))
    assert len(alive) == 3
    stop_after.append(4)
    (done,) = (event for event in engine.stream(asked, run_id="mine") if isinstance(event, MethodDone))
    assert len(alive) == 4
    assert done.result.status == "stopped"


@pytest.mark.parametrize("after", [Started, Decoded])
def test_a_stop_is_seen_between_stages(engine: Engine, asked: Request, after: type) -> None:
    events: list[Any] = []
    for event in engine.stream(asked, run_id="mine"):
        events.append(event)
        if isinstance(event, after):
            assert engine.stop("mine")
    assert isinstance(events[-2], after)
    assert events[-1] == Done((), ())
