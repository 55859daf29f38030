"""Attention over time: shares by hand, and a whole look at random weights against the engine's own figures."""

import numpy as np
import pytest
import torch

from lab.accuracy.asking import Asked, Film
from lab.accuracy.evaluate import Plan, choose_clips
from lab.accuracy.phenomena import CURVES, attention, late_of_top, phenomena
from lab.accuracy.variants import parse_variants
from lab.tables.phenomena import markdown
from lab.world.records import SyntheticClip
from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone
from sharp_demo.engine.attention import probe_attention

PLAN = Plan(parse_variants("vanilla"), questions=4, per_clip=2, split="validation")


def test_late_share_of_the_highest_scores() -> None:
    rising, falling = np.arange(30.0), -np.arange(30.0)
    middle = -np.abs(np.arange(30.0) - 15)
    assert late_of_top(np.stack([rising, falling, middle]), 0.2, frames=15).tolist() == [1.0, 0.0, 0.0]
    assert late_of_top(rising[None], 0.5, frames=15).tolist() == [pytest.approx(10 / 15)]
    assert late_of_top(rising[None], 0.001, frames=15).tolist() == [1.0]  # at least one


def test_attention_is_the_engines(backbone: Backbone, clip: SyntheticClip, film: Film) -> None:
    asked = Asked(film, clip.questions[0].text)
    prompt = film.prompt(clip.questions[0].text)
    features = encode_video(backbone.model, backbone.processor.video.pixels(clip.frames))
    expected = probe_attention(backbone.model, prompt, features)
    measured = attention(asked)
    for layer in range(len(measured)):
        torch.testing.assert_close(torch.from_numpy(measured[layer]), expected[f"layer {layer}"], rtol=1e-4, atol=1e-6)


def test_a_black_film_is_black_and_leaves_the_film_alone(backbone: Backbone, clip: SyntheticClip, film: Film) -> None:
    asked = Asked(film, clip.questions[0].text)
    before = attention(asked)
    dark = film.black(asked.layout)
    black = encode_video(backbone.model, backbone.processor.video.pixels(np.zeros_like(clip.frames)))
    torch.testing.assert_close(dark.features.features, black.features, rtol=1e-4, atol=1e-5)
    assert not np.allclose(attention(Asked(dark, clip.questions[0].text)), before)
    assert np.array_equal(attention(Asked(film, clip.questions[0].text)), before)


def test_a_whole_look(backbone: Backbone) -> None:
    seen = phenomena(backbone, PLAN)
    assert seen["questions"] == 4
    assert seen["clips"] == len(choose_clips(backbone, PLAN)) == 2
    assert [entry["layer"] for entry in seen["layers"]] == [0, 1, 2, 3]
    assert sum(seen["chance_by_third"]) == pytest.approx(1, abs=1e-5)
    for entry in seen["layers"]:
        assert 0 < entry["visual_attention"] < 1
        assert sum(entry["raw"]["by_frame"]) == pytest.approx(entry["visual_attention"], abs=1e-4)
        parts = [np.array(entry[name]["by_frame"]) for name in CURVES]
        np.testing.assert_allclose(parts[0] - seen["setup"]["penalty"] * parts[1], parts[2], atol=1e-5)
        assert entry["raw"]["late_share"]["ci95"][0] <= entry["raw"]["late_share"]["mean"]
    kept = {one["method"]: one for one in seen["kept"]}
    assert kept.keys() >= {"fastv", "feather", "sharp"}
    for one in kept.values():
        assert sum(one["by_frame"]) == pytest.approx(1, abs=1e-4)
        assert sum(one["by_third"]) == pytest.approx(1, abs=1e-4)
        assert one["late"]["mean"] == pytest.approx(one["by_third"][2], abs=1e-5)
    text = markdown(seen)
    assert "| ShaRP, K=1 |" in text
    assert phenomena(backbone, PLAN) == seen
