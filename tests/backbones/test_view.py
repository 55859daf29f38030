"""What the vision tower computes, counted by torch, and which frames a view shows."""

from itertools import pairwise

import pytest
import torch
from frames import golden_frames
from torch.utils.flop_counter import FlopCounterMode

from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.view import WHOLE, TowerMerging, TowerShape, VideoShape, View
from sharp_demo.cost import tower_tflops


def counted(tiny: Backbone, pixels: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> int:
    """FLOPs of encoding: matrix products as torch counts them, and attention by its shapes."""
    attention = 0

    def attend(query: torch.Tensor, key: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        nonlocal attention
        attention += 4 * query.shape[:2].numel() * query.shape[2] * key.shape[2] * query.shape[3]
        return original(query, key, *args, **kwargs)

    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    with FlopCounterMode(display=False) as counter:
        encode_video(tiny.model, pixels)
    by_kernel = counter.get_flop_counts()["Global"]
    return attention + sum(flops for kernel, flops in by_kernel.items() if "attention" not in str(kernel))


def test_tower_flops_are_those_torch_counts(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = golden_frames(6, 32, 64)  # 2 x 4 tokens: windows that no edge cuts off
    layout = visual_layout(
        tiny.model.config, (whole := tiny.processor(frames, "Why?"))["input_ids"], whole.get("video_grid_thw")
    )
    config = tiny.model.config
    tower = family_of(config).tower_shape(config.to_dict(), layout.rows * layout.cols)
    _, exact = tower_tflops(tower, layout.frames)
    pixels = tiny.processor.video.pixels(frames)
    assert exact * 1e12 == pytest.approx(counted(tiny, pixels, monkeypatch), rel=1e-9)
    twice = tiny.processor.video.pixels(golden_frames(6, 32, 64)[[0, 1, 0, 1, 2, 3]])
    encoded = encode_video(tiny.model, twice).encoded
    assert encoded < layout.frames
    assert tower_tflops(tower, encoded)[1] * 1e12 == pytest.approx(counted(tiny, twice, monkeypatch), rel=1e-9)


def test_tower_flops_by_hand() -> None:
    tower = TowerShape(width=2, intermediate=3, layers=2, head_dim=1, patches=4, values=5, former=7)
    layer = 4 * 4 * 4 + 2 * 16 * 2 + 2 * 4 * 2 * 3
    assert tower.macs() == 4 * 5 * 2 + 2 * layer + 7
    assert tower.paper_macs() == 2 * layer
    # Two of four patches merge in the first layer, before its MLP.
    first, last = 4 * 4 * 4 + 2 * 16 * 2 + 2 * 2 * 2 * 3, 4 * 2 * 4 + 2 * 4 * 2 + 2 * 2 * 2 * 3
    assert tower.paper_macs(TowerMerging(0.5)) == first + last
    assert tower.macs(TowerMerging(0.5)) == 4 * 5 * 2 + first + last + 7 + 2 * 2 * 1
    windowed = TowerShape(width=2, intermediate=3, layers=2, head_dim=1, patches=4, values=5, former=7, pairs=(16, 8))
    assert tower.macs() - windowed.macs() == 2 * 8 * 2


@pytest.mark.parametrize(("share", "left"), [(521 / 729, 521), (313 / 729, 313), (1.0, 729), (0.0001, 15)])
def test_as_many_patches_merge_in_every_layer_but_the_last(share: float, left: int) -> None:
    counts = TowerMerging(share).counts(729, 26)
    assert len(counts) == 27
    assert counts[0] == 729
    assert counts[-1] == counts[-2] == left
    gone = [before - after for before, after in pairwise(counts[:-1])]
    assert all(0 <= r <= n // 2 for r, n in zip(gone, counts, strict=False))
    assert max(gone) - min(gone) <= 1 or left == 15  # half of 29


def test_a_shallow_tower_merges_half_at_most() -> None:
    assert TowerMerging(0.1).counts(24, 2) == [24, 12, 12]
    assert TowerMerging(0.1).counts(24, 1) == [24, 24]


def test_frames_of_a_view_are_the_middles_of_equal_parts() -> None:
    assert WHOLE.sampled(5, 1) == [0, 1, 2, 3, 4]
    assert View(frames=2).sampled(8, 1) == [2, 6]
    assert View(frames=2).sampled(16, 2) == [2, 6, 10, 14]
    assert View(frames=9).sampled(3, 1) == [0, 1, 2]
    for count in range(1, 40):
        for frames in range(1, count + 1):
            shown = View(frames=frames).sampled(count, 1)
            assert len(set(shown)) == frames
            assert shown == sorted(shown)
            assert shown[-1] < count


def test_the_layout_that_a_view_leaves() -> None:
    video = VideoShape(8, 14, 14, resizable=False)
    assert video.seen(WHOLE) == video
    assert video.seen(View(frames=3, cells=(7, 6))).tokens == 3 * 42
