"""What is read off the vision tower: equal to its eager attention, pooled as the features are, and gone afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frames import golden_frames
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from sharp_demo.backbones.features import encode_video, model_inputs
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.received import attention_received
from sharp_demo.backbones.signals import VisionSignals, signals_refusal, tapped
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.method import SingleStage
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.settings import Settings

FRAMES = golden_frames(6, 60, 80)


def pixels_of(backbone: Backbone, frames: np.ndarray = FRAMES) -> dict[str, Tensor]:
    return backbone.processor.video.pixels(frames)


def signals_of(backbone: Backbone, frames: np.ndarray = FRAMES, **options: Any) -> VisionSignals:
    signals = encode_video(backbone.model, pixels_of(backbone, frames), signals=True, **options).signals
    assert signals is not None
    return signals


@torch.no_grad()
def eager_attentions(backbone: Backbone, settings: Settings) -> list[Tensor]:
    """Per tower layer the attention maps of transformers' own eager path: SigLIP [F, heads, P, P], or Qwen2-VL's."""
    eager = load(str(backbone.folder), settings.model_copy(update={"attention": "eager"})).model
    pixels = pixels_of(backbone)
    (values,) = (value for key, value in pixels.items() if key.startswith("pixel_values"))
    if "video_grid_thw" in pixels:
        assert eager.model.visual.config._attn_implementation == "eager"
        maps: list[Tensor] = []
        original = F.softmax

        def spy(*args: Any, **kwargs: Any) -> Tensor:
            maps.append(original(*args, **kwargs))
            return maps[-1]

        # Its attention module drops the maps, one per temporal patch; they pass through softmax.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "softmax", spy)
            eager.model.visual(values, grid_thw=pixels["video_grid_thw"])
        depth, patches = len(eager.model.visual.blocks), int(pixels["video_grid_thw"][0, 0])
        if backbone.family == "qwen2.5-vl":  # its first block attends in windows, window after window
            windows = maps[:-patches]
            each = len(windows) // patches
            first = [
                torch.stack([torch.block_diag(*heads) for heads in zip(*(one[0] for one in group), strict=True)])
                for group in (windows[i * each : (i + 1) * each] for i in range(patches))
            ]
            assert each > 1
            return [torch.stack(first), torch.cat(maps[-patches:])]
        assert len(maps) == depth * patches
        return [torch.cat(maps[i * patches : (i + 1) * patches]) for i in range(depth)]
    tower = eager.model.vision_tower if backbone.family == "llava-onevision" else eager.model.vision_model
    return list(tower(values.flatten(0, 1), output_attentions=True).attentions)


def raster(backbone: Backbone) -> Tensor:
    """Where each token of Qwen2.5-VL is in the order of its windows."""
    vision = backbone.model.config.vision_config
    order, _ = modeling_qwen2_5_vl.get_vision_window_index(
        pixels_of(backbone)["video_grid_thw"],
        spatial_merge_size=2,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    assert order.tolist() != sorted(order.tolist())
    return torch.argsort(order)


def pooled(backbone: Backbone, patches: Tensor) -> Tensor:
    """Per patch [F, P, c] to per token [N, c]: bilinear to half the side, or the mean of those that a token joins."""
    if "video_grid_thw" in pixels_of(backbone):
        tokens = patches.reshape(-1, 4, patches.shape[-1]).mean(1)
        return tokens[raster(backbone)] if backbone.family == "qwen2.5-vl" else tokens
    side = round(patches.shape[1] ** 0.5)
    maps = patches.view(len(patches), side, side, -1).permute(0, 3, 1, 2)
    if backbone.family == "smolvlm2":
        return F.avg_pool2d(maps, backbone.model.config.scale_factor).permute(0, 2, 3, 1).flatten(0, 2)
    half = F.interpolate(maps, size=(-(-side // 2),) * 2, mode="bilinear")
    return half.permute(0, 2, 3, 1).flatten(0, 2)


def test_received_is_the_mean_row_of_eager_attention(tiny: Backbone, cpu_settings: Settings) -> None:
    last = eager_attentions(tiny, cpu_settings)[-1]
    torch.testing.assert_close(last.sum(-1), torch.ones(last.shape[:-1]))
    expected = pooled(tiny, last.mean(1).mean(1)[..., None])[:, 0]  # over heads, then over queries
    torch.testing.assert_close(signals_of(tiny).received, expected, atol=1e-6, rtol=1e-5)


def test_it_is_the_layer_that_feeds_the_projector(tiny: Backbone, cpu_settings: Settings) -> None:
    other = eager_attentions(tiny, cpu_settings)[0]
    expected = pooled(tiny, other.mean(1).mean(1)[..., None])[:, 0]
    assert (signals_of(tiny).received - expected).abs().max() > 1e-4


@pytest.mark.parametrize("layer", [1, -2, 2, -1])
def test_the_layer_is_counted_as_hidden_states_are(
    layer: int, tiny_llava: Backbone, cpu_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hidden_states[0] enters layer 0, so of two layers 1 and -2 name the first one's output."""
    maps = eager_attentions(tiny_llava, cpu_settings)
    assert len(maps) == 2
    monkeypatch.setattr(tiny_llava.model.config, "vision_feature_layer", layer)
    first = maps[0 if layer in (1, -2) else 1]
    expected = pooled(tiny_llava, first.mean(1).mean(1)[..., None])[:, 0]
    torch.testing.assert_close(signals_of(tiny_llava).received, expected, atol=1e-6, rtol=1e-5)


