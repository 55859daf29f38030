"""The Qwen families: the released position rule, and that the text model really sees it in prefill and decode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from frames import golden_frames

from sharp_demo.backbones.compat import cache_in, with_cache
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import ModelError


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


@pytest.mark.parametrize(
    ("step", "ticks"), [(None, [0, 2, 4]), (0.5, [0, 2, 4]), (0.25, [0, 1, 2]), (0.35, [0, 1, 2]), (1 / 6, [0, 0, 1])]
)
def test_time_counts_half_seconds_in_qwen_2_5(
    step: float | None, ticks: list[int], tiny_of: Callable[[str], Backbone]
) -> None:
    """Sampled every `step` seconds, a temporal patch lasts two of them and a second has two ticks."""
    tiny = tiny_of("qwen2.5-vl")
    times = None if step is None else [1.0 + step * frame for frame in range(6)]
    inputs = tiny.processor(golden_frames(6, 60, 80), "What happens?", times)
    ids, grid, seen = inputs["input_ids"], inputs["video_grid_thw"], inputs["position_ids"][1:, 0]
    video = (ids[0] == tiny.model.config.video_token_id).nonzero()[:, 0]
    start = int(video[0])
    assert (seen[0, video].view(3, -1) == start + torch.tensor(ticks)[:, None]).all()
    end = int(seen[:, : int(video[-1]) + 1].max()) + 1  # of the released code; transformers 5 leaves time out
    rest = torch.arange(ids.shape[1] - int(video[-1]) - 1) + end
    assert torch.equal(seen[:, int(video[-1]) + 1 :], rest.expand(3, -1))
    spacing = None if step is None else torch.tensor([2 * step])
    theirs, _ = tiny.model.model.get_rope_index(
        ids, inputs["mm_token_type_ids"], video_grid_thw=grid, second_per_grid_ts=spacing
    )
    upto = int(video[-1]) + 1
    assert torch.equal(theirs[:, 0, :upto], seen[:, :upto])
    assert torch.equal(theirs[:, 0], seen) == (ticks[-1] < 4)


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 60, 80), (5, 80, 60), (24, 40, 40), (1, 60, 80)])
def test_qwen3_positions_are_the_official_ones(
    frames: int, height: int, width: int, tiny_of: Callable[[str], Backbone]
) -> None:
    tiny = tiny_of("qwen3-vl")
    inputs = tiny.processor(golden_frames(frames, height, width), "What happens?")
    theirs, _ = tiny.model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    assert torch.equal(inputs["position_ids"][1:], theirs)


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize(("frames", "height", "width"), [(4, 60, 80), (3, 80, 60), (24, 40, 40)])
def test_the_grid_is_read_back_from_the_positions(
    name: str, frames: int, height: int, width: int, tiny_of: Callable[[str], Backbone]
) -> None:
    tiny = tiny_of(name)
    times = [0.1 * frame for frame in range(frames)]  # several frames share a tick of Qwen2.5-VL
    inputs = tiny.processor(golden_frames(frames, height, width), "What happens?", times)
    family, config = tiny.processor.family, tiny.model.config
    found = family.grid_of_positions(config, inputs["input_ids"], inputs["position_ids"])
    assert torch.equal(found, inputs["video_grid_thw"])
    plain = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    with pytest.raises(ModelError):
        family.layout(config, inputs["input_ids"], family.grid_of_positions(config, inputs["input_ids"], plain))


def test_qwen3_writes_the_time_of_every_temporal_patch(tiny_of: Callable[[str], Backbone]) -> None:
    processor = tiny_of("qwen3-vl").processor
    inputs = processor(golden_frames(7, 60, 80), "Why?", [0.5 * frame for frame in range(7)])
    pads = "<|video_pad|>" * int((inputs["input_ids"] == processor.config.video_token_id).sum() // 4)
    text = processor.tokenizer.decode(inputs["input_ids"][0]).replace(pads, "")
    stamps = "".join(f"<{time} seconds><|vision_start|><|vision_end|>" for time in ("0.2", "1.2", "2.2", "3.0"))
    assert text == f"<|im_start|>user\n{stamps}Why?<|im_end|>\n<|im_start|>assistant\n"
