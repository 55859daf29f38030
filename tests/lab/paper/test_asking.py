"""Asking: every question once with every method, video by video; a failure is never an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.paper.asking import MOST_FAILURES, Asker, QuestionsFailed, by_video, in_shard, parse_shard
from lab.paper.runs import MethodRun, parse_runs, read_runs, write_runs
from lab.paper.store import Store
from sharp_demo.errors import InputError
from tests.lab.paper.questions import ToyEngine, fails, question, thin

RUNS = (MethodRun("vanilla", "vanilla"), MethodRun("a", "sharp", 0.2), MethodRun("b", "pdrop", 0.2, "flops"))


def asker(engine: ToyEngine, folder: Path) -> Asker:
    return Asker(lambda: engine, "toy-model", RUNS, Store(folder))


def test_all_methods_share_a_request_and_questions_of_a_video_follow_each_other(tmp_path: Path) -> None:
    engine = ToyEngine()
    asked = [question(0, "a.mp4"), question(1, "b.mp4"), question(2, "a.mp4")]
    one = asker(engine, tmp_path)
    assert one.ask(asked) == 9
    assert [request.video for request in engine.requests] == ["a.mp4"] * 4 + ["b.mp4"] * 2  # tokens, then FLOPs
    assert [spec.title for spec in engine.requests[0].methods] == ["vanilla", "a"]
    assert (engine.requests[1].match, engine.requests[1].methods[0].retention) == ("flops", 0.2)
    record = one.record(asked[1], RUNS[1])
    assert record["answer"] == "sharp on b.mp4"
    assert (record["tokens"]["kept"], record["kept_by_frame"], record["ms"]["first_token"]) == (2, [1, 1, 1, 1], 7)
    assert (record["frames"], record["distinct_frames"], record["run"]["method"]) == (4, 3, "sharp")


def test_a_second_call_asks_what_is_missing_only(tmp_path: Path) -> None:
    asker(ToyEngine(), tmp_path).ask([question(0)])
    engine = ToyEngine()
    assert asker(engine, tmp_path).ask([question(0), question(1)]) == 3
    assert {request.question for request in engine.requests} == {"what is in 1?"}
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 6


def test_a_failure_is_loud_after_the_others_were_asked_and_is_asked_again(tmp_path: Path) -> None:
    one = asker(ToyEngine(fails("internal", "sharp")), tmp_path)
    with pytest.raises(QuestionsFailed, match=r"^2 answers failed and nothing is scored; the first: toy 0, a: no luck"):
        one.ask([question(0), question(1)])
    assert len(one.store) == 4
    with pytest.raises(KeyError):
        one.record(question(0), RUNS[1])
    assert asker(ToyEngine(), tmp_path).ask([question(0), question(1)]) == 2


def test_maps_are_asked_for_on_their_own(tmp_path: Path) -> None:
    maps = MethodRun("attention", "vanilla", maps=True)
    engine = ToyEngine()
    one = Asker(lambda: engine, "toy-model", (RUNS[0], maps), Store(tmp_path))
    assert one.ask([question(0)]) == 2
    record = one.record(question(0), maps)
    assert record["attention"] == {"raw": [[0.25] * 4] * 2, "debiased": [[0.1] * 4] * 2}
    assert "answer" not in record
    assert one.ask([question(0)]) == 0


@pytest.mark.parametrize(("kind", "requests"), [("device_lost", 1), ("internal", MOST_FAILURES)])
def test_hopeless_runs_end_early(kind: str, requests: int, tmp_path: Path) -> None:
    engine = ToyEngine(fails(kind, "vanilla"))
    one = Asker(lambda: engine, "toy-model", RUNS[:1], Store(tmp_path))
    with pytest.raises(QuestionsFailed):
        one.ask([question(number) for number in range(MOST_FAILURES + 5)])
    assert len(engine.requests) == requests


def test_fewer_frames_for_want_of_memory_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(QuestionsFailed, match="saw 2 of 4 frames"):
        asker(ToyEngine(thin), tmp_path).ask([question(0)])


def test_a_refused_video_fails_every_method_and_anything_else_is_raised(tmp_path: Path) -> None:
    def refuse(request: object, result: object) -> None:
        raise InputError("no such film")

    with pytest.raises(QuestionsFailed, match=r"3 answers failed.*no such film"):
        asker(ToyEngine(refuse), tmp_path).ask([question(0)])

    def crash(request: object, result: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        asker(ToyEngine(crash), tmp_path).ask([question(1)])


def test_shards_part_the_videos(tmp_path: Path) -> None:
    asked = [question(number, f"{number % 9}.mp4") for number in range(27)]
    parts = [[one for one in asked if in_shard(one, shard, 3)] for shard in (1, 2, 3)]
    assert sorted(one.doc_id for part in parts for one in part) == list(range(27))
    assert sum(len({one.video for one in part}) for part in parts) == 9
    assert parse_shard("2/8") == (2, 8)
    for wrong in ("0/2", "3/2", "2", "a/b", "-1/2"):
        with pytest.raises(InputError, match="cannot read the shard"):
            parse_shard(wrong)
    assert [one.doc_id for one in by_video(asked)][:4] == [0, 9, 18, 1]


def test_runs_are_read_as_they_were_written_and_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    write_runs(path, RUNS)
    assert read_runs(path) == RUNS
    assert parse_runs("vanilla+sharp", 0.14, "flops")[1] == MethodRun("sharp", "sharp", 0.14, "flops")
    for text, retention, match in (("", 0.1, "tokens"), ("nonsense", 0.1, "tokens"), ("sharp", 2, "tokens")):
        with pytest.raises(InputError):
            parse_runs(text, retention, match)
    with pytest.raises(InputError, match="match is 'time'"):
        parse_runs("sharp", 0.1, "time")
    with pytest.raises(InputError, match="two methods are called 'sharp'"):
        parse_runs("sharp+sharp", 0.1, "tokens")
    path.write_text("{}")
    with pytest.raises(InputError, match="no method is named"):
        read_runs(path)
