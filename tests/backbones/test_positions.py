"""Qwen2-VL: the released position rule, and that the text model really sees it in prefill and decode."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from frames import golden_frames

from sharp_demo.backbones.compat import cache_in, with_cache
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.load import Backbone


def naive_positions(ids: list[int], video: int, grid: list[int]) -> list[list[int]]:
    """The released rule, token by token: everything after the video starts above every position before it."""
    t, h, w = grid[0], grid[1] // 2, grid[2] // 2
    positions: list[list[int]] = []
    cells = iter([(a, b, c) for a in range(t) for b in range(h) for c in range(w)])
    start = ids.index(video)
    for token in ids:
        if token == video:
            positions.append([start + cell for cell in next(cells)])
        else:
            top = max((max(p) for p in positions), default=-1)
            positions.append([top + 1] * 3)
    return positions


@contextmanager
def seen_positions(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the position_ids of every call of the text model."""
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"].clone()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 60, 80), (5, 80, 60), (24, 40, 40), (1, 60, 80)])
def test_released_rule(tiny_qwen: Backbone, frames: int, height: int, width: int) -> None:
    inputs = tiny_qwen.processor(golden_frames(frames, height, width), "What happens?")
    ids, grid = inputs["input_ids"], inputs["video_grid_thw"]
    config = tiny_qwen.model.config
    naive = torch.tensor(naive_positions(ids[0].tolist(), config.video_token_id, grid[0].tolist())).T
    assert torch.equal(inputs["position_ids"][1:, 0], naive)
    assert inputs["position_ids"][0, 0].tolist() == list(range(ids.shape[1]))
    theirs, _ = tiny_qwen.model.model.get_rope_index(ids, inputs["mm_token_type_ids"], video_grid_thw=grid)
    before = int((ids[0] == config.video_token_id).nonzero()[-1]) + 1
    assert torch.equal(theirs[:, 0, :before], naive[:, :before])
    longer = grid[0, 0] > max(grid[0, 1:]) // 2
    assert torch.equal(theirs[:, 0], naive) == (not longer)  # 5.23 differs exactly when time is the longest axis


def test_generate_sees_released_positions_in_prefill_and_decode(
    tiny_qwen: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tiny_qwen.processor(golden_frames(24, 40, 40), "What happens?")
    left_over = torch.tensor([[1000]])  # as another request would leave it on the model
    monkeypatch.setattr(tiny_qwen.model.model, "rope_deltas", left_over)
    with seen_positions(tiny_qwen.model) as seen:
        tiny_qwen.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(seen[0], inputs["position_ids"])
    last = inputs["position_ids"][..., -1:]
    for step, positions in enumerate(seen[1:], start=1):
        assert torch.equal(positions, last + step)
    assert len(seen) == 5
    assert tiny_qwen.model.model.rope_deltas is left_over


def test_forward_decode_and_generate_agree(tiny_qwen: Backbone) -> None:
    """Prefill and decode by plain forward, and a forward of the whole sequence, choose generate's tokens."""
    model = tiny_qwen.model
    inputs = tiny_qwen.processor(golden_frames(24, 40, 40), "What happens?")
    output = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        step = model(**inputs, use_cache=True)
        for index, token in enumerate(new):
            assert int(step.logits[0, -1].argmax()) == int(token)
            position = inputs["position_ids"][..., -1:] + index + 1
            step = model(input_ids=token[None, None], position_ids=position, **with_cache(cache_in(step)))
    whole = {**inputs, "input_ids": output, "attention_mask": torch.ones_like(output)}
    whole["position_ids"] = family_of(model.config).positions(model.config, output, inputs["video_grid_thw"])
    whole["mm_token_type_ids"] = (output == model.config.video_token_id).int() * 2
    with torch.no_grad():
        logits = model(**whole).logits[0]
    start = inputs["input_ids"].shape[1] - 1
    assert logits[start:-1].argmax(-1).tolist() == new.tolist()


def test_requests_do_not_disturb_each_other(tiny_qwen: Backbone) -> None:
    first = tiny_qwen.processor(golden_frames(24, 40, 40), "What happens?")
    other = tiny_qwen.processor(golden_frames(2, 60, 80), "Where is the dog?")
    alone = tiny_qwen.model.generate(**first, max_new_tokens=6, do_sample=False)
    tiny_qwen.model.generate(**other, max_new_tokens=6, do_sample=False)
    assert torch.equal(tiny_qwen.model.generate(**first, max_new_tokens=6, do_sample=False), alone)
