"""VidCom2 against loops in double precision on random features and states of the embedded models, and by hand."""

from __future__ import annotations

import math
from statistics import fmean, pvariance

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.vidcom2 import VidCom2, calm_channels, frame_counts, kernel, lowest_of_each
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, with_frames


def naive(frames: Tensor, retention: float, total: int | None) -> tuple[list[int], list[int], list[float]]:
    """Kept slots, tokens per frame before the count is made exact, and scores, from the formulas."""
    lists = frames.double().tolist()
    size, width = len(lists[0]), len(lists[0][0])
    flat = [row for frame in lists for row in frame]
    variance = [pvariance([row[c] for row in flat]) for c in range(width)]
    channels = sorted(range(width), key=lambda c: (variance[c], c))[: int(width * 0.5)]

    def unit(row: list[float]) -> list[float]:
        picked = [row[c] for c in channels]
        norm = math.sqrt(sum(x * x for x in picked))
        return [x / norm for x in picked]

    units = [[unit(row) for row in frame] for frame in lists]

    def mean(rows: list[list[float]]) -> list[float]:
        return [fmean(column) for column in zip(*rows, strict=True)]

    def near(u: list[float], v: list[float]) -> float:
        squared = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
        return sum(math.exp(-squared / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    whole = mean([row for frame in units for row in frame])
    video = [[near(row, whole) for row in frame] for frame in units]
    scores = []
    for near_video, frame in zip(video, units, strict=True):
        middle = mean(frame)
        scores.append([v + near(row, middle) for v, row in zip(near_video, frame, strict=True)])
    unlike = [-fmean(vs) for vs in video]
    powers = [math.exp((one - max(unlike)) / 0.01) for one in unlike]
    shares = [min(1.0, retention * (1 + power / sum(powers) - 1 / len(lists))) for power in powers]
    counts = [max(1, round(size * share)) for share in shares]
    ranked = [sorted(range(size), key=lambda i, f=f: (scores[f][i], i)) for f in range(len(lists))]  # type: ignore[misc]
    told = [x for frame in scores for x in frame]
    kept = [f * size + i for f, order in enumerate(ranked) for i in order[: counts[f]]]
    if total is not None:
        while len(kept) > total:
            free = [slot for slot in kept if sum(other // size == slot // size for other in kept) > 1]
            kept.remove(max(free or kept, key=lambda slot: (told[slot], slot)))
        while len(kept) < total:
            left = [slot for slot in range(len(told)) if slot not in kept]
            kept.append(min(left, key=lambda slot: (told[slot], slot)))
    return sorted(kept), counts, told


def run(prompt: Prompt, frames: Tensor | None = None, **options: object) -> Run:
    shown = frames_of(prompt) if frames is None else frames
    with with_frames(prompt, shown), VidCom2(**options)(prompt.model) as record:  # type: ignore[arg-type]
        greedy(prompt, steps=1)
    return record


def random_frames(prompt: Prompt, seed: int = 0) -> Tensor:
    """Features that share a direction, as those of a video do."""
    d, size = prompt.features.features.shape[1], prompt.layout.rows * prompt.layout.cols
    rows = random_rows(len(prompt.layout), d, seed) + 1.5 * random_rows(1, d, seed + 99)
    return rows.view(prompt.layout.frames, size, d)


def test_kernel_by_hand() -> None:
    expected = [5.0, sum(math.exp(-x) for x in (4, 2, 1, 0.5, 0.25))]
    assert kernel(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(expected)


def test_calm_channels_by_hand() -> None:
    rows = torch.tensor([[0.0, 5, 1, 7], [4, 5, 2, 7], [0, 5, 3, 8]])
    assert calm_channels(rows, 0.5).tolist() == [[5, 7], [5, 7], [5, 8]]
    assert calm_channels(rows, 0.1).tolist() == [[5], [5], [5]]


def test_frame_counts_by_hand() -> None:
    """Two frames a hundredth apart: softmax (e, 1) / (1 + e) = .731, .269; shares .2 x 1.231 and .2 x .769 of 10."""
    assert frame_counts(torch.tensor([[1.0] * 10, [1.01] * 10]), 0.2, 0.01).tolist() == [2, 2]
    assert frame_counts(torch.tensor([[1.0] * 100, [1.01] * 100]), 0.2, 0.01).tolist() == [25, 15]
    assert frame_counts(torch.tensor([[0.0] * 10, [4.0] * 10]), 0.8, 0.01).tolist() == [10, 4]  # 1.2 is clamped
    assert frame_counts(torch.ones(3, 9), 0.01, 0.01).tolist() == [1, 1, 1]


def test_the_total_is_made_exact_over_the_whole_video() -> None:
    scores = torch.tensor([[1.0, 9, 3], [2.0, 4, 8], [7.0, 6, 5]])
    counts = torch.tensor([2, 2, 1])
    assert lowest_of_each(scores, counts, None).tolist() == [0, 2, 3, 4, 8]
    assert lowest_of_each(scores, counts, 4).tolist() == [0, 2, 3, 8]  # 4 goes, though 8's score is higher: its last
    assert lowest_of_each(scores, counts, 3).tolist() == [0, 3, 8]
    assert lowest_of_each(scores, counts, 2).tolist() == [0, 3]  # fewer than frames
    assert lowest_of_each(scores, counts, 6).tolist() == [0, 2, 3, 4, 7, 8]
    assert lowest_of_each(torch.zeros(2, 3), torch.tensor([2, 1]), None).tolist() == [0, 1, 3]  # ties: lower index


@pytest.mark.parametrize("retention", [0.05, 0.25, 0.75])
@pytest.mark.parametrize("exact", [True, False])
def test_equals_loops(tiny: Backbone, retention: float, exact: bool) -> None:
    prompt = Prompt(tiny)
    for frames in (frames_of(prompt), random_frames(prompt), random_frames(prompt, 1)):
        k = budget(retention, len(prompt.layout))
        kept, _, told = naive(frames, retention, k if exact else None)
        record = run(prompt, frames, retention=retention, exact=exact)
        assert record.kept.tolist() == kept
        torch.testing.assert_close(-record.scores["raw"], torch.tensor(told), atol=1e-4, rtol=0)
        assert not exact or len(kept) == k


@pytest.mark.parametrize("retention", [0.1, 0.3])
def test_on_states_of_the_embedded_models(world: Prompt, retention: float) -> None:
    """The same tokens but for scores that differ by rounding."""
    k = budget(retention, len(world.layout))
    kept, _, told = naive(frames_of(world), retention, k)
    record = run(world, retention=retention)
    other = set(kept) ^ set(record.kept.tolist())
    assert len(record.kept) == k
    gone, came = (sorted(told[slot] for slot in other if (slot in kept) is was) for was in (True, False))
    assert gone == pytest.approx(came, abs=1e-5)


def test_equal_frames_share_evenly_and_an_odd_one_gets_most(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size, count = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    one = random_frames(prompt)[:1]
    same = run(prompt, one.expand(count, -1, -1), retention=0.3)
    counts = (same.kept // size).bincount(minlength=count)
    assert int(counts.max() - counts.min()) <= 1
    frames = one.repeat(count, 1, 1)
    frames[2] = random_frames(prompt, 5)[0]
    for exact in (True, False):
        odd = (run(prompt, frames, retention=0.3, exact=exact).kept // size).bincount(minlength=count)
        assert int(odd.argmax()) == 2
        assert int(odd[2]) > int(odd.sort().values[-2])
    assert int(odd[2]) <= round(size * 0.3 * (2 - 1 / count))


def test_length_does_not_matter_and_frames_may_be_permuted(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size, frames = prompt.layout.rows * prompt.layout.cols, random_frames(prompt)
    kept = run(prompt, frames, retention=0.3).kept
    assert run(prompt, 3 * frames, retention=0.3).kept.tolist() == kept.tolist()
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(4))
    permuted = run(prompt, frames[order], retention=0.3).kept
    assert sorted((order[permuted // size] * size + permuted % size).tolist()) == kept.tolist()


def test_every_frame_keeps_a_token_while_there_are_enough(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size, count = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    for seed in range(4):
        kept = run(prompt, random_frames(prompt, seed), retention=count / len(prompt.layout)).kept
        assert (kept // size).tolist() == list(range(count))
