"""The stored tables say what docs/results says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharp_demo.settings import Settings
from sharp_demo.views.benchmark import load_benchmark
from sharp_demo.views.tables import ablation_rows, accuracy_rows, load_tables, stored_accuracy

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("tiny-llava-onevision", "tiny-qwen2-vl")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("match", ["tokens", "flops"])
def test_every_accuracy_is_the_one_in_the_results(model, match):
    document = json.loads((ROOT / f"docs/results/evaluate-{model}.json").read_text("utf-8"))
    retentions, lines = accuracy_rows(load_benchmark(Settings().assets), model, match)
    cells = {(label, share): text for label, _, found in lines for share, text in found.items()}
    rows = [row for row in document["results"] if row["match"] == match and row["method"] != "vanilla"]
    assert {(row["label"], row["retention"]) for row in rows} == {cell for cell in cells if cell[0] != "Vanilla"}
    for row in rows:
        assert cells[row["label"], row["retention"]].startswith(f"{100 * row['accuracy']:.1f} (")
    assert retentions == sorted(retentions, reverse=True)


@pytest.mark.parametrize("model", MODELS)
def test_ablation_has_vanilla_and_the_rows_of_table_5(model):
    _, lines = ablation_rows(load_tables(Settings().assets)["ablation"], model)
    labels = [label for label, _, _ in lines]
    assert {"Vanilla", "Original", "PosC", "PosC+SegM", "PosC+RegD", "SegM+RegD", "All (ShaRP)"} <= set(labels)
    assert {method for label, method, _ in lines if label.startswith("All")} == {"sharp"}


def test_speed_is_measured_against_vanilla_of_the_same_prompt():
    rows = load_tables(Settings().assets)["speed"]
    assert {row["visual"] for row in rows} == {1568, 6272}
    for row in rows:
        vanilla = next(one for one in rows if one["method"] == "vanilla" and one["visual"] == row["visual"])
        if row["speedup"]["value"] is not None:
            assert row["speedup"]["value"] == pytest.approx(vanilla["prefill_ms"] / row["prefill_ms"], rel=0.15)


def test_the_plot_draws_methods_and_floors_with_their_intervals():
    figure = stored_accuracy(load_benchmark(Settings().assets), MODELS[0], "tokens")
    names = {line.name for line in figure.data}
    assert {"Vanilla", "FastV, K=2", "Feather, K=2", "ShaRP, K=1", "Random, K=1"} <= names
    sharp = next(line for line in figure.data if line.name == "ShaRP, K=1")
    assert len(sharp.error_y.array) == len(sharp.x)
    assert list(sharp.x) == sorted(sharp.x)


def test_nothing_stored_is_empty(tmp_path):
    assert load_tables(tmp_path) == {"ablation": [], "speed": []}
