"""What dropping tokens means in every family: masking, the bias of a black video, and the backends agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sharp_demo.backbones.families import FAMILIES
from sharp_demo.backbones.features import black_video, model_inputs
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.cost import ModelShape
from sharp_demo.engine.figures import prefill_tflops
from sharp_demo.engine.generation import prefill
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.floors import Uniform
from sharp_demo.pruning.framefusion import FrameFusion
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, decoder, greedy, masked, scenes
from tests.pruning.test_matrix import positions_of

DROPS = [
    Uniform(retention=0.3, layer=0),
    *(FastV(retention=0.3, layer=layer) for layer in (1, 2, 3)),
    FastV(retention=0.1, layer=3),
]


@pytest.fixture(scope="module", params=[family.name for family in FAMILIES])
def prompt(request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone]) -> Prompt:
    return Prompt(tiny_of(request.param), scenes(10))


@torch.no_grad()
def test_the_whole_video_is_its_plain_model_bit_for_bit(prompt: Prompt) -> None:
    """From pixels and from features, in a forward, and through `generate` with a cache."""
    plain = {**prompt.tokens, **prompt.pixels}
    expected = prompt.model(**plain).logits
    answer = prompt.model.generate(**plain, max_new_tokens=6, do_sample=False)
    assert answer.shape[1] > prompt.length
    for method in (FastV(retention=1), ShaRP(retention=1), FrameFusion(retention=1)):
        with method(prompt.model, prompt.backbone.processor):
            assert torch.equal(prompt.model(**prompt.inputs(), use_cache=True).logits, expected)
            assert torch.equal(prompt.model.generate(**plain, max_new_tokens=6, do_sample=False), answer)


@pytest.mark.parametrize("method", DROPS, ids=lambda method: f"{method.retention:g} before {method.layer}")
def test_dropping_equals_masking(method: Method, prompt: Prompt) -> None:
    """Prefill, eight tokens and a second turn."""
    with method(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    ((layer, _),) = method.schedule(4, 1)
    with masked(prompt, layer, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("segm", [False, True])
def test_the_bias_is_the_whole_black_run(segm: bool, prompt: Prompt) -> None:
    processor = prompt.backbone.processor
    with ShaRP(retention=0.4, segm=segm)(prompt.model, processor) as run:
        greedy(prompt, steps=1)
    black = black_video(prompt.model, processor.video, prompt.layout, prompt.features)
    with ShaRP(retention=0.4, segm=False, posc=False)(prompt.model) as whole:
        prompt.model(**model_inputs(prompt.tokens, black), use_cache=True)
    torch.testing.assert_close(run.scores["bias"], whole.scores["raw"], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_the_rows_keep_their_positions(prompt: Prompt) -> None:
    """Every row that is left turns by the position that the whole prompt gave it."""
    with FastV(retention=0.3)(prompt.model) as run:
        prompt.model(**prompt.inputs(), use_cache=True)
    lm = decoder(prompt.model)
    rotary: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = lm.layers[3].register_forward_pre_hook(
        lambda module, args, kwargs: rotary.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    with FastV(retention=0.3)(prompt.model):
        prompt.model(**prompt.inputs(), use_cache=True)
    hook.remove()
    text = set(range(prompt.length)) - set(prompt.layout.index.tolist())
    assert positions_of(prompt, rotary[0]) == sorted(text | set(prompt.layout.index[run.kept].tolist()))


@pytest.mark.parametrize("method", [FastV(retention=0.3), ShaRP(retention=0.3), FrameFusion(retention=0.5)])
def test_eager_and_sdpa_keep_the_same_tokens(method: Method, prompt: Prompt, cpu_settings: Settings) -> None:
    settings = cpu_settings.model_copy(update={"attention": "eager"})
    eager = Prompt(load(str(prompt.backbone.folder), settings), scenes(10))
    with method(prompt.model, prompt.backbone.processor) as one:
        logits = greedy(prompt, steps=3)[1]
    with method(eager.model, eager.backbone.processor) as other:
        expected = greedy(eager, steps=3)[1]
    assert torch.equal(one.kept, other.kept)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_exact_flops_are_those_torch_counts(prompt: Prompt, cpu_settings: Settings) -> None:
    """The decoder on the eager path, whose attention multiplies squares; tests/test_engine.py has every method."""
    settings = cpu_settings.model_copy(update={"attention": "eager"})
    eager = Prompt(load(str(prompt.backbone.folder), settings), scenes(10))
    shape = ModelShape.from_config(decoder(eager.model).config)
    text = eager.length - len(eager.layout)
    for method in (FastV(retention=1), FastV(retention=0.3)):
        with method(eager.model) as run, FlopCounterMode(display=False) as counter, torch.inference_mode():
            prefill(eager.model, eager.inputs())
        exact = 1e12 * prefill_tflops(shape, method, run, eager.length).exact
        above = sum(2 * shape.query_width * n * (n - 1) for n in (text + visual for visual in run.visual_per_layer))
        assert counter.get_total_flops() == pytest.approx(exact + above, rel=1e-9)