def test_keys_are_those_before_rotation(tiny: Backbone) -> None:
    """The projection's own output, mean over heads, pooled like the features."""
    tower = tiny.model.model
    qwen = "video_grid_thw" in pixels_of(tiny)
    siglip = "vision_tower" if tiny.family == "llava-onevision" else "vision_model"
    module = tower.visual.blocks[-1].attn.qkv if qwen else getattr(tower, siglip).encoder.layers[-1].self_attn.k_proj
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    encode_video(tiny.model, pixels_of(tiny))
    hook.remove()
    (out,) = seen
    heads = 2
    if qwen:
        frames = int(pixels_of(tiny)["video_grid_thw"][0, 0])
        width = out.shape[-1] // 3
        out = out[:, width : 2 * width].view(frames, -1, width)  # query, key, value
    keys = out.unflatten(-1, (heads, -1)).mean(-2)
    torch.testing.assert_close(signals_of(tiny).keys, pooled(tiny, keys), atol=1e-6, rtol=1e-5)


def test_attention_received_by_hand() -> None:
    """One head, two tokens: the first query sees both alike, the second almost only itself."""
    queries, keys = torch.tensor([[[0.0], [50.0]]]), torch.tensor([[[0.0], [1.0]]])
    assert attention_received(queries, keys, 1.0).tolist() == pytest.approx([0.25, 0.75])


def test_attention_received_counts_the_token_itself_and_sums_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(3, 7, 5, generator=generator) for _ in range(2))
    total = [0.0] * 7
    for head in range(3):
        for query in range(7):
            row = torch.stack([queries[head, query] @ keys[head, key] * 0.3 for key in range(7)]).softmax(0)
            for key in range(7):
                total[key] += float(row[key]) / 21
    got = attention_received(queries, keys, 0.3)
    assert got.tolist() == pytest.approx(total, abs=1e-6)
    assert float(got.sum()) == pytest.approx(1)
    uniform = attention_received(torch.zeros(2, 6, 4), torch.randn(2, 6, 4, generator=generator), 1.0)
    torch.testing.assert_close(uniform, torch.full((6,), 1 / 6))


def test_attention_received_is_in_fp32() -> None:
    queries, keys = (torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2))
    got = attention_received(queries, keys, 0.35)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, attention_received(queries.float(), keys.float(), 0.35))


