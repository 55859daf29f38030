"""Text between the frames: visual rows that do not stand in one block, and rows that a family adds behind layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.backbones import families
from sharp_demo.backbones.compat import cache_in
from sharp_demo.backbones.family import Encoded, Family
from sharp_demo.backbones.features import black_features, black_video, model_inputs
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning import attach
from sharp_demo.pruning.attention import Span, segment_attention
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.floors import Uniform
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharpv import COSINE, SharpV
from tests.pruning.prompts import Prompt, greedy, masked
from tests.pruning.test_equality import segment_mask

PLAIN_ROWS = {"dedup_absorb": "drop", "cluster_center": "first"}  # survivors stay what they were


class Interleaved(Prompt):
    """Two text tokens before every frame but the first, as other families write time stamps."""

    def __init__(self, backbone: Backbone, stamp: int = 9) -> None:
        super().__init__(backbone)
        whole = super().layout
        size, ids = whole.rows * whole.cols, self.tokens["input_ids"][0].tolist()
        for frame in range(whole.frames - 1, 0, -1):
            at = int(whole.index[frame * size])
            ids[at:at] = [stamp, stamp + 1]
        self.tokens["input_ids"] = torch.tensor([ids])
        self.tokens["attention_mask"] = torch.ones_like(self.tokens["input_ids"])
        self._layout = replace(whole, index=whole.index + 2 * whole.frame, length=len(ids))

    @property
    def layout(self) -> VisualLayout:
        return self._layout


@pytest.fixture
def prompt(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> Interleaved:
    prompt = Interleaved(tiny_llava)
    monkeypatch.setattr(attach, "visual_layout", lambda config, ids, grid: prompt.layout)
    return prompt


@pytest.mark.parametrize("method", [FastV(retention=0.3), Uniform(retention=0.3, layer=0), FastV(retention=0.1)])
def test_dropping_equals_masking_and_leaves_the_text_between(method: Method, prompt: Interleaved) -> None:
    with method(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    ((layer, _),) = method.schedule(4, 1)
    with masked(prompt, layer, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    assert cache.layers[-1].get_seq_length() == prompt.length - len(prompt.layout) + len(run.kept) + 13


def test_segments_are_isolated_and_the_text_between_is_not(prompt: Interleaved) -> None:
    method = ShaRP(retention=0.4, tau_seg=0.999, posc=False, **PLAIN_ROWS)
    with method(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    assert len(run.segments) > 1
    with masked(prompt, 1, run.kept, first_layer_mask=segment_mask(prompt, run.segments)):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prefix_visible", [True, False])
@pytest.mark.parametrize("segments", [((3, 8), (8, 15)), ((3, 15),), ((3, 4), (6, 10), (12, 15))])
def test_segment_attention_with_text_is_the_dense_mask(
    segments: tuple[tuple[int, int], ...], prefix_visible: bool
) -> None:
    text, n = (4, 5, 10, 11), 19
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, 8, generator=generator) for heads in (4, 2, 2))
    segment = torch.full((n,), -1)
    for number, (a, b) in enumerate(segments):
        segment[a:b] = number
    segment[list(text)] = -1
    visual = segment >= 0
    apart = visual[:, None] & visual & (segment[:, None] != segment)
    hidden = visual[:, None] & ~visual & (not prefix_visible)
    mask = torch.ones(n, n, dtype=torch.bool).tril() & ~apart & ~hidden
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    found = segment_attention(q, k, v, Span(3, segments, prefix_visible, text), 0.3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options", [{"segm": False}, {"layer": 2, "segm": False}, {"tau_seg": -1.0, "sys_visible": False}]
)
def test_the_bias_is_the_whole_black_run(options: dict, prompt: Interleaved) -> None:
    processor = prompt.backbone.processor
    with ShaRP(retention=0.4, **options)(prompt.model, processor) as run:
        greedy(prompt, steps=1)
    black = black_features(prompt.model, processor.video, prompt.layout).features
    rows = torch.cat((black, prompt.features.features[len(black) :]))
    with ShaRP(retention=0.4, posc=False, **options)(prompt.model) as whole, torch.no_grad():
        prompt.model(**prompt.inputs(rows), use_cache=True)
    torch.testing.assert_close(run.scores["bias"], whole.scores["raw"], atol=1e-6, rtol=1e-4)


def test_other_text_between_is_another_bias(prompt: Interleaved, tiny_llava: Backbone) -> None:
    other = Interleaved(tiny_llava, stamp=20)
    with ShaRP(retention=0.4)(prompt.model, prompt.backbone.processor) as run:
        cold = []
        for one in (prompt, prompt, other):
            greedy(one, steps=1)
            cold.append(run.bias_cold)
    assert cold == [True, False, True]


def test_memory_that_forgets_the_video_keeps_the_text_between(prompt: Interleaved) -> None:
    with SharpV(retention=0.5, memory_threshold=1.0)(prompt.model) as run, torch.no_grad():
        output = prompt.model(**prompt.inputs(), use_cache=True)
    text = prompt.length - len(prompt.layout)
    forgotten = [score < 1.0 for score in run.layer_scores[COSINE].tolist()]
    assert any(forgotten)
    lengths = [layer.get_seq_length() for layer in cache_in(output).layers]
    assert [length == text for length in lengths] == forgotten


class Injecting:
    """A family that adds something to the visual rows behind layers 0 and 1: `rows` of the prompt, `encode`d ones."""

    def __init__(self, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: Sequence[Tensor] = ()

        def encode(self: Family, model: object, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
            encoded = family.encode(model, pixels, chunk_frames)
            visual = encoded.features[: len(encoded.features) - family.newlines]
            return replace(encoded, injections=(visual.flip(1), visual.roll(3, 1)))

        hooks = {"injections": lambda _, arguments: self.rows, "encode": encode}
        monkeypatch.setattr(families, "FAMILIES", (type("Injecting", (type(family),), hooks)(),))


@pytest.fixture
def injecting(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> tuple[Injecting, Prompt]:
    family = Injecting(tiny.processor.family, monkeypatch)
    prompt = Prompt(tiny)
    family.rows = prompt.features.injections
    return family, prompt


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_what_a_family_adds_behind_layers_follows_the_rows_that_are_left(
    layer: int, injecting: tuple[Injecting, Prompt]
) -> None:
    family, prompt = injecting

    def add(at: int, module: object, args: tuple, output: Tensor) -> Tensor:
        if output.shape[1] != prompt.length:
            return output
        return output.index_add(1, prompt.layout.index, family.rows[at][None])

    with Uniform(retention=0.3, layer=layer)(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    layers = prompt.model.model.language_model.layers
    hooks = [layers[at].register_forward_hook(partial(add, at)) for at in range(len(family.rows))]
    with masked(prompt, layer, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    for hook in hooks:
        hook.remove()
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_bias_has_what_a_black_video_adds_behind_layers(layer: int, injecting: tuple[Injecting, Prompt]) -> None:
    family, prompt = injecting
    processor, options = prompt.backbone.processor, {"layer": layer, "segm": False}
    with ShaRP(retention=0.4, **options)(prompt.model, processor) as run:
        greedy(prompt, steps=1)
    black = black_video(prompt.model, processor.video, prompt.layout, prompt.features)
    with ShaRP(retention=0.4, posc=False, **options)(prompt.model) as whole, torch.no_grad():
        for family.rows in ((), black.injections):
            prompt.model(**model_inputs(prompt.tokens, black), use_cache=True)
            bias = whole.scores["raw"]
            same = torch.allclose(run.scores["bias"], bias, atol=1e-6, rtol=1e-4)
            assert same == bool(family.rows)


def test_what_carries_the_rows_to_add_is_refused_where_nothing_would_add_them(
    tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(tiny_llava)
    with FastV()(prompt.model), torch.no_grad():
        with pytest.raises(UnsupportedError, match="rows= means nothing to the pruned pass"):
            prompt.model(**prompt.inputs(), rows=[], use_cache=True)
        monkeypatch.setattr(type(tiny_llava.processor.family), "injection_arguments", ("rows",))
        prompt.model(**prompt.inputs(), rows=[], use_cache=True)
