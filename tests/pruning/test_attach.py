"""Attaching: one method a model at a time, no trace afterwards, and refusals that name the cause."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from transformers.cache_utils import StaticCache

from sharp_demo.backbones.compat import with_cache
from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.floors import Uniform
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.sharp import ShaRP
from tests.pruning.prompts import Prompt

METHODS = (FastV(retention=0.3), Uniform(retention=0.2), ShaRP(retention=0.25, posc=False))


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def forward(prompt: Prompt, **more: Any) -> Any:
    with torch.no_grad():
        return prompt.model(**{**prompt.inputs(), "use_cache": True, **more})


def trace(model: torch.nn.Module) -> list[str]:
    """Whatever attaching could have left on a model."""
    core, lm = model.model, model.model.language_model
    modules = (model, core, lm, *(part for layer in lm.layers for part in (layer, layer.self_attn, layer.mlp)))
    names = {"forward", "_pruned_by", "_validate_generation_mode", "_compiled_call_impl"}
    return [name for module in modules for name in names & set(vars(module))] + [
        "hook" for module in modules if module._forward_pre_hooks
    ]


@pytest.fixture
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(work: list[tuple[Prompt, Method]], trials: int) -> Counter[str]:
    """Attach and run from one thread each, all at once, and count what came of it."""
    came: Counter[str] = Counter()
    gate = Barrier(len(work))

    def once(prompt: Prompt, method: Method) -> None:
        for _ in range(trials):
            gate.wait()
            try:
                with method(prompt.model) as run:
                    forward(prompt)
                    right = run.method == method and len(run.kept) == run.visual_per_layer[-1] < len(prompt.layout)
                came["pruned" if right else "wrong"] += 1
            except UnsupportedError as error:
                came[str(error)] += 1

    threads = [Thread(target=once, args=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


@pytest.mark.usefixtures("quick_switches")
def test_of_three_threads_on_one_model_one_attaches_at_a_time(prompt: Prompt) -> None:
    came = race([(prompt, method) for method in METHODS], trials=20)
    refused = "a pruning method is already attached to this model: leave its `with` block first"
    assert set(came) <= {"pruned", refused}
    assert came["pruned"] >= 20
    assert came.total() == 60
    assert not trace(prompt.model)


@pytest.mark.usefixtures("quick_switches")
def test_threads_on_two_models_do_not_meet(tiny_llava: Backbone, tiny_qwen: Backbone) -> None:
    prompts = [Prompt(backbone) for backbone in (tiny_llava, tiny_qwen)]
    assert race(list(zip(prompts, METHODS, strict=False)), trials=20) == {"pruned": 40}
    assert not any(trace(prompt.model) for prompt in prompts)


def test_an_error_inside_a_layer_leaves_no_trace(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("on purpose")

    for hook in ("attention", "after_attention", "after_prefill"):
        with monkeypatch.context() as patch:
            patch.setattr(Uniform, hook, fail)
            with pytest.raises(RuntimeError, match="on purpose"), Uniform()(prompt.model):
                forward(prompt)
        assert not trace(prompt.model)


def test_a_static_cache_is_refused_by_name(prompt: Prompt) -> None:
    static = StaticCache(config=prompt.model.config.get_text_config(), max_cache_len=256)
    with FastV()(prompt.model):
        with pytest.raises(UnsupportedError, match="static cache"):
            forward(prompt, **with_cache(static))
        with pytest.raises(UnsupportedError, match="static cache"):
            prompt.model.generate(**prompt.inputs(), max_new_tokens=2, cache_implementation="static")


def test_arguments_that_a_pruned_pass_cannot_honour_are_refused_by_name(prompt: Prompt) -> None:
    with FastV()(prompt.model):
        with pytest.raises(UnsupportedError, match="labels="):
            forward(prompt, labels=prompt.tokens["input_ids"])
        with pytest.raises(UnsupportedError, match="cu_seq_lens_q="):
            forward(prompt, cu_seq_lens_q=torch.tensor([0, 3]))
        forward(prompt, output_attentions=False)


def test_images_alone_are_not_pruned_and_the_run_says_so(tiny_qwen: Backbone) -> None:
    prompt, model = Prompt(tiny_qwen), tiny_qwen.model
    grid = prompt.tokens["video_grid_thw"].clone()
    grid[0, 0] = 1
    count = int(grid.prod()) // 4
    patches = prompt.pixels["pixel_values_videos"][: int(grid.prod())]
    start, end = model.config.vision_start_token_id, model.config.vision_end_token_id
    ids = torch.tensor([[5, start, *[model.config.image_token_id] * count, end, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid}
    inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        expected = model(**inputs).logits
        with FastV()(model) as run:
            forward(prompt)
            assert run.note == ""
            assert torch.equal(model(**inputs).logits, expected)
            assert run.note == "The prompt holds images and no video, so nothing was pruned."
            assert run.layout is None
            assert run.visual_per_layer == []
            forward(prompt)
            assert run.note == ""
            assert run.layout is not None


def test_a_compiled_model_is_pruned_as_the_model_itself(prompt: Prompt) -> None:
    model = prompt.model

    def kept(callee: Any) -> tuple[list[int], torch.Tensor]:
        run: Run
        with FastV(retention=0.3)(callee) as run, torch.no_grad():
            logits = callee(**prompt.inputs(), use_cache=True).logits
        return run.kept.tolist(), logits

    expected = kept(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(**prompt.inputs(), use_cache=True)  # its graph was made without the method
    found = kept(compiled)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    model.model.language_model.layers[0].compile(backend="eager")
    try:
        with pytest.raises(UnsupportedError, match="compiled"):
            kept(model)
    finally:
        del model.model.language_model.layers[0]._compiled_call_impl
    assert not trace(model)
