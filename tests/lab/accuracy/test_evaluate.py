"""The evaluation document: hand-made verdicts, a whole run on random weights, and the command line around it."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lab.accuracy.command import parse_retentions, to_json
from lab.accuracy.evaluate import (
    Plan,
    Row,
    Tally,
    _end_with_parent,
    choose_clips,
    document,
    evaluate,
    evidence_left,
    lay_out,
)
from lab.accuracy.variants import parse_variants
from lab.accuracy.worlds import shipped_kinds
from lab.tables.accuracy import evidence_table, markdown
from lab.world.questions import KINDS
from lab.world.records import Question, SyntheticClip
from sharp_demo.backbones.load import Backbone
from sharp_demo.cli import main
from sharp_demo.errors import InputError
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.settings import Settings

METHODS = "vanilla,fastv,sharp,random,fastv:layer=1,random:layer=1,saliency,evidence"
SCHEMA = {"model", "method", "retention", "match", "n", "accuracy", "ci95", "by_kind", "by_position"}


def plan(**changes) -> Plan:
    values = {"variants": parse_variants(METHODS), "retentions": (0.3, 0.1), "questions": 4, "per_clip": 2}
    return Plan(**{**values, "split": "validation", **changes})


@pytest.fixture(scope="module")
def evaluated(folder: Path, cpu_settings: Settings) -> dict:
    return evaluate(str(folder), cpu_settings, plan())


def test_document_of_a_whole_run(evaluated: dict, folder: Path) -> None:
    results, asked = evaluated["results"], evaluated["questions"]
    assert asked["n"] == sum(asked["by_kind"].values()) == sum(asked["by_position"].values()) == 4
    assert asked["clips"] == 2
    assert set(asked["by_kind"]) <= {"bg_of", "color_in", "letter_in"}  # the kinds on the card
    assert len(results) == 2 * (1 + 7 * 2)  # vanilla once, the others at two retentions, in both matches
    for result in results:
        assert result.keys() >= SCHEMA
        assert result["model"] == str(folder)
        assert result["n"] == 4 == len(result["right"])
        assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
        assert result["accuracy"] == result["right"].count("1") / 4
        assert result["by_kind"].keys() == asked["by_kind"].keys()
        assert result["by_position"].keys() == asked["by_position"].keys()
        assert sum(result["kept_by_third"]) == pytest.approx(1, abs=1e-5)
    evidence = [result for result in results if result["method"] == "evidence"]
    assert all(result["evidence_kept"] == 1 for result in evidence)
    assert evaluated["setup"]["model"]["trained"] is False
    assert len(evaluated["setup"]["model"]["weights_sha256"]) == 64
    assert {"torch", "transformers", "sharp_demo"} <= evaluated["setup"]["versions"].keys()


def test_equal_flops_cost_what_fastv_costs(evaluated: dict) -> None:
    def one(method: str, match: str, retention: float = 0.3) -> dict:
        return next(
            result
            for result in evaluated["results"]
            if (result["method"], result["match"], result["retention"]) == (method, match, retention)
        )

    fastv = one("fastv", "tokens")
    assert one("fastv", "flops")["right"] == fastv["right"]
    assert one("fastv", "flops")["kept"] == fastv["kept"] == round(0.3 * 144)
    assert one("sharp", "tokens")["kept"] == fastv["kept"]
    assert one("sharp", "flops")["kept"] > fastv["kept"]
    assert one("sharp", "flops")["tflops_ratio"] == pytest.approx(fastv["tflops_ratio"], rel=0.02)
    assert one("sharp", "tokens")["tflops_ratio"] < fastv["tflops_ratio"]
    assert one("sharp", "flops")["versus"]["random"]["method"] == "random:layer=1"
    assert one("fastv", "tokens")["versus"]["random"]["method"] == "random"
    assert one("fastv", "tokens")["versus"].keys() == {"vanilla", "random", "best"}
    assert one("fastv", "tokens")["versus"]["best"]["method"] == "sharp"  # no variant of its own


def test_same_seed_same_document_whatever_the_processes(folder: Path, cpu_settings: Settings, evaluated: dict) -> None:
    assert to_json([evaluate(str(folder), cpu_settings, plan(), jobs=2)]) == to_json([evaluated])
    other = evaluate(str(folder), cpu_settings, plan(seed=1, variants=parse_variants("vanilla")))
    assert other["questions"]["asked"] != evaluated["questions"]["asked"]


def test_tables_of_a_whole_run(evaluated: dict) -> None:
    text = markdown(evaluated, "Accuracy")
    assert text.startswith("# Accuracy\n")
    assert "untrained: these figures mean nothing" in text
    for heading in ("Equal tokens", "Equal FLOPs", "By position", "By kind", "ShaRP against the others"):
        assert f"## {heading}" in text
    for line in text.splitlines():
        if line.startswith("| FastV, K=1"):
            assert "K=1" in line
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|"), []).append(line)
    assert all(len(lines) > 2 for lines in widths.values())  # every row as wide as its header


class Script:
    """Questions and verdicts written by hand: 4 clips, each with an early, a middle and a late question."""

    kinds = ("bg_of", "color_in", "letter_in")
    positions = ("early", "middle", "late")

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        black = np.zeros((backbone.default_frames, 40, 40, 3), np.uint8)
        questions = tuple(
            Question(f"Question {i}?", "Red.", "Red", kind, (0, 0), (), position)
            for i, (kind, position) in enumerate(zip(self.kinds, self.positions, strict=True))
        )
        self.clips = [SyntheticClip(seed, "validation", black, questions, ((0, 16),)) for seed in range(4)]
        self.plan = plan(variants=parse_variants("vanilla,fastv,sharp,random"), retentions=(0.3,), matches=("tokens",))
        self.rows, self.unreachable = lay_out(backbone, self.clips[0], self.plan)

    def document(self, verdicts: Callable[[Row, int, int], bool]) -> dict[str, dict]:
        tallies = {
            row.run: Tally(
                right=[verdicts(row, clip, i) for clip in range(4) for i in range(3)],
                evidence_kept=[float("nan")] * 12,
                evidence_merged=[float("nan")] * 12,
                thirds=[[0.5, 0.25, 0.25]] * 12,
                visual=[list(row.visual_per_layer)] * 12,
                mlp=[list(row.visual_per_layer)] * 12,
            )
            for row in self.rows
        }
        made = document(self.backbone, self.plan, self.clips, self.rows, self.unreachable, tallies)
        return {result["method"]: result for result in made["results"]}


def test_hand_made_verdicts_are_counted(backbone: Backbone) -> None:
    script = Script(backbone)
    rules = {
        "vanilla": lambda clip, i: True,
        "fastv": lambda clip, i: i == 0,
        "sharp": lambda clip, i: clip < 3,
        "random": lambda clip, i: clip < 3,
    }
    results = script.document(lambda row, clip, i: rules[row.variant.name](clip, i))
    assert [results[name]["accuracy"] for name in rules] == [1.0, pytest.approx(1 / 3, abs=1e-6), 0.75, 0.75]
    assert results["fastv"]["by_position"] == {"early": 1.0, "late": 0.0, "middle": 0.0}
    assert results["fastv"]["by_kind"] == {"bg_of": 1.0, "color_in": 0.0, "letter_in": 0.0}
    assert results["fastv"]["right"] == "100" * 4
    assert results["vanilla"]["ci95"] == [1.0, 1.0]
    assert results["fastv"]["ci95"] == pytest.approx([1 / 3, 1 / 3], abs=1e-6)  # every clip alike: no spread
    assert results["sharp"]["ci95"][0] < 0.75 < results["sharp"]["ci95"][1]
    same = results["random"]["versus"]["best"]
    assert (same["method"], same["difference"], same["ci95"]) == ("sharp", 0.0, [0.0, 0.0])
    assert results["sharp"]["versus"]["best"]["method"] == "fastv"
    assert results["sharp"]["versus"]["vanilla"]["difference"] == -0.25
    assert results["vanilla"]["versus"] == {}
    assert results["fastv"]["evidence_kept"] is None


def test_clips_come_from_the_split_and_the_seed(backbone: Backbone) -> None:
    first = choose_clips(backbone, plan(questions=5))
    assert [len(clip.questions) for clip in first] == [2, 2, 1]
    assert {clip.split for clip in first} == {"validation"}
    side = first[0].frames.shape[1]
    assert first[0].frames.shape == (backbone.default_frames, side, side, 3)
    assert backbone.processor.video.resized(backbone.default_frames, side, side) == (side, side)
    seeds = [{clip.seed for clip in choose_clips(backbone, plan(seed=seed))} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]
    held = choose_clips(backbone, plan(split="heldout"))
    assert held[0].seed == first[0].seed
    assert not np.array_equal(held[0].frames, first[0].frames)
    only = choose_clips(backbone, plan(kinds=("count",)))
    assert {question.kind for clip in only for question in clip.questions} == {"count"}


def test_no_kind_is_asked_more_often_for_having_more_questions(backbone: Backbone) -> None:
    kinds = ("bg_of", "count")  # five or more of the first in a clip, one of the second; every clip has both
    clips = choose_clips(backbone, plan(kinds=kinds, questions=60, per_clip=1))
    asked = [clip.questions[0].kind for clip in clips]
    assert 20 <= asked.count("count") <= 40
    again = choose_clips(backbone, plan(kinds=kinds, questions=60, per_clip=1))
    assert [clip.questions for clip in again] == [clip.questions for clip in clips]


def test_a_retention_of_one_is_no_second_line_of_every_other(folder: Path, cpu_settings: Settings) -> None:
    whole = plan(variants=parse_variants("vanilla,sharp"), retentions=(1.0, 0.3), matches=("tokens",))
    text = markdown(evaluate(str(folder), cpu_settings, whole), "Title")
    by_position = text.split("## By position")[1].split("## By kind")[0]
    assert by_position.count("| ShaRP") == 1


def test_kinds_are_those_of_the_card(backbone: Backbone, tmp_path: Path) -> None:
    assert shipped_kinds(backbone.folder, "drawn") == ("bg_of", "color_in", "letter_in")
    assert shipped_kinds(tmp_path, "drawn") == tuple(KINDS)


def test_evidence_is_kept_or_averaged_into_what_is() -> None:
    run = Run(Vanilla(), torch.device("cpu"))
    run.kept, run.merged_into = torch.tensor([2, 5]), torch.tensor([-1, 5, 5, -1, -1, -1])
    assert evidence_left((2, 5), run) == (1, 0)
    assert evidence_left((0, 1, 2, 3), run) == (0.25, 0.25)  # 1 is in 5
    assert evidence_left((0, 4), run) == (0, 0)
    assert np.isnan(evidence_left((), run)).all()


def test_tables_tell_kept_evidence_from_merged(evaluated: dict) -> None:
    results = [
        {**one, "evidence_kept": 0.5, "evidence_merged": 0.25 if one["method"] == "sharp" else 0.0}
        for one in evaluated["results"]
    ]
    rows = evidence_table({**evaluated, "results": results}, "tokens").splitlines()
    assert "| ShaRP, K=1 | 50.0 + 25.0 | 50.0 + 25.0 |" in rows
    assert "| FastV, K=2 | 50.0 | 50.0 |" in rows
    assert not any(row.startswith("| Vanilla") for row in rows)
    assert "averaged into a token that is kept" in rows[0]
    unmeasured = [{key: value for key, value in one.items() if key != "evidence_merged"} for one in results]
    rows = evidence_table({**evaluated, "results": unmeasured}, "tokens").splitlines()
    assert "| ShaRP, K=1 | 50.0 | 50.0 |" in rows
    assert "does not count" in rows[0]


def test_what_no_equal_cost_reaches_is_said(backbone: Backbone) -> None:
    late = plan(variants=parse_variants("vanilla,random:layer=3"), retentions=(0.05,))
    made = lay_out(backbone, choose_clips(backbone, late)[0], late)
    assert [row.match for row in made[0]] == ["tokens", "tokens", "flops"]
    assert [(gap["method"], gap["retention"], gap["match"]) for gap in made[1]] == [("random:layer=3", 0.05, "flops")]
    assert "cannot cost as little" in made[1][0]["why"]


def test_a_retention_that_a_method_refuses_is_a_gap_and_no_failure(backbone: Backbone) -> None:
    few = plan(variants=parse_variants("vanilla,evs"), retentions=(0.5, 0.01), matches=("tokens",))
    made = lay_out(backbone, choose_clips(backbone, few)[0], few)
    assert [row.asked for row in made[0]] == [1.0, 0.5]
    assert [(gap["method"], gap["retention"]) for gap in made[1]] == [("evs", 0.01)]
    assert "ask for a retention of at least" in made[1][0]["why"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retentions": (0.0,)}, "above 0"),
        ({"retentions": (1.5,)}, "at most 1"),
        ({"retentions": ()}, "nothing to evaluate"),
        ({"retentions": (0.1, 0.1)}, "named twice"),
        ({"questions": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"split": "train"}, "heldout, validation"),
        ({"matches": ("size",)}, "no match 'size'"),
        ({"kinds": ("riddle",)}, "no kind 'riddle'"),
        ({"world": "moon"}, "no world 'moon'; there are drawn, tabletop"),
        ({"world": "tabletop", "kinds": ("bg_of",)}, "no kind 'bg_of'"),
    ],
)
def test_wrong_plans_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**changes)


def test_retentions_are_read_as_numbers() -> None:
    assert parse_retentions("0.25, 0.1") == (0.25, 0.1)
    with pytest.raises(InputError, match="write numbers"):
        parse_retentions("0.2;0.1")


def arguments(folder: Path, *more: str) -> list[str]:
    fixed = ["evaluate", "--model", str(folder), "--split", "validation", "--questions", "2", "--jobs", "1"]
    return [*fixed, "--methods", "vanilla,fastv", "--retention", "0.2", *more]


def test_command_writes_json_and_tables(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, tables = tmp_path / "e.json", tmp_path / "e.md"
    assert main(arguments(folder, "--match", "tokens", "--json", str(out), "--markdown", str(tables))) == 0
    written = json.loads(out.read_text())
    assert [result["method"] for result in written["results"]] == ["vanilla", "fastv"]
    assert all(result.keys() >= SCHEMA for result in written["results"])
    assert written["models"][str(folder)]["setup"]["split"] == "validation"
    assert "FastV, K=2" in capsys.readouterr().out
    assert tables.read_text().startswith("# Accuracy of")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "nothing"], "no method named 'nothing'"),
        (["--methods", "fastv:layer=40"], "prunes before layer 40"),
        (["--retention", "2"], "at most 1"),
        (["--retention", "many"], "write numbers"),
        (["--match", "size"], "size"),
        (["--questions", "0"], "at least 1"),
        (["--questions", "x"], "integer"),
        (["--split", "train"], "no split"),
        (["--world", "moon"], "no world"),
        (["--seed", "-1"], "at least 0"),
        (["--jobs", "0"], "at least 1"),
        (["--model", "nowhere"], "unknown model"),
        (["--json", "nowhere/e.json"], "no folder"),
    ],
)
def test_bad_input_is_one_line_and_two(
    folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments(folder, *more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize("lives", [True, False])
def test_a_share_ends_at_the_next_clip_when_its_parent_was_killed(monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    parent = SimpleNamespace(is_alive=lambda: lives)
    monkeypatch.setattr("lab.accuracy.evaluate.parent_process", lambda: parent)
    with nullcontext() if lives else pytest.raises(SystemExit):
        _end_with_parent(0, 4)
