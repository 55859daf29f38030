"""Tables: the paper's rows, what they would take, and what is said of verdicts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lab.paper import command
from lab.paper.asking import outcome
from lab.paper.harness import HarnessError, Job, Score, read_scores, score_of, write_config
from lab.paper.page import paper_page, quarters
from lab.paper.plan import benchmarks, estimate, fitting, gpus, method_of, table, table_names, with_methods
from lab.paper.results import score_document, verdicts, weights
from lab.paper.runs import MethodRun, read_runs
from lab.paper.store import Store
from sharp_demo.cli import app
from sharp_demo.cost import ModelShape, paper_tflops, shape_named
from sharp_demo.errors import InputError
from sharp_demo.records import Request
from tests.lab.paper.questions import FRAMES, result

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_rows_are_those_printed_and_cost_what_is_printed(name: str) -> None:
    one = table(name)
    printed = json.loads((ROOT / "tests/data/paper_tables.json").read_text())[name]
    rows = [row for row in one.rows if row.run.method != "framefusion"]
    assert [(row.run.method, row.printed_retention, row.tflops) for row in rows] == [
        (row["method"], row["retention"], row["tflops"]) for row in printed["rows"]
    ]
    shape = shape_named(one.config)
    for row in rows:
        method = method_of(row.run, shape, one.tokens, one.layout_frames)
        counts = method.visual_per_layer(shape.layers, one.tokens, one.layout_frames)
        assert paper_tflops(shape, counts, method.mlp_per_layer(counts)) == pytest.approx(
            float(row.tflops or 0), abs=0.06
        )


# As printed. FrameFusion's other averages are not the means of what is printed next to them.
AVERAGES = {
    "table1": {
        "vanilla": 59.0, "sharp-25": 58.5, "sharp-20": 58.4, "sharp-15": 57.8, "sharp-10": 57.4,
        "fastv-25": 56.8, "fastv-20": 56.6, "fastv-15": 55.7, "fastv-10": 53.7, "pdrop-25": 57.1,
        "pdrop-20": 55.7, "pdrop-15": 54.4, "pdrop-10": 47.6, "feather-25": 56.3, "feather-20": 55.9,
        "feather-15": 55.3, "feather-10": 54.4, "framefusion-20": 57.6, "framefusion-15": 57.1,
    },
    "table2": {
        "vanilla": 58.9, "sharp-20": 56.6, "sharp-10": 56.5, "fastv-20": 52.8, "fastv-10": 49.6,
        "pdrop-20": 51.5, "pdrop-10": 46.0, "feather-20": 54.4, "feather-10": 52.2,
    },
    "table3": {
        "visionzip": 55.9, "visionzip+sharp": 57.7, "holitom": 58.4, "holitom+sharp": 58.7,
    },
    "table5": {
        "original": 55.8, "posc": 57.4, "sharp": 58.4, "posc+segm": 57.6, "posc+regd": 58.0, "segm+regd": 57.6,
    },
}  # fmt: skip


def test_averages_of_the_stored_scores_are_the_printed_ones() -> None:
    """A digit copied wrongly would move the mean."""
    for name, printed in AVERAGES.items():
        one = table(name)
        means = {row.run.label: np.mean([row.scores[bench] for bench in one.benchmarks]) for row in one.rows}
        for label, average in printed.items():
            assert means[label] == pytest.approx(average, abs=0.11), (name, label)


def test_every_row_of_every_table_can_run_and_is_estimated() -> None:
    for name in table_names():
        one = table(name)
        usable, refused = fitting(one.rows, shape_named(one.config), one.tokens, one.layout_frames)
        assert len(usable) == len(one.rows)
        assert not refused
        assert one.rows[0].run.method == "vanilla"
        a40, h100 = (estimate(one, gpu, 20.0, 16e9) for gpu in gpus())
        assert sum(a40.hours.values()) > sum(h100.hours.values()) > 0
    with pytest.raises(InputError, match="there are table1"):
        table("table9")


def test_an_estimate_follows_from_the_papers_own_prefill() -> None:
    """Vanilla alone, with no tower and a short text, takes what the paper measured, question by question."""
    one = replace(table("table4"), rows=table("table4").rows[:1], benchmarks=("videomme",))
    whole = estimate(one, gpus()[0], 0.0, 0.0).hours["VideoMME"] * 3600 / benchmarks()["videomme"].questions
    assert whole == pytest.approx(1.1816, rel=0.03)
    assert estimate(one, gpus()[0], 0.0, 0.0, limit=27).hours["VideoMME"] * 3600 == pytest.approx(27 * whole)


def test_other_methods_join_at_equal_cost_and_a_small_model_leaves_rows_out() -> None:
    one = with_methods(table("table1"), ["dart"])
    added = [row.run for row in one.rows[-4:]]
    assert [(run.method, run.retention, run.match) for run in added] == [
        ("dart", retention, "flops") for retention in (0.25, 0.2, 0.15, 0.1)
    ]
    with pytest.raises(InputError, match="no rows of equal cost"):
        with_methods(table("table5"), ["dart"])
    shape = ModelShape(layers=6, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocab=99)
    usable, refused = fitting(one.rows, shape, 784, 16)
    assert len(usable) + len(refused) == len(one.rows)
    assert "a mean over 6 layers" in refused["framefusion-10"]
    assert "vanilla" not in refused


def made_verdicts() -> dict[str, list[Score]]:
    rng = np.random.default_rng(0)
    vanilla = rng.random(120) < 0.7
    columns = {"vanilla": vanilla, "same": vanilla, "worse": vanilla & (np.arange(120) % 2 == 0)}
    return {
        label: [Score("toy", int(i), bool(right[i]), "a" if i % 3 else "b") for i in rng.permutation(120)]
        for label, right in columns.items()
    }


def test_what_is_said_of_a_method() -> None:
    scores = made_verdicts()
    found = verdicts(scores, {("toy", i): f"{i // 3}.mp4" for i in range(120)})
    same, worse = (
        score_document(found, benchmarks()["videomme"], label, "vanilla", 60.0) for label in ("same", "worse")
    )
    assert (same["n"], same["videos"], same["to_vanilla"], same["mcnemar_p"]) == (120, 40, 0.0, 1.0)
    assert same["at_most_a_point_worse"]
    assert same["difference"] == pytest.approx(same["ours"] - 0.6)
    assert same["difference_ci95"][0] < same["difference"] < same["difference_ci95"][1]
    assert worse["to_vanilla_ci95"][1] < 0
    assert not worse["at_most_a_point_worse"]
    assert (worse["only_this"], worse["mcnemar_p"]) == (0, 0.0)
    with pytest.raises(ValueError, match="not asked the same questions"):
        verdicts({**scores, "short": scores["same"][1:]}, {})


def test_categories_weigh_the_same_where_the_benchmark_has_it_so() -> None:
    categories = np.array(["a"] * 9 + ["b"])
    right = np.array([1.0] * 9 + [0.0])
    assert (right * weights(categories, True)).mean() == pytest.approx(0.5)
    assert (right * weights(categories, False)).mean() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("metric", "right", "category"),
    [
        ({"pred_answer": "A", "answer": "A", "duration": "long", "score": 1.0}, True, "long"),
        ({"pred_answer": "", "gt_answer": "B", "score": 0}, False, ""),
        ({"parsed_pred": "C", "answer": "C", "duration_group": 15}, True, "15"),
        ({"pred_answer": "D", "answer": "A", "task_type": "ego"}, False, "ego"),
    ],
)
def test_scores_are_read_from_each_benchmarks_metric(metric: dict[str, object], right: bool, category: str) -> None:
    assert score_of("toy", {"doc_id": 3, "metric": metric}) == Score("toy", 3, right, category)


def test_a_sample_without_a_known_metric_and_missing_scores_are_errors(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no metric"):
        score_of("toy", {"doc_id": 3, "metric": 0.5})
    job = Job("toy", (MethodRun("vanilla", "vanilla"),), ("toy",), tmp_path)
    with pytest.raises(HarnessError, match="scored no question of toy with vanilla"):
        read_scores(job, job.runs[0])


def finished_job(folder: Path) -> Job:
    """A job whose answers and scores lie there, as lmms-eval and the plugin would have left them."""
    runs = (
        MethodRun("vanilla", "vanilla"),
        MethodRun("sharp", "sharp", 0.2),
        MethodRun("attention", "vanilla", maps=True),
    )
    job = Job("toy-model", runs, ("videomme",), folder, limit=8)
    store = Store(job.store)
    for run in runs:
        about = {"task": "videomme", "model": "toy-model", "label": run.label, "run": vars(run), "commit": "c" * 40}
        for number in range(8):
            done = result(Request("a.mp4", "?", ()), run.label, run.method, "A")
            known = {"key": f"{run.label}{number}", "doc_id": number, "video": f"{number // 2}.mp4", **about}
            if run.maps:
                store.put({**known, "attention": {"raw": [[0.1] * FRAMES] * 2, "debiased": [[0.0] * FRAMES] * 2}})
            else:
                store.put({**known, **outcome(done, FRAMES, 3)})
        if run.maps:
            continue
        path = job.scores_of(run) / "toy" / "20260101_000000_samples_videomme.jsonl"
        path.parent.mkdir(parents=True)
        metric = {"pred_answer": "A", "duration": "short"}
        lines = [
            {"doc_id": n, "videomme": {**metric, "answer": "A" if n % 2 or run.label == "vanilla" else "B"}}
            for n in range(8)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return job


def test_a_second_call_scores_what_is_missing_or_out_of_date(tmp_path: Path) -> None:
    job = finished_job(tmp_path)
    answers, (scores,) = job.store / "answers.jsonl", job.scores_of(job.runs[0]).rglob("*.jsonl")
    os.utime(answers, (1, 1))
    assert [job.is_scored(run) for run in job.answering] == [True, True]
    assert not replace(job, limit=9).is_scored(job.runs[0])
    os.utime(answers, (9, 9))
    os.utime(scores, (8, 8))
    (entry,) = json.loads(write_config(job).read_text())
    assert "report=vanilla" in entry["model_args"]


def test_a_finished_job_becomes_a_page(tmp_path: Path) -> None:
    job = finished_job(tmp_path)
    entries = json.loads(write_config(replace(job, limit=None)).read_text())
    assert [entry["model_args"].split(",")[2] for entry in entries] == ["report=vanilla", "report=sharp"]
    assert read_runs(tmp_path / "runs.json") == job.runs
    one = replace(table("figure2"), rows=tuple(replace(table("figure2").rows[0], run=run) for run in job.runs))
    document = {
        "kind": "figure", "table": "figure2", "title": "Figure 2", "source": "a paper", "command": "reproduce figure2",
        "model": "toy-model", "rehearsal": False, "limit": 8, "benchmarks": ["videomme"], "left_out": {"x": "too dear"},
        **command.collect(job, one, one.rows, rehearsal=False, theirs=True),
    }  # fmt: skip
    assert json.loads(command.to_json(document)) == json.loads(json.dumps(document))
    sharp = document["rows"][1]
    assert (sharp["kept"], sharp["scores"]["videomme"]["ours"], sharp["scores"]["videomme"]["short"]["n"]) == (
        0.5,
        0.5,
        8,
    )
    assert document["setup"]["commits"] == ["c" * 40]
    page = paper_page(document)
    for said in (
        "**A sample**",
        "8 (4 videos)",
        "too dear",
        "| vanilla | 100.0 (100.0 to 100.0)",
        "Attention of the last",
    ):
        assert said in page
    assert "rehearsal" not in page
    assert "This is a rehearsal" in paper_page({**document, "rehearsal": True})


def test_quarters_share_frames_out() -> None:
    assert quarters([1.0] * 8) == [2.0] * 4
    assert quarters([1.0, 2.0]) == [0.0, 1.0, 0.0, 2.0]


def test_the_command_estimates_and_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["reproduce", "all", "--dry-run"])
    assert shown.exit_code == 0
    assert {line.split("|")[1].strip() for line in shown.output.splitlines()[2:10]} == set(table_names())
    assert "hours on one A40 | hours on one H100" in shown.output
    for arguments in (["table9"], ["table1", "--limit", "0"], ["table5", "--methods", "dart"]):
        assert isinstance(CliRunner().invoke(app, ["reproduce", *arguments, "--dry-run"]).exception, InputError)
