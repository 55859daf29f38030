"""Vision features: the same as the model's own, reusable, and cheap for a black video."""

import numpy as np
import pytest
import torch
from frames import golden_frames

from sharp_demo.backbones.families import visual_layout
from sharp_demo.backbones.features import black_features, encode_video, model_inputs
from sharp_demo.backbones.load import Backbone


def count_tower_calls(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = backbone.model.model.get_video_features

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(backbone.model.model, "get_video_features", counted)
    return calls


def test_reused_features_give_the_tokens_of_pixels(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = golden_frames(6, 60, 80)
    whole = tiny.processor(frames, "What happens?")
    expected = tiny.model.generate(**whole, max_new_tokens=8, do_sample=False)
    features = encode_video(tiny.model, tiny.processor.video.pixels(frames))
    calls = count_tower_calls(tiny, monkeypatch)
    prompt = tiny.processor.prompt("What happens?", frames=6, grid=whole.get("video_grid_thw"))
    for _ in range(2):
        again = tiny.model.generate(**model_inputs(prompt, features), max_new_tokens=8, do_sample=False)
        assert torch.equal(again, expected)
    with torch.no_grad():
        by_pixels = tiny.model(**whole).logits
        calls.clear()
        by_features = tiny.model(**model_inputs(prompt, features)).logits
    assert torch.equal(by_pixels, by_features)
    assert not calls


@pytest.mark.parametrize("frames", [1, 8, 9, 21])
def test_features_equal_the_models_own_whatever_the_chunks(tiny: Backbone, frames: int) -> None:
    pixels = tiny.processor.video.pixels(golden_frames(frames, 60, 80))
    with torch.no_grad():
        own = tiny.model.get_video_features(**pixels, return_dict=True).pooler_output[0]
    for chunk in (2, 8, 64):
        features = encode_video(tiny.model, pixels, chunk_frames=chunk)
        torch.testing.assert_close(features.features, own, rtol=0, atol=1e-5)
        if frames <= chunk:
            assert torch.equal(features.features, own)
    assert features.frames == -(-frames // features.family.frames_per_token(tiny.model.config))
    assert not features.features.requires_grad


@pytest.mark.parametrize(("frames", "height", "width"), [(5, 60, 80), (12, 80, 60), (2, 30, 200)])
def test_black_features_are_those_of_a_black_video(tiny: Backbone, frames: int, height: int, width: int) -> None:
    black = np.zeros((frames, height, width, 3), np.uint8)
    inputs = tiny.processor(black, "Why?")
    layout = visual_layout(tiny.model.config, inputs["input_ids"], inputs.get("video_grid_thw"))
    expected = encode_video(tiny.model, inputs).features[: len(layout)]
    cheap = black_features(tiny.model, tiny.processor.video, layout).features
    assert cheap.shape == expected.shape
    torch.testing.assert_close(cheap, expected, rtol=0, atol=1e-5)


def test_black_is_not_a_zero_tensor(tiny: Backbone) -> None:
    inputs = tiny.processor(np.zeros((2, 60, 80, 3), np.uint8), "Why?")
    layout = visual_layout(tiny.model.config, inputs["input_ids"], inputs.get("video_grid_thw"))
    zero = {**inputs, "pixel_values_videos": torch.zeros_like(inputs["pixel_values_videos"])}
    black = black_features(tiny.model, tiny.processor.video, layout).features
    assert (encode_video(tiny.model, zero).features[: len(layout)] - black).abs().max() > 1e-2
