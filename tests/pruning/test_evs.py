"""EVS: what changed most is kept, the first frame whole, the budget exact; a drop before the LLM shortens a prompt."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import MethodError
from sharp_demo.pruning.cdpruner import CDPruner
from sharp_demo.pruning.divprune import DivPrune
from sharp_demo.pruning.dycoke import DyCoke
from sharp_demo.pruning.evs import EVS
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.fastvid import FastVID
from sharp_demo.pruning.feather import Feather
from sharp_demo.pruning.flashvid import FlashVID
from sharp_demo.pruning.floors import Uniform
from sharp_demo.pruning.framefusion import FrameFusion
from sharp_demo.pruning.frames import dissimilarity
from sharp_demo.pruning.holitom import HoliTom
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.sharpv import SharpV
from sharp_demo.pruning.vidcom2 import VidCom2
from sharp_demo.pruning.visionzip import VisionZip
from tests.pruning.prompts import Prompt, greedy, naive_logits, scenes, with_frames


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def naive_scores(frames: Tensor) -> list[list[float]]:
    """1 - cos to the same place one frame before, token by token in double precision; infinite in the first frame."""
    rows = [[math.inf] * frames.shape[1]]
    for t in range(1, len(frames)):
        rows.append([])
        for i in range(frames.shape[1]):
            u, v = frames[t, i].double().tolist(), frames[t - 1, i].double().tolist()
            dot = sum(a * b for a, b in zip(u, v, strict=True))
            rows[-1].append(1 - dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v)))
    return rows


def test_dissimilarity_of_directions() -> None:
    u = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    v = torch.tensor([[5.0, 0.0], [0.0, -7.0], [1.0, -1.0], [0.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(dissimilarity(u, v), torch.tensor([0.0, 2.0, math.sqrt(2), 1.0, 0.0]))
    noisy = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert dissimilarity(noisy, noisy.clone()).max() == 0
    assert dissimilarity(noisy, 3 * noisy).max() < 1e-6
    other = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    cosine = torch.nn.functional.cosine_similarity(noisy, other, dim=-1)
    torch.testing.assert_close(dissimilarity(noisy, other), (2 - 2 * cosine).sqrt())


def test_the_first_frame_and_the_largest_changes_are_kept(prompt: Prompt) -> None:
    layout = prompt.layout
    n, size = len(layout), layout.rows * layout.cols
    expected = naive_scores(prompt.features.features[:n].view(layout.frames, size, -1))
    flat = list(chain.from_iterable(expected))
    ranked = sorted((-score, slot) for slot, score in enumerate(flat))
    for retention in (0.3, 0.5, 0.77):
        with EVS(retention=retention)(prompt.model) as run:
            greedy(prompt, steps=1)
        k = budget(retention, n)
        assert run.kept.tolist() == sorted(slot for _, slot in ranked[:k])
        assert run.visual_per_layer == [k] * 4
    torch.testing.assert_close(run.scores["raw"], torch.tensor(flat), atol=1e-5, rtol=0)


def test_a_static_clip_keeps_its_first_frame_and_ties_by_index(prompt: Prompt) -> None:
    layout = prompt.layout
    size = layout.rows * layout.cols
    first = prompt.features.features[:size]
    with with_frames(prompt, first.expand(layout.frames, -1, -1)), EVS(retention=0.5)(prompt.model) as run:
        greedy(prompt, steps=1)
    assert run.kept.tolist() == list(range(budget(0.5, len(layout))))


def test_a_cut_keeps_the_frame_after_it(prompt: Prompt) -> None:
    layout = prompt.layout
    size, cut = layout.rows * layout.cols, layout.frames // 2
    first = prompt.features.features[:size]
    frames = first.expand(layout.frames, -1, -1).clone()
    frames[cut:] = -first
    with with_frames(prompt, frames), EVS(retention=2 / layout.frames)(prompt.model) as run:
        greedy(prompt, steps=1)
    assert run.kept.tolist() == [*range(size), *range(cut * size, (cut + 1) * size)]


def test_below_one_frame_it_is_refused_with_the_limit(prompt: Prompt) -> None:
    layout = prompt.layout
    n, size = len(layout), layout.rows * layout.cols
    with EVS(retention=size / n)(prompt.model) as run:
        greedy(prompt, steps=1)
    assert run.kept.tolist() == list(range(size))
    message = f"evs: keeps the first frame whole, {size} of {n} tokens; ask for a retention of at least {size / n:.4g}"
    with EVS(retention=(size - 1) / n)(prompt.model), pytest.raises(MethodError, match=message):
        greedy(prompt, steps=1)


@pytest.mark.parametrize("reindex", [True, False])
def test_pruning_before_the_llm_is_a_shorter_prompt(prompt: Prompt, reindex: bool) -> None:
    """LLaVA-OneVision renumbers the shorter prompt unless told not to, Qwen2-VL never; answers and caches agree."""
    mrope = prompt.tokens.get("position_ids") is not None
    with EVS(retention=0.4, reindex_positions=reindex)(prompt.model) as run:
        ids, logits, cache = greedy(prompt)
    expected = naive_logits(prompt, {0: run.kept}, ids, renumbered=reindex and not mrope)
    seen = logits[: len(ids) + 1].isfinite()  # placeholders are suppressed
    torch.testing.assert_close(logits[: len(ids) + 1][seen], expected[seen], atol=2e-5, rtol=0)
    text = prompt.length - len(prompt.layout)
    assert {layer.get_seq_length() for layer in cache.layers} == {text + len(run.kept) + 8 + 5}


def test_in_combinations_it_comes_first(prompt: Prompt) -> None:
    n = len(prompt.layout)
    with (EVS(retention=0.5) + FastV(retention=0.2))(prompt.model) as run:
        greedy(prompt, steps=1)
    assert run.visual_per_layer == [budget(0.5, n)] * 2 + [budget(0.2, n)] * 2


WHOLE_FRAMES = (EVS, SharpV, VisionZip, HoliTom, DivPrune, CDPruner, VidCom2, DyCoke, FastVID, FlashVID)


@pytest.mark.parametrize("method", WHOLE_FRAMES, ids=lambda method: method.name)
def test_whole_frames_are_needed(method: type[Method], tiny: Backbone) -> None:
    """Behind a method that has dropped before the LLM it says so, before it has written anything down."""
    prompt = Prompt(tiny, scenes(8)[:1].repeat(8, 0))  # a still, so that FrameFusion merges at once
    for first in (Uniform(retention=0.9, layer=0), FrameFusion(retention=0.5)):
        message = f"^{method.name}: compares whole frames, so it must come first in a combination"
        with (first + method(retention=0.5))(prompt.model) as run, pytest.raises(MethodError, match=message):
            greedy(prompt, steps=1)
        assert run.scores == {}


def test_feathers_grid_needs_whole_frames(prompt: Prompt) -> None:
    message = "^feather: its grid lies over whole frames, so it must come first in a combination"
    with (EVS(retention=0.5) + Feather(retention=0.2))(prompt.model), pytest.raises(MethodError, match=message):
        greedy(prompt, steps=1)
