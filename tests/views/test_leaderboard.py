"""The leaderboard: the paper's points hollow, ours filled, and a note where there are none of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.paper.leaderboard import pack_leaderboard
from sharp_demo import strings
from sharp_demo.settings import Settings
from sharp_demo.views.leaderboard import Point, leaderboard_chart, leaderboard_note, load_leaderboard

ROOT = Path(__file__).resolve().parents[2]
MODEL = "llava-onevision-qwen2-7b-ov-hf"


def document(rehearsal: bool, model: str = f"llava-hf/{MODEL}") -> dict[str, Any]:
    row = {
        "label": "sharp-20", "method": "sharp", "kept": 0.235, "average": 0.581, "tflops": 9.3, "first_token_ms": 900.0,
        "scores": {"mvbench": {"n": 40}, "videomme": {"n": 27}},
    }  # fmt: skip
    return {"table": "table1", "model": model, "rehearsal": rehearsal, "rows": [row]}


def test_stored_points_are_the_printed_ones_and_those_of_the_results() -> None:
    points = load_leaderboard(Settings().assets)
    paper = [point for point in points if point.source == "paper"]
    assert {point.model for point in paper} == {MODEL, "Qwen2-VL-7B-Instruct"}
    assert next(point for point in paper if point.label == "sharp, 14.0%") == Point(
        MODEL, "sharp", "sharp, 14.0%", "paper", 57.4, 6.03, None, None
    )
    rehearsed = {path.stem for path in (ROOT / "docs/results/paper").glob("table[12]-tiny-*.json")}
    assert {point.model for point in points if point.source == "rehearsal"} == {
        stem.partition("-")[2] for stem in rehearsed
    }


def test_marks_are_hollow_or_filled_and_times_are_drawn_where_known() -> None:
    points = [Point(**values) for values in json.loads(json.dumps(pack_leaderboard([document(rehearsal=False)])))]
    chart = leaderboard_chart(points, MODEL, "tflops")
    marks = {trace.name: (trace.marker.symbol, len(trace.x)) for trace in chart.data}
    assert marks["ShaRP, the paper"] == ("circle-open", 4)
    assert marks["ShaRP, ours"] == ("circle", 1)
    (timed,) = leaderboard_chart(points, MODEL, "first_token_ms").data
    assert (timed.x, timed.y, timed.text) == ((900.0,), (58.1,), ("sharp-20, 23.5%",))
    assert "67 questions" in leaderboard_note(points, MODEL)


def test_it_says_that_nobody_measured_or_that_it_was_a_rehearsal() -> None:
    points = [Point(**values) for values in pack_leaderboard([document(rehearsal=True, model="tiny")])]
    assert leaderboard_note(points, MODEL) == strings.BOARD_EMPTY
    assert leaderboard_note(points, "tiny").startswith("A rehearsal: 67 questions")
    assert not pack_leaderboard([{**document(rehearsal=False), "table": "figure4"}])[len(pack_leaderboard([])) :]


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert load_leaderboard(tmp_path) == []
