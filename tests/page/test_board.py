"""What the page shows after each event, without a browser."""

import base64
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sharp_demo import strings
from sharp_demo.errors import InputError, MethodError, VideoError
from sharp_demo.page.board import Board, token_view
from sharp_demo.page.controls import KNOBS, knob_field, method_specs
from sharp_demo.page.examples import evidence_for, load_examples
from sharp_demo.page.inputs import Inputs
from sharp_demo.pruning.registry import list_methods
from sharp_demo.records import (
    Decoded,
    Done,
    Encoded,
    MethodDone,
    MethodFailed,
    MethodSpec,
    MethodStarted,
    ModelInfo,
    Request,
    Started,
    Text,
)
from sharp_demo.settings import Settings
from sharp_demo.web.server import is_foreign
from tests.views.handmade import make_result

SPECS = tuple(MethodSpec(name, {}, name.title()) for name in ("vanilla", "fastv", "sharp"))
DEFAULTS = {f"{method}.{name}": knob_field(method, name).default for method, name in KNOBS}
ENGINE = SimpleNamespace(models=lambda: ["tiny"], default_model="tiny", example_model=None)


def model(**over) -> ModelInfo:
    facts = {"name": "tiny", "family": "llava-onevision", "trained": True, "note": "Only synthetic clips."}
    device = {"device": "cpu", "device_reason": "", "dtype": "float32", "attention_backend": "sdpa"}
    return ModelInfo(**{**facts, **device, "attention_reason": "", "parameters": 1, **over})


def started(**over) -> Board:
    request = Request("clip.mp4", "q", SPECS)
    board = Board.waiting(request)
    board.apply(Started(request, model(**over), tuple(spec.title for spec in SPECS)))
    return board


def columns(board: Board) -> dict[str, dict]:
    return {column["label"]: column for column in board.value()["columns"]}


def test_one_failed_method_does_not_hide_the_others():
    board = started()
    board.apply(MethodStarted("Vanilla", "vanilla", {}))
    board.apply(Text("Vanilla", "A red"))
    assert columns(board)["Vanilla"]["answer"] == "A red"
    assert columns(board)["Vanilla"]["status"] == "running"
    assert board.apply(MethodDone("Vanilla", make_result("vanilla")))
    board.apply(MethodFailed("Fastv", "out_of_memory", "Too many frames."))
    board.apply(MethodDone("Sharp", make_result("sharp")))
    board.apply(Done((), ()))
    shown = columns(board)
    assert [shown[label]["status"] for label in ("Vanilla", "Fastv", "Sharp")] == ["done", "error", "done"]
    assert shown["Fastv"]["error"] == "Too many frames."
    assert board.phase == "done"
    assert "2 answers" in board.message
    assert "1 failed" in board.message


def test_stopped_run_leaves_no_column_without_a_label():
    board = started()
    board.apply(MethodDone("Vanilla", make_result("vanilla", status="stopped")))
    board.apply(Done((), ()))
    assert [column["status"] for column in board.value()["columns"]] == ["stopped"] * 3
    assert columns(board)["Sharp"]["stage"] == strings.NOT_RUN
    assert board.phase == "stopped"


def test_the_line_of_a_run_says_which_method_runs_and_what_failed():
    board = started()
    board.apply(MethodStarted("Vanilla", "vanilla", {}))
    assert board.status()["message"] == strings.step(1, 3, "Vanilla")
    assert board.message == strings.STARTING, "the columns say by themselves which one runs"
    board.apply(MethodDone("Vanilla", make_result("vanilla")))
    board.apply(MethodStarted("Fastv", "fastv", {}))
    assert (board.status()["message"], board.status()["done"]) == (strings.step(2, 3, "Fastv"), 1)
    board.apply(MethodFailed("Fastv", "out_of_memory", "Too many frames."))
    board.apply(MethodDone("Sharp", make_result("sharp")))
    board.apply(Done((), ()))
    assert board.status()["message"] == f"{board.message} Too many frames."
    assert (board.status()["done"], board.status()["of"]) == (3, 3)


