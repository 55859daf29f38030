"""Patches that merge inside the vision tower: the matching by a naive loop, and the tower as it was around it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frames import golden_frames
from torch import Tensor

from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.merging import Patches, merged, run_layer
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.errors import UnsupportedError
from tests.conftest import MERGING

HALF = TowerMerging(0.6)


@pytest.fixture(params=MERGING)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone]) -> Backbone:
    """One of each family whose patches can merge."""
    return tiny_of(request.param)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_windows_and_features_of_earlier_layers_are_refused(name: str, tiny_of: Callable[[str], Backbone]) -> None:
    tiny = tiny_of(name)
    assert name not in MERGING
    pixels = tiny.processor.video.pixels(golden_frames(2, 60, 80))
    with pytest.raises(UnsupportedError, match=r"^patches cannot merge inside the vision tower of Qwen(2\.5|3)-VL$"):
        encode_video(tiny.model, pixels, merging=HALF)


def naive(rows: Tensor, sizes: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """One frame, by loops: rows [m, d] and sizes left, and where each of the n rows went."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    n = len(rows)
    best = {a: max(range(1, n, 2), key=lambda b: (float(unit[a] @ unit[b]), -b)) for a in range(0, n, 2)}
    chosen = sorted(best, key=lambda a: (-float(unit[a] @ unit[best[a]]), a))[: min(count, n // 2)]
    left = [i for i in range(n) if i not in chosen]
    values, weights = [], []
    for i in left:
        members = [i, *(a for a in chosen if best[a] == i)]
        weights.append(sum(float(sizes[m]) for m in members))
        values.append(sum(rows[m] * sizes[m] for m in members) / weights[-1])
    return torch.stack(values), torch.tensor(weights), [left.index(best[i] if i in chosen else i) for i in range(n)]


@pytest.mark.parametrize(("n", "count"), [(9, 3), (8, 4), (8, 9), (5, 1), (2, 1), (3, 1)])
def test_merging_is_the_naive_loop(n: int, count: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows, metric = torch.randn(3, n, 5, generator=generator), torch.randn(3, n, 4, generator=generator)
    sizes = torch.randint(1, 4, (3, n), generator=generator).float()
    group = torch.arange(n).expand(3, n)
    after = merged(Patches(rows, sizes, group), metric, count)
    for frame in range(3):
        values, weights, places = naive(rows[frame], sizes[frame], metric[frame], count)
        torch.testing.assert_close(after.rows[frame], values)
        torch.testing.assert_close(after.sizes[frame], weights)
        assert after.group[frame].tolist() == places
        assert after.sizes[frame].sum() == sizes[frame].sum()
        alone = [place for place in set(places) if places.count(place) == 1]
        assert torch.equal(after.rows[frame][alone], rows[frame][[places.index(place) for place in alone]])


def test_a_merged_patch_keeps_its_partners_rotation_and_groups_add_up() -> None:
    rows = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    rotary = torch.arange(6.0)[None, :, None]
    patches = Patches.of(rows, (rotary, -rotary))
    for count in (2, 1):
        patches = merged(patches, patches.rows, count)
    assert patches.rows.shape == (1, 3, 4)
    assert patches.sizes.sum() == 6
    assert torch.bincount(patches.group[0], minlength=3).tolist() == patches.sizes[0].tolist()
    for place, value in enumerate(patches.rotary[0][0, :, 0].tolist()):
        assert int(patches.group[0, int(value)]) == place  # the patch whose rotation a row has is in its group
    assert torch.equal(patches.rotary[1], -patches.rotary[0])
    assert torch.equal(patches.unmerged()[0], patches.rows[0][patches.group[0]])


def tower_runs(backbone: Backbone, rows: Tensor, counts: list[int], **options: Any) -> Tensor:
    patches = Patches.of(rows)
    for layer, count in zip(family_of(backbone.model.config).tower_layers(backbone.model), counts, strict=True):
        patches = run_layer(layer, patches, count, **options)
    return patches.unmerged()


@torch.no_grad()
def test_equal_patches_merge_without_a_trace_only_if_they_weigh_what_they_are(tiny: Backbone) -> None:
    """Nine rows, each at an even and an odd place: after four of them have merged nothing has changed."""
    width = family_of(tiny.model.config).tower_layers(tiny.model)[0].out.out_features
    rows = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 1)
    whole = tower_runs(tiny, rows, [0, 0], proportional=True)
    torch.testing.assert_close(tower_runs(tiny, rows, [4, 0], proportional=True), whole, rtol=0, atol=1e-5)
    assert (tower_runs(tiny, rows, [4, 0], proportional=False) - whole).abs().max() > 1e-3


def test_a_tower_in_which_nothing_merges_is_the_models_own(tiny: Backbone) -> None:
    pixels = tiny.processor.video.pixels(golden_frames(6, 60, 80))
    own = encode_video(tiny.model, pixels)
    same = encode_video(tiny.model, pixels, merging=TowerMerging(1.0))
    torch.testing.assert_close(same.features, own.features, rtol=0, atol=1e-5)
    assert (own.merging, same.merging) == (None, TowerMerging(1.0))


def test_merging_changes_rows_and_nothing_else(tiny: Backbone) -> None:
    pixels = tiny.processor.video.pixels(golden_frames(12, 60, 80))
    own = encode_video(tiny.model, pixels)
    layers = family_of(tiny.model.config).tower_layers(tiny.model)
    lengths: list[int] = []
    hook = layers[-1].mlp_norm.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    less = encode_video(tiny.model, pixels, merging=HALF)
    hook.remove()
    assert less.features.shape == own.features.shape
    assert less.features.isfinite().all()
    assert (less.features - own.features).abs().max() > 1e-3
    config = tiny.model.config
    patches = family_of(config).tower_shape(config.to_dict(), 12).patches
    assert set(lengths) == {HALF.counts(patches, len(layers))[-1]}
    chunked = encode_video(tiny.model, pixels, chunk_frames=2, merging=HALF)
    torch.testing.assert_close(chunked.features, less.features, rtol=0, atol=1e-5)  # frames are independent
    assert all("forward" not in vars(layer.module) for layer in layers)
    assert torch.equal(encode_video(tiny.model, pixels).features, own.features)


def test_what_cannot_merge_is_refused(tiny: Backbone, tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tiny.processor.video.pixels(golden_frames(2, 60, 80))
    with pytest.raises(UnsupportedError, match="cannot be read while patches merge"):
        encode_video(tiny.model, pixels, signals=True, merging=HALF)
    monkeypatch.setattr(tiny_llava.model.config, "vision_feature_layer", [-2, -1])
    with pytest.raises(UnsupportedError, match="joins several vision layers"):
        encode_video(tiny_llava.model, tiny_llava.processor.video.pixels(golden_frames(2, 60, 80)), merging=HALF)
