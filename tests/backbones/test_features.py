"""Vision features: the same as the model's own, reusable, and cheap for a black video."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from frames import golden_frames

from sharp_demo.backbones import features as features_module
from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.features import black_features, encode_video, model_inputs
from sharp_demo.backbones.load import Backbone


def own_features(backbone: Backbone, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model's own call makes of all frames at once."""
    model = backbone.model
    call = getattr(model, f"get_{backbone.processor.family.features_key}_features")
    return call(**pixels, return_dict=True).pooler_output[0]


def count_tower_calls(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    name = f"get_{backbone.processor.family.features_key}_features"
    original = getattr(backbone.model.model, name)

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(backbone.model.model, name, counted)
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
        own = own_features(tiny, pixels)
    for chunk in (2, 8, 64):
        features = encode_video(tiny.model, pixels, chunk_frames=chunk)
        torch.testing.assert_close(features.features, own, rtol=0, atol=1e-5)
        if frames <= chunk:
            assert torch.equal(features.features, own)
    assert features.frames == -(-frames // features.family.frames_per_token(tiny.model.config))
    assert not features.features.requires_grad


def still(pattern: list[int]) -> np.ndarray:
    """Frames by number; each number is one picture, for as many frames as a layout frame covers."""
    pictures = golden_frames(1 + max(pattern), 60, 80)
    return pictures[pattern]


@pytest.mark.parametrize("pattern", [[0, 0, 1, 1, 0, 2, 2, 2, 2, 0, 0, 3], [0] * 10, [0, 1, 2]])
@pytest.mark.parametrize("signals", [False, True])
def test_equal_frames_are_encoded_once(
    tiny: Backbone, pattern: list[int], signals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = family_of(tiny.model.config).frames_per_token(tiny.model.config)
    pixels = tiny.processor.video.pixels(still(np.repeat(pattern, step).tolist()))
    once = encode_video(tiny.model, pixels, signals=signals)
    assert (once.frames, once.encoded) == (len(pattern), len(set(pattern)))
    monkeypatch.setattr(features_module, "first_equal", lambda frames: list(range(len(frames))))
    each = encode_video(tiny.model, pixels, signals=signals)
    assert (each.frames, each.encoded) == (len(pattern), len(pattern))
    assert torch.equal(once.features, each.features)
    assert all(torch.equal(one, other) for one, other in zip(once.injections, each.injections, strict=True))
    if signals:
        assert torch.equal(once.signals.received, each.signals.received)
        assert torch.equal(once.signals.keys, each.signals.keys)


def test_frames_are_equal_bit_for_bit_or_not_at_all() -> None:
    frames = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [0.0, 3.0], [-0.0, 3.0], [2.0, 1.0]])
    assert features_module.first_equal(frames) == [0, 1, 0, 3, 4, 1]  # the sum of the first two is the same


def test_temporal_patches_are_equal_only_as_pairs(tiny_qwen: Backbone) -> None:
    pixels = tiny_qwen.processor.video.pixels(still([0, 1, 0, 1, 1, 0, 0, 0]))
    assert encode_video(tiny_qwen.model, pixels).encoded == 3  # 01, 01, 10, 00


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
    # Not wholly zero: SmolVLM takes such a frame for padding.
    zero = {key: torch.full_like(value, 1e-6) for key, value in inputs.items() if key.startswith("pixel_values")}
    black = black_features(tiny.model, tiny.processor.video, layout).features
    assert (encode_video(tiny.model, {**inputs, **zero}).features[: len(layout)] - black).abs().max() > 1e-2


def test_qwen3_injects_what_its_model_does(tiny_of: Callable[[str], Backbone]) -> None:
    """The features of earlier tower layers too, whole and in chunks; without them the answer is another."""
    tiny = tiny_of("qwen3-vl")
    frames = golden_frames(6, 60, 80)
    inputs = tiny.processor(frames, "What happens?")
    pixels = tiny.processor.video.pixels(frames)
    with torch.no_grad():
        own = tiny.model.get_video_features(**pixels, return_dict=True).deepstack_features
        expected = tiny.model(**inputs).logits
    features = encode_video(tiny.model, pixels, chunk_frames=2)
    assert len(own) == len(features.injections) == 2
    for (one,), other in zip(own, features.injections, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    prompt = tiny.processor.prompt("What happens?", frames=6, grid=inputs["video_grid_thw"])
    zero = replace(features, injections=tuple(torch.zeros_like(rows) for rows in features.injections))
    with torch.no_grad():
        logits = tiny.model(**model_inputs(prompt, zero)).logits
    assert (logits - expected).abs().max() > 1e-2