@pytest.mark.parametrize(
    ("facts", "note"),
    [({}, "Only synthetic clips."), ({"trained": False, "note": ""}, strings.UNTRAINED), ({"note": ""}, "")],
)
def test_limits_of_the_model_stand_at_every_answer(facts, note):
    assert [column["note"] for column in started(**facts).value()["columns"]] == [note] * 3


def test_masks_reach_the_page_with_the_kept_counts():
    result = make_result("sharp")
    view = token_view(result)
    mask = np.frombuffer(base64.b64decode(view["mask"]), np.uint8)
    assert len(mask) == result.layout.tokens
    assert (mask > 0).sum() == result.tokens.kept
    assert (mask.reshape(result.layout.frames, -1) > 0).sum(1).tolist() == [len(kept) for kept in result.kept]
    for kind, values in result.scores.items():
        sent = np.frombuffer(base64.b64decode(view["scores"][kind]["values"]), "<f4")
        assert sent.tolist() == pytest.approx(values)


def test_absorbed_tokens_and_unscored_slots_reach_the_page():
    result = make_result("sharp", merged_into=[[3, 7], [12, 7]])
    result.scores["raw"][5] = None
    view = token_view(result)
    assert np.frombuffer(base64.b64decode(view["absorbed"]), "<i4").tolist() == [3, 7, 12, 7]
    assert np.isnan(np.frombuffer(base64.b64decode(view["scores"]["raw"]["values"]), "<f4")).nonzero()[0].tolist() == [
        5
    ]


def test_a_role_nobody_told_us_of_reaches_the_page_by_its_name():
    result = make_result("sharp")
    result.role[0] = ["from-the-future"] * len(result.kept[0])
    assert "from-the-future" in token_view(result)["roles"]


@pytest.mark.parametrize(
    ("answer", "probability", "kind", "says"),
    [
        ("A red circle.", 0.9, "same", "same answer as vanilla"),
        ("A red circle", 0.6, "same", "30 points less sure"),
        ("A red circle", 0.91, "same", "1 point more sure"),
        ("A blue circle.", 0.9, "different", "differs"),
    ],
)
def test_agreement_and_sureness_stand_beside_the_answer(answer, probability, kind, says):
    board = started()
    board.apply(MethodDone("Sharp", make_result("sharp", answer=answer, first_token_prob=probability)))
    assert columns(board)["Sharp"]["badge"] is None, "nothing to compare with yet"
    board.apply(MethodDone("Vanilla", make_result("vanilla")))
    shown = columns(board)
    assert shown["Vanilla"]["badge"] is None
    assert shown["Sharp"]["badge"]["kind"] == kind
    assert says in shown["Sharp"]["badge"]["text"]
    assert (shown["Sharp"]["sure"]["value"], shown["Sharp"]["sure"]["vanilla"]) == (probability, 0.9)
    assert [word for word, differs in shown["Sharp"]["words"] if differs] == (["blue"] if kind == "different" else [])


def test_a_result_with_fewer_frames_is_shown_on_the_frames_of_all_and_compared_with_none():
    """Memory ran out for one method: it saw every second frame."""
    whole = make_result("vanilla", frames=4)
    less = make_result("sharp", frames=2, notes=["Memory ran out: this answer saw only 2 frames."])
    less.layout = replace(less.layout, timestamps=whole.layout.timestamps[::2])
    less.merged_into = [[3, 17], [20, 4]]
    board = started()
    board.apply(Encoded(whole.layout, whole.layout.tokens, 1.0, False, whole.layout.frames))
    board.apply(MethodDone("Vanilla", whole))
    board.apply(MethodDone("Sharp", less))
    shown = columns(board)["Sharp"]
    assert (shown["tokens"]["frames"], shown["tokens"]["segments"]) == (4, [[0, 2], [2, 4]])
    mask = np.frombuffer(base64.b64decode(shown["tokens"]["mask"]), np.uint8).reshape(4, -1)
    own = np.frombuffer(base64.b64decode(token_view(less)["mask"]), np.uint8).reshape(2, -1)
    assert (mask == own[[0, 0, 1, 1]]).all()
    absorbed = np.frombuffer(base64.b64decode(shown["tokens"]["absorbed"]), np.int32).reshape(-1, 2)
    assert absorbed.tolist() == [[3, 32], [18, 32], [35, 4], [50, 4]]
    assert (mask > 0).sum(1).tolist() == [len(less.kept[frame]) for frame in (0, 0, 1, 1)]
    assert "saw only 2 frames" in shown["note"]
    assert {figure["key"] for figure in shown["figures"]}.isdisjoint({"speedup", "flops_ratio"})


