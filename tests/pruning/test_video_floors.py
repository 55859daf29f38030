"""Floors that act before the video is encoded: which frames, which sizes, and what they are equal to."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from sharp_demo.backbones.features import encode_video, model_inputs
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.view import WHOLE, VideoShape, View
from sharp_demo.engine.generation import prefill
from sharp_demo.pruning.registry import make_method
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.pruning.video_floors import FewerFrames, SmallerFrames, smaller_grid
from tests.pruning.prompts import QUESTION, Prompt, frames_of, greedy, scenes, shortened


@pytest.mark.parametrize(
    ("rows", "cols", "share", "grid"),
    [
        (14, 14, 0.25, (7, 7)),
        (14, 14, 0.2, (6, 6)),
        (14, 14, 0.15, (5, 5)),
        (14, 14, 0.1, (4, 4)),
        (10, 18, 0.25, (5, 9)),
        (10, 18, 1.0, (10, 18)),
        (3, 4, 0.05, (1, 1)),
        (1, 7, 0.3, (1, 2)),
    ],
)
def test_the_largest_grid_within_the_budget_keeps_the_aspect(
    rows: int, cols: int, share: float, grid: tuple[int, int]
) -> None:
    assert SmallerFrames(retention=share).cells(rows, cols) == grid


def test_smaller_grids_are_bounded() -> None:
    for rows, cols, limit in product((1, 3, 10), (1, 4, 18), (0, 1, 5, 40)):
        high, wide = smaller_grid(rows, cols, limit)
        assert 1 <= high <= rows
        assert 1 <= wide <= cols
        assert high * wide <= max(1, limit)


def test_views() -> None:
    video = VideoShape(8, 10, 18, resizable=True)
    assert FewerFrames(retention=0.4).view(video) == View(frames=3)
    assert FewerFrames(retention=0.01).view(video) == View(frames=1)
    assert FewerFrames(retention=1.0).view(video) == SmallerFrames(retention=1.0).view(video) == WHOLE
    assert SmallerFrames(retention=0.25).view(video) == View(cells=(5, 9))
    fixed = VideoShape(8, 14, 14, resizable=False)
    assert SmallerFrames(retention=0.25).view(fixed) == WHOLE
    assert FewerFrames(retention=0.4).visual_per_layer(4, 8 * 180, 8) == [3 * 180] * 4
    assert SmallerFrames(retention=0.25).visual_per_layer(4, 8 * 196, 8) == [8 * 49] * 4
    for method in (FewerFrames(retention=0.4), SmallerFrames(retention=0.4)):
        assert method.behind(View(frames=3)) == Vanilla()
        assert method.behind(WHOLE) == method


@torch.no_grad()
def test_fewer_frames_of_a_whole_prompt_are_a_shorter_video(tiny_llava: Backbone) -> None:
    frames = scenes(8)
    with FewerFrames(retention=0.4)(tiny_llava.model) as run:
        logits, _, _ = prefill(tiny_llava.model, Prompt(tiny_llava, frames).inputs())
    short = Prompt(tiny_llava, frames[[1, 4, 6]])
    assert len(run.kept) == len(short.layout) == 27
    torch.testing.assert_close(logits, prefill(tiny_llava.model, short.inputs())[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_smaller_frames_of_a_fixed_tower_are_pooled_by_area(tiny: Backbone) -> None:
    prompt, method = Prompt(tiny), SmallerFrames(retention=0.5)
    layout = prompt.layout
    high, wide = method.cells(layout.rows, layout.cols)
    with method(tiny.model) as run:
        ids, logits, _ = greedy(prompt, steps=3)
    grid = frames_of(prompt).unflatten(1, (layout.rows, layout.cols)).permute(0, 3, 1, 2)
    pooled = functional.adaptive_avg_pool2d(grid, (high, wide)).permute(0, 2, 3, 1).flatten(0, 2)
    assert len(run.kept) == layout.frames * high * wide
    compact = "position_ids" not in prompt.tokens
    expected = shortened(prompt, run.kept, pooled, compact=compact, steps=3)
    assert ids == expected[0]
    torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-4)
    gone = [slot for slot in range(len(layout)) if slot not in run.kept.tolist()]
    assert set(run.merged_into[gone].tolist()) <= set(run.kept.tolist())
    assert int((run.merged_into < 0).sum()) == len(run.kept)


@torch.no_grad()
def test_a_resizable_tower_is_given_smaller_frames(tiny_qwen: Backbone) -> None:
    video, frames = tiny_qwen.processor.video, scenes(6, (120, 160))
    assert video.resizable
    small = video.sized(2, 3)
    grid = small.grid(*frames.shape[:3])
    assert grid == [[3, 4, 6]]
    pixels = small.pixels(frames)
    assert pixels["video_grid_thw"].tolist() == grid
    prompt = tiny_qwen.processor.prompt(QUESTION, frames=6, grid=grid)
    logits, _, _ = prefill(tiny_qwen.model, model_inputs(prompt, encode_video(tiny_qwen.model, pixels)))
    assert not logits.isnan().any()


@pytest.mark.parametrize("name", ["fewer_frames", "smaller_frames"])
def test_floors_look_at_nothing(name: str, tiny_of: Callable[[str], Backbone]) -> None:
    prompts = [Prompt(tiny_of("qwen2-vl"), frames) for frames in (scenes(8), np.zeros_like(scenes(8)))]
    kept = []
    for prompt in prompts:
        with make_method(name, 0.4)(prompt.model) as run, torch.no_grad():
            prompt.model(**prompt.inputs())
        kept.append(run.kept.tolist())
    assert kept[0] == kept[1]