def test_one_score_and_key_per_visual_token_and_frames_do_not_mix(tiny: Backbone) -> None:
    """Another last frame changes the last frame's signals and nobody else's."""
    changed = FRAMES.copy()
    changed[-2:] = 255 - changed[-2:]  # two sampled frames make one temporal patch
    one, other = signals_of(tiny), signals_of(tiny, changed)
    features = encode_video(tiny.model, pixels_of(tiny))
    each = len(one.received) // features.frames
    assert len(one.received) == len(one.keys) == each * features.frames
    tail = each * (2 // features.family.frames_per_token(tiny.model.config))
    assert torch.equal(one.received[:-tail], other.received[:-tail])
    assert torch.equal(one.keys[:-tail], other.keys[:-tail])
    assert not torch.equal(one.received[-tail:], other.received[-tail:])


@pytest.mark.parametrize("frames", [1, 8, 9, 21])
def test_chunks_change_nothing(frames: int, tiny: Backbone) -> None:
    video = golden_frames(frames, 60, 80)
    whole = signals_of(tiny, video, chunk_frames=64)
    for chunk in (2, 8):
        parts = signals_of(tiny, video, chunk_frames=chunk)
        torch.testing.assert_close(parts.received, whole.received, atol=1e-6, rtol=0)
        torch.testing.assert_close(parts.keys, whole.keys, atol=1e-5, rtol=0)


def test_features_are_the_same_with_and_without(tiny: Backbone) -> None:
    with_signals = encode_video(tiny.model, pixels_of(tiny), signals=True)
    without = encode_video(tiny.model, pixels_of(tiny))
    assert torch.equal(with_signals.features, without.features)
    assert without.signals is None
    assert with_signals.signals is not None
    assert with_signals.signals.ms > 0


@dataclass(frozen=True)
class Listener(SingleStage):
    """Keeps everything, and what the tower said."""

    name = "listener"
    title = "Listener"
    needs_vision = True
    heard: ClassVar[list[VisionSignals]] = []

    def select(self, prefill: Prefill, k: int) -> Selection:
        self.heard.append(prefill.signals)
        return Selection(torch.arange(len(prefill.rows)))


@pytest.mark.parametrize("beams", [1, 2])
def test_pixels_through_generate_say_the_same(beams: int, tiny: Backbone) -> None:
    """Twice, with a forward in between: nothing is left over from one prompt to the next."""
    grid = tiny.processor.video.grid(*FRAMES.shape[:3])
    prompt = tiny.processor.prompt("What happens?", frames=len(FRAMES), grid=grid)
    other = pixels_of(tiny, 255 - FRAMES)
    expected = [signals_of(tiny), signals_of(tiny, 255 - FRAMES)]
    answer = {"max_new_tokens": 2, "do_sample": False, "num_beams": beams}
    Listener.heard.clear()
    with Listener(retention=0.5)(tiny.model):
        tiny.model.generate(**{**prompt, **pixels_of(tiny)}, **answer)
        with torch.no_grad():
            tiny.model(**{**prompt, **other}, use_cache=True)
        tiny.model.generate(**{**prompt, **pixels_of(tiny)}, **answer)
    for heard, one in zip(Listener.heard, (expected[0], expected[1], expected[0]), strict=True):
        torch.testing.assert_close(heard.received, one.received, atol=1e-6, rtol=0)
        torch.testing.assert_close(heard.keys, one.keys, atol=1e-5, rtol=0)


def test_features_without_signals_do_not_inherit_those_of_another_video(tiny: Backbone) -> None:
    prompt = tiny.processor.prompt("Why?", frames=len(FRAMES), grid=tiny.processor.video.grid(*FRAMES.shape[:3]))
    bare = model_inputs(prompt, encode_video(tiny.model, pixels_of(tiny)))
    with Listener(retention=0.5)(tiny.model), torch.no_grad():
        tiny.model(**{**prompt, **pixels_of(tiny, 255 - FRAMES)}, use_cache=True)
        encode_video(tiny.model, pixels_of(tiny, 255 - FRAMES))
        with pytest.raises(UnsupportedError, match=r"encode_video\(\.\.\., signals=True\)"):
            tiny.model(**bare, use_cache=True)


def test_black_video_is_finite(tiny: Backbone) -> None:
    signals = signals_of(tiny, np.zeros((4, 60, 80, 3), np.uint8))
    assert signals.received.isfinite().all()
    assert (signals.received > 0).all()
    assert signals.keys.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"), [("vision_feature_layer", [-2, -1]), ("vision_feature_select_strategy", "default")]
)
def test_joined_layers_and_class_tokens_are_refused(
    name: str, value: object, tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signals_refusal(tiny_llava.model) is None
    monkeypatch.setattr(tiny_llava.model.config, name, value)
    assert "\n" not in str(signals_refusal(tiny_llava.model))
    with pytest.raises(UnsupportedError, match="joins several vision layers"), tapped(tiny_llava.model):
        pass
    with pytest.raises(UnsupportedError, match="one layer without a class token"):
        encode_video(tiny_llava.model, pixels_of(tiny_llava), signals=True)


def hooked(model: nn.Module) -> list[str]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [name for name, module in model.named_modules() if any(getattr(module, kind) for kind in kinds)]


def test_nothing_stays_hooked(tiny: Backbone) -> None:
    before = hooked(tiny.model)
    signals_of(tiny)
    assert hooked(tiny.model) == before

    def fail() -> None:
        assert hooked(tiny.model) != before
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), tapped(tiny.model):
        fail()
    assert hooked(tiny.model) == before
    with Listener(retention=0.5)(tiny.model):
        assert hooked(tiny.model) != before
    assert hooked(tiny.model) == before