def test_frames_are_sent_once_as_a_file_and_only_with_results():
    board = started()
    frames = np.zeros((4, 30, 40, 3), np.uint8)
    board.apply(Decoded(frames, (0.0, 1.0, 2.0, 3.0), {"decoder": "pyav"}, 5.0))
    board.sprite_path = "frames.jpg"
    assert board.value()["clip"] is None
    board.apply(MethodDone("Sharp", make_result("sharp")))
    clip = board.value()["clip"]
    assert clip["sprite"]["path"] == "frames.jpg"
    assert clip["shown"] == [0, 1, 2, 3]


def test_only_changed_knobs_become_options():
    assert [spec.options for spec in method_specs(["vanilla", "sharp"], DEFAULTS)] == [{}, {}]
    sharp, fastv = method_specs(["sharp", "fastv"], {**DEFAULTS, "sharp.posc": False, "fastv.layer": 3})
    assert sharp.options == {"posc": False}
    assert fastv.options == {"layer": 3}


def test_every_knob_of_the_page_exists():
    for method, name in KNOBS:
        assert method in list_methods()
        assert knob_field(method, name).metadata["help"]


def checked(folder, **over):
    clip = folder / "clip.mp4"
    clip.write_bytes(b"x")
    values = {"video": str(clip), "question": " Why? ", "methods": SPECS, "retention": 0.2, "match": "tokens"}
    more = {"frames": 0, "model": None, "max_new_tokens": 64}
    return Inputs(ENGINE, Settings(), [folder]).check(**{**values, **more, **over})


def test_a_good_request_passes(tmp_path):
    request = checked(tmp_path)
    assert (request.question, request.frames, request.retention) == ("Why?", None, 0.2)


@pytest.mark.parametrize(
    ("over", "kind"),
    [
        ({"video": "/etc/passwd"}, VideoError),
        ({"video": "https://example.com/a.mp4"}, VideoError),
        ({"video": "inside/../../escape.mp4"}, VideoError),
        ({"methods": (MethodSpec("nope"),)}, MethodError),
        ({"methods": (MethodSpec("sharp"), MethodSpec("vanilla"), MethodSpec("sharp"))}, MethodError),
        ({"retention": float("nan")}, InputError),
        ({"retention": None}, InputError),
        ({"max_new_tokens": 10_000}, InputError),
    ],
)
def test_bad_requests_do_not(tmp_path, over, kind):
    with pytest.raises(kind):
        checked(tmp_path, **over)


def test_examples_are_there_and_have_questions():
    examples = load_examples(Settings())
    assert len(examples) >= 4
    assert all(example.question.endswith("?") and example.video.stat().st_size < 300_000 for example in examples)


def test_evidence_is_known_for_the_examples_own_question_and_film_only(tmp_path):
    examples = load_examples(Settings())
    assert all(example.evidence for example in examples)
    first = examples[0]
    copy = tmp_path / "upload.mp4"
    copy.write_bytes(first.video.read_bytes())
    assert evidence_for(examples, str(copy), first.question) == first.evidence
    assert evidence_for(examples, str(copy), "Another question?") == ()
    copy.write_bytes(b"x" * copy.stat().st_size)
    assert evidence_for(examples, str(copy), first.question) == ()
    copy.unlink()
    assert evidence_for(examples, str(copy), first.question) == (), "an upload may be deleted while its page is open"


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [
        (None, "127.0.0.1:7860", False),
        ("http://127.0.0.1:7860", "127.0.0.1:7860", False),
        ("https://Demo.example", "demo.example", False),
        ("null", "127.0.0.1:7860", True),
        ("http://127.0.0.1:9", "127.0.0.1:7860", True),
    ],
)
def test_origin_is_compared_with_host(origin, host, foreign):
    assert is_foreign(origin, host) is foreign
