"""Rounds and ratios: order, budget, the noise rule, and what an engine's run makes of them."""

from __future__ import annotations

import math
import pickle
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharp_demo.engine import Engine, rounds
from sharp_demo.engine.timing import MAX_SPREAD, MOST_ROUNDS, paired_ratio, speedup_of, spread, timing_rounds
from sharp_demo.records import (
    Decoded,
    Done,
    Latency,
    MethodDone,
    MethodFailed,
    MethodSpec,
    Request,
    Speedup,
    Started,
    Timing,
)
from sharp_demo.settings import Settings
from tests.pruning.prompts import scenes
from tests.video.clips import write_clip
from tests.views.handmade import make_result


class Clock:
    """A clock that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(budget_s: float, takes: dict[str, list[float]], most: int = 10) -> str:
    """The cases in the order they are measured; case c takes `takes[c][round]` seconds, the last one from then on."""
    clock, order = Clock(), ""
    for number, case in timing_rounds(list(takes), budget_s, most, clock):
        order += case
        clock.now += takes[case][min(number, len(takes[case]) - 1)]
    return order


def test_every_other_round_runs_backwards() -> None:
    assert run(math.inf, {"a": [1], "b": [1], "c": [1]}, most=4) == "abccbaabccba"


@pytest.mark.parametrize(
    ("budget_s", "order"),
    [(0.1, "ab"), (3.0, "ab"), (5.9, "ab"), (6.0, "abba"), (9.5, "abbaab"), (1e9, "abba" * 5)],
)
def test_a_round_begins_only_where_one_more_fits_but_the_first_always(budget_s: float, order: str) -> None:
    assert run(budget_s, {"a": [2], "b": [1]}) == order


def test_the_longest_round_says_whether_another_fits() -> None:
    assert run(10, {"a": [1, 5, 1]}) == "aa"  # 1 + 5 + 5 is more than 10, though 1 + 5 + 1 is not
    assert run(11, {"a": [1, 5, 1]}) == "aaa"


def test_rounds_end_at_a_number_that_is_plenty() -> None:
    assert sum(1 for _ in timing_rounds("ab", 1e9, clock=Clock())) == 2 * MOST_ROUNDS


def test_the_figure_is_the_median_of_ratios_within_a_round() -> None:
    ratio = paired_ratio([10, 20, 11, 12, 10], [5, 10, 5.5, 6, 4])
    assert (ratio.value, ratio.low, ratio.high, ratio.rounds, ratio.refused) == (2, 2, 2.5, 5, "")
    # A machine that gets ten times slower disturbs both sides of a round alike.
    drifting = [1.0, 3.0, 10.0]
    assert paired_ratio([3 * ms for ms in drifting], drifting).value == 3


def test_ratios_that_spread_are_no_figure() -> None:
    wild = paired_ratio([6, 20, 21, 9, 10], [10, 10, 10, 10, 10])
    assert spread([0.6, 2.0, 2.1, 0.9, 1.0]) == pytest.approx(1.1)
    assert MAX_SPREAD < 1.1
    assert (wild.value, wild.low, wild.high, wild.refused) == (None, 0.6, 2.1, "spread 110%")
    # One disturbed round of many leaves the figure, and shows in its range.
    calm = paired_ratio([20, 20, 20, 20, 6, 20, 20, 20], [10] * 8)
    assert (calm.value, calm.low, calm.high) == (2, 0.6, 2)


def test_too_few_rounds_are_refused_where_a_least_number_is_asked_for() -> None:
    assert paired_ratio([4], [2]).value == 2
    few = paired_ratio([4, 4], [2, 2], least=3)
    assert (few.value, few.refused) == (None, "2 rounds, at least 3 are needed")
    with pytest.raises(ValueError, match="not pairs"):
        paired_ratio([1], [1, 2])


def timed(method: str, prefills: list[float], before: float = 10.0, **over: Any) -> Any:
    result = make_result(method, **over)
    latency = replace(
        result.latency_ms, rounds=prefills, cpu_rounds=prefills[:0], before_prefill=before, first_token=before + 20
    )
    return replace(result, latency_ms=latency)


def test_the_first_tokens_ratio_has_the_video_in_it_and_a_ceiling() -> None:
    vanilla, sharp = timed("vanilla", [20, 20, 20]), timed("sharp", [5, 4, 5])
    gained = speedup_of(sharp, vanilla)
    assert gained is not None
    assert (gained.prefill.value, gained.prefill.high) == (4, 5)
    assert gained.first_token.value == (10 + 20) / (10 + 5)
    assert gained.ceiling == 30 / 10
    assert gained.prefill_cpu is None
    reads_the_tower = speedup_of(timed("sharp", [5, 4, 5], before=15.0), vanilla)
    assert reads_the_tower is not None
    assert reads_the_tower.ceiling == 30 / 15


def test_what_was_not_timed_together_is_not_compared() -> None:
    vanilla = timed("vanilla", [20, 20])
    assert speedup_of(timed("sharp", []), vanilla) is None
    assert speedup_of(timed("sharp", [5]), vanilla) is None
    assert speedup_of(timed("sharp", [5, 5], frames=2), vanilla) is None  # it saw fewer frames


def test_one_round_is_believed_where_processor_time_agrees() -> None:
    def gained(wall: float, cpu: float) -> Speedup:
        vanilla, sharp = timed("vanilla", [20.0]), timed("sharp", [20 / wall])
        vanilla.latency_ms.cpu_rounds.append(20.0)
        sharp.latency_ms.cpu_rounds.append(20 / cpu)
        found = speedup_of(sharp, vanilla)
        assert found is not None
        return found

    assert gained(2.5, 2.1).prefill.value == 2.5
    noisy = gained(5.0, 2.0)
    assert (noisy.prefill.value, noisy.prefill.low, noisy.prefill.high) == (None, 2.0, 5.0)
    first = noisy.first_token
    assert (first.value, first.low, first.high) == (None, (10 + 20) / (10 + 10), (10 + 20) / (10 + 4))
    assert noisy.prefill_cpu is not None
    assert noisy.prefill_cpu.value == 2.0


# -- in the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(cpu_settings: Settings, tiny_llava_folder: Path) -> Engine:
    return Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    video = str(write_clip(tmp_path / "a.mp4", "h264", list(scenes()), fps=4))
    methods = tuple(MethodSpec(name) for name in ("vanilla", "fastv", "sharp"))
    return Request(video, "What moves?", methods, frames=4, max_new_tokens=2, timing_s=0.3)


def latencies(events: list[Any]) -> dict[str, Latency]:
    return {result.label: result.latency_ms for result in events[-1].results}


def test_all_answers_stand_before_the_first_round(engine: Engine, asked: Request) -> None:
    events = list(engine.stream(asked))
    kinds = [type(event) for event in events]
    first = kinds.index(Timing)
    assert kinds.count(MethodDone) == 3
    assert MethodDone not in kinds[first:]
    assert set(kinds[first:]) == {Timing, Done}
    assert all(pickle.loads(pickle.dumps(event)) == event for event in events[first:])
    assert all(event.budget_s == 0.3 for event in events[first:-1])
    count = events[-2].round + 1
    for event in events:
        if isinstance(event, MethodDone):
            assert (event.result.latency_ms.rounds, event.result.speedup) == ([], None)
    for result in events[-1].results:
        latency = result.latency_ms
        assert len(latency.rounds) == len(latency.cpu_rounds) == count
        assert latency.prefill == sorted(latency.rounds)[(count - 1) // 2]
        assert (result.speedup is None) == (result.method == "vanilla")


def test_the_deployment_sets_the_budget_and_one_round_is_the_least(engine: Engine, asked: Request) -> None:
    events = list(engine.stream(replace(asked, timing_s=None)))
    assert {event.budget_s for event in events if isinstance(event, Timing)} == {engine.settings.timing_s}
    least = latencies(list(engine.stream(replace(asked, timing_s=1e-6))))
    assert [len(one.rounds) for one in least.values()] == [1, 1, 1]
    none = list(engine.stream(replace(asked, timing_s=0)))
    assert not any(isinstance(event, Timing) for event in none)
    assert all(one.rounds == [] and one.prefill > 0 for one in latencies(none).values())


def test_a_stop_during_the_rounds_keeps_the_answers_and_the_whole_rounds(engine: Engine, asked: Request) -> None:
    for after, whole in ((1, 0), (5, 1)):  # in the first round, and in the second
        events, heard = [], 0
        for event in engine.stream(replace(asked, timing_s=60), run_id="mine"):
            events.append(event)
            heard += isinstance(event, Timing)
            if heard == after and isinstance(event, Timing):
                assert engine.stop("mine")
        assert heard == after
        assert [result.status for result in events[-1].results] == ["done"] * 3
        assert [len(one.rounds) for one in latencies(events).values()] == [whole] * 3


def test_a_failure_during_the_rounds_keeps_the_answers(
    engine: Engine, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = rounds.timed_prefill, []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("no more")
        return plain(*args)

    monkeypatch.setattr(rounds, "timed_prefill", failing)
    events = list(engine.stream(replace(asked, timing_s=60)))
    assert not any(isinstance(event, MethodFailed) for event in events)
    assert [len(one.rounds) for one in latencies(events).values()] == [1, 1, 1]


def test_a_timed_prefill_leaves_no_cache_to_the_next(
    engine: Engine, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    plain = rounds.timed_prefill

    def watched(*args: Any) -> Any:
        assert not any(cache() is not None for cache in alive)
        done = plain(*args)
        alive.append(weakref.ref(done.cache))
        return done

    monkeypatch.setattr(rounds, "timed_prefill", watched)
    list(engine.stream(asked))
    assert len(alive) >= 3


@pytest.mark.parametrize("after", [Started, Decoded])
def test_a_stop_is_seen_between_stages(engine: Engine, asked: Request, after: type) -> None:
    events: list[Any] = []
    for event in engine.stream(asked, run_id="mine"):
        events.append(event)
        if isinstance(event, after):
            assert engine.stop("mine")
    assert isinstance(events[-2], after)
    assert events[-1] == Done((), ())
