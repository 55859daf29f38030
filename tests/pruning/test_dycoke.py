"""DyCoke's first stage against loops in double precision, and clips by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import MethodError
from sharp_demo.pruning.dycoke import DyCoke, compared_with
from sharp_demo.pruning.schedule import budget
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, scenes, with_frames


def kept(prompt: Prompt, retention: float, frames: Tensor | None = None) -> list[int]:
    shown = frames_of(prompt) if frames is None else frames
    with with_frames(prompt, shown), DyCoke(retention=retention)(prompt.model) as run:
        greedy(prompt, steps=1)
    return run.kept.tolist()


def naive(frames: Tensor, k: int) -> tuple[list[int], list[float]]:
    """Kept slots, window by window in double precision, and every token's 1 - cos (2 in whole frames)."""
    count, size = frames.shape[:2]
    rows, change = frames.double(), []
    for frame in range(count):
        place = frame % 4
        other = frame - place + (2 if place == 3 else 0)
        for i in range(size):
            u, v = rows[frame, i], rows[other, i]
            change.append(2.0 if place == 0 else 1 - float(u @ v) / float(u.norm() * v.norm()))
    pruned = [frame for frame in range(count) if frame % 4]
    left = k - (count - len(pruned)) * size
    slots = [frame * size + i for frame in range(0, count, 4) for i in range(size)]
    for place, frame in enumerate(pruned):
        own = (place + 1) * left // len(pruned) - place * left // len(pruned)
        order = sorted(range(size), key=lambda i, f=frame: (-round(change[f * size + i], 12), i))  # type: ignore[misc]
        slots += [frame * size + i for i in order[:own]]
    return sorted(slots), change


def test_windows_by_hand() -> None:
    assert compared_with(10) == [0, 0, 0, 2, 4, 4, 4, 6, 8, 8]
    assert compared_with(1) == [0]


def test_by_hand(tiny_llava: Backbone) -> None:
    """One token changes in each frame of a window: against the first frame, and in the fourth against the third."""
    prompt = Prompt(tiny_llava, scenes(4))
    size, d = prompt.layout.rows * prompt.layout.cols, prompt.features.features.shape[1]
    frames = random_rows(size, d)[None].repeat(4, 1, 1)
    frames[1, 4] *= -1
    frames[2, 7] *= -1
    frames[3, 7] *= -1  # as the third frame, so nothing new
    frames[3, 2] *= -1
    assert kept(prompt, (size + 3) / (4 * size), frames) == [*range(size), size + 4, 2 * size + 7, 3 * size + 2]


def test_a_still_keeps_whole_frames_and_the_lowest_indices(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size, count = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    still = random_rows(size, prompt.features.features.shape[1])[None].expand(count, -1, -1)
    pruned = [frame for frame in range(count) if frame % 4]
    whole = [frame * size + i for frame in range(0, count, 4) for i in range(size)]
    found = kept(prompt, (len(whole) + 2 * len(pruned)) / len(prompt.layout), still)
    assert found == sorted([*whole, *(frame * size + i for frame in pruned for i in (0, 1))])


@pytest.mark.parametrize("count", [8, 10, 14])
@pytest.mark.parametrize("retention", [0.4, 0.475, 0.9])
def test_equals_loops(tiny: Backbone, count: int, retention: float) -> None:
    prompt = Prompt(tiny, scenes(count))
    d, layout = prompt.features.features.shape[1], prompt.layout
    k = budget(retention, len(layout))
    random = random_rows(len(layout), d).view(layout.frames, -1, d)
    for frames in (frames_of(prompt), random):
        found = kept(prompt, retention, frames)
        assert found == naive(frames, k)[0]
        assert len(found) == k


def test_on_states_of_the_embedded_models(world: Prompt) -> None:
    """The same tokens but for changes that differ by rounding."""
    k = budget(0.35, len(world.layout))
    expected, change = naive(frames_of(world), k)
    found = kept(world, 0.35)
    assert len(found) == len(expected) == k
    gone, came = (
        sorted(change[slot] for slot in one - other)
        for one, other in ((set(expected), set(found)), (set(found), set(expected)))
    )
    assert gone == pytest.approx(came, abs=1e-6)


def test_below_the_whole_frames_it_is_refused_with_the_limit(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    layout = prompt.layout
    size, windows = layout.rows * layout.cols, -(-layout.frames // 4)
    least = DyCoke().least_retention(28, layout.frames)
    assert kept(prompt, least) == [frame * size + i for frame in range(0, layout.frames, 4) for i in range(size)]
    message = (
        f"^dycoke: keeps every fourth frame whole, {windows * size} of {len(layout)} tokens; ask for a retention of at "
        f"least {windows / layout.frames:.4g}"
    )
    with DyCoke(retention=least - 1 / len(layout))(prompt.model), pytest.raises(MethodError, match=message):
        greedy(prompt, steps=1)


def test_one_frame_stays_whole(tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(2)[:1].repeat(2, 0))
    still = DyCoke(retention=1 - 1e-9)
    with still(prompt.model) as run, torch.no_grad():
        greedy(prompt, steps=1)
    assert len(run.kept) == len(prompt.layout)
