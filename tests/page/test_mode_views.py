"""What the modes' tables say, event by event, without a browser."""

from __future__ import annotations

import pytest

from sharp_demo import strings
from sharp_demo.page.board import Board
from sharp_demo.page.tabs.ablate import ablation_request, ablation_table
from sharp_demo.page.tabs.sweep import lines_of, sweep_request, sweep_table
from sharp_demo.records import Done, MethodDone, MethodFailed, MethodSpec, Request
from tests.views.handmade import make_result

REQUEST = Request("clip.mp4", "q", (MethodSpec("vanilla", {}, "Vanilla"), MethodSpec("sharp", {}, "ShaRP")))
FULL = MethodFailed("Vanilla", "out_of_memory", "Too many frames.")


def running(request: Request) -> Board:
    board = Board.waiting(request)
    board.start()
    return board


def ablation() -> Board:
    return running(ablation_request(REQUEST, "one", {}))


def answers(board: Board) -> dict[str, dict[str, str]]:
    return {row[0]["text"]: row[5] for row in ablation_table(board)["rows"]}


def swept(board: Board) -> dict:
    return sweep_table(board, lines_of(board))


def cells(board: Board) -> list[str]:
    return [cell["text"] for cell in swept(board)["rows"][0][1:]]


def test_without_vanilla_no_answer_of_an_ablation_is_the_same():
    board = ablation()
    board.apply(FULL)
    board.apply(MethodDone("All on", make_result(label="All on")))
    shown = answers(board)
    assert (shown["Vanilla"]["text"], shown["Vanilla"]["title"]) == (strings.FAILED, "Too many frames.")
    assert (shown["All on"]["text"], shown["All on"]["kind"]) == ("A red circle.", "open")
    assert shown["PosC + RegD"]["text"] == "…", "it is still to come"


def test_a_stopped_ablation_says_what_was_stopped_and_what_never_ran():
    board = ablation()
    board.apply(MethodDone("Vanilla", make_result("vanilla")))
    board.apply(MethodDone("All on", make_result(label="All on", status="stopped")))
    board.apply(Done((), ()))
    shown = answers(board)
    assert shown["Vanilla"]["kind"] == "same"
    assert shown["All on"]["text"] == strings.STOPPED
    assert shown["PosC + RegD"]["text"] == strings.NOT_RUN_CELL


def test_a_sweep_says_what_failed_was_stopped_or_never_ran():
    board = running(sweep_request(REQUEST, (1.0, 0.5, 0.2, 0.1)))
    board.apply(MethodDone("Vanilla", make_result("vanilla")))
    board.apply(MethodFailed("ShaRP at 50 %", "internal", "Something broke."))
    board.apply(MethodDone("ShaRP at 20 %", make_result(label="ShaRP at 20 %", status="stopped")))
    assert cells(board) == ["✓", strings.FAILED, strings.STOPPED, "…"]
    board.apply(Done((), ()))
    assert cells(board) == ["✓", strings.FAILED, strings.STOPPED, strings.NOT_RUN_CELL]


def test_a_sweep_without_vanilla_has_answers_and_no_verdict():
    board = running(sweep_request(REQUEST, (1.0, 0.5)))
    board.apply(FULL)
    board.apply(MethodDone("ShaRP at 50 %", make_result(label="ShaRP at 50 %")))
    board.apply(Done((), ()))
    assert cells(board) == [strings.FAILED, "A red circle."]
    assert swept(board)["rows"][0][0]["note"] == strings.NO_VERDICT


@pytest.mark.parametrize("status", ["done", "stopped"])
def test_the_walk_tells_a_stopped_answer_as_stopped(status):
    text = strings.walk_end(make_result(status=status), make_result("vanilla"), same=True)
    assert ("Stopped while it was answering" in text) == (status == "stopped")
    assert ("says the same" in text) == (status == "done")
