import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from handmade import make_result
from PIL import Image

from sharp_demo.views import overlay


def test_mask_sums_equal_the_kept_counts(results):
    for result in results:
        mask, names = overlay.role_mask(result)
        assert (mask != overlay.DROPPED).sum() == result.tokens.kept
        assert (mask != overlay.DROPPED).sum(axis=1).tolist() == overlay.kept_per_frame(result)
        for frame, (indices, roles) in enumerate(zip(result.kept, result.role, strict=True)):
            assert [names[mask[frame, i]] for i in indices] == roles


def test_unknown_role_gets_its_own_code():
    result = make_result(keep=1, frames=1)
    result.role[0] = ["from-the-future"]
    mask, names = overlay.role_mask(result)
    assert names[mask.max()] == "from-the-future"


def test_sprite_round_trip_keeps_order_and_size():
    shades = np.linspace(0, 240, 5).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (5, 90, 160, 3))
    sprite = overlay.make_sprite(frames, side=80)
    assert (sprite.width, sprite.height, sprite.count) == (80, 45, 5)
    back = sprite.frames()
    assert back.shape == (5, 45, 80, 3)
    assert np.abs(back.mean(axis=(1, 2, 3)) - shades).max() < 4


def test_overlay_darkens_exactly_the_dropped_patches():
    frame = np.full((60, 100, 3), 200, np.uint8)
    kept = np.zeros((3, 5), bool)
    kept[1, 2] = True
    drawn = overlay.draw_overlay(frame, kept)
    inside = np.zeros((60, 100), bool)
    inside[20:40, 40:60] = True
    assert (drawn[inside] == 200).all()
    assert (drawn[~inside] < 120).all()
    assert len(np.unique(drawn[~inside][:, 0])) == 2, "dropped patches carry a hatch, not colour alone"


def test_grid_spans_frames_that_do_not_divide_evenly():
    drawn = overlay.draw_overlay(np.full((50, 37, 3), 200, np.uint8), np.array([[True, False], [False, True]]))
    assert (drawn[:25, :18] == 200).all()
    assert (drawn[25:, 19:] == 200).all()


def test_colour_range_leaves_sinks_out_and_survives_constant_scores():
    scores = [-9.0, *np.linspace(0, 1, 998), 50.0]
    low, high = overlay.colour_range(scores)
    assert low == pytest.approx(0.02, abs=0.002)
    assert high == pytest.approx(1.0, abs=0.01)
    assert overlay.colour_range([3.0, 3.0]) == (3.0, 3.0)


def test_slots_that_were_never_scored_count_nothing():
    layout = make_result(frames=2, rows=1, cols=2, keep=1).layout
    assert overlay.scores_by_frame([0.5, None, None, 0.25], layout).tolist() == [0.5, 0.25]
    assert overlay.colour_range([None, 2.0, 1.0]) == pytest.approx((1.0, 2.0), abs=0.03)
    assert overlay.colour_range([*[1.0] * 9999, 2.0]) == (1.0, 2.0)
    assert overlay.colour_range([None, None]) == (0.0, 0.0)


def test_encode_is_row_major_and_little_endian():
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert list(base64.b64decode(overlay.encode(codes))) == [0, 1, 2, 3, 4, 5]
    swapped = np.array([1.5, np.nan], dtype=">f4")
    back = np.frombuffer(base64.b64decode(overlay.encode(swapped)), "<f4")
    assert back[0] == 1.5
    assert np.isnan(back[1])


def test_layout_frames_map_to_the_first_frame_they_cover():
    result = make_result(frames=3)
    paired = type(result.layout)(3, 3, 5, 2, (0.0, 1.0, 2.0))
    assert overlay.frame_of_clip(paired, 6) == [0, 2, 4]
    assert overlay.frame_of_clip(paired, 5) == [0, 2, 4]
    assert overlay.frame_of_clip(paired, 3) == [0, 2, 2]


def test_filmstrip_is_a_jpeg(clip):
    assert overlay.filmstrip(clip, make_result())[:2] == b"\xff\xd8"


def test_merged_patches_are_hatched_the_other_way_and_bluish():
    kept, absorbed = np.zeros((1, 2), bool), np.array([[False, True]])
    drawn = overlay.draw_overlay(np.full((32, 64, 3), 200, np.uint8), kept, absorbed).astype(int)
    dropped, merged = drawn[:, :32], drawn[:, 32:]
    assert (dropped[..., 2] == dropped[..., 0]).all()
    assert (merged[..., 2] > merged[..., 0]).all()
    for part, step in ((dropped, -1), (merged, 1)):
        hatch = part[..., 0] > part[..., 0].min()
        assert hatch.any()
        assert (np.roll(hatch, (1, step), (0, 1)) == hatch).all(), "a line goes on one row down and one column on"


@pytest.mark.parametrize("role", ["register", "filled", "merged", "grid", "dominant", "contextual", "static", "foveal"])
def test_every_role_but_plain_ones_is_marked_in_its_own_cell(role):
    grey = np.full((1, 60, 100, 3), 128, np.uint8)
    result = make_result(frames=1, keep=1, kept=[[7]], role=[[role]], merged_into=[])
    plain = replace(result, role=[["kept"]])
    marked, bare = (
        np.asarray(Image.open(io.BytesIO(overlay.filmstrip(grey, one, width=100, gap=0))).convert("L")).astype(int)
        for one in (result, plain)
    )
    changed = np.abs(marked - bare) > 40
    assert changed[20:40, 40:60].sum() > 10, "row 1, column 2"
    changed[18:42, 38:62] = False  # JPEG blurs a little
    assert not changed.any()


def test_plain_roles_have_no_mark_and_unknown_ones_their_letter():
    assert [overlay.mark_of(role) for role in ("dropped", "kept", "register", "foveal")] == ["", "", "●", "F"]


def test_a_result_with_fewer_frames_is_drawn_on_the_frames_it_saw():
    whole = make_result(frames=4).layout
    half = replace(make_result(frames=2), layout=replace(make_result(frames=2).layout, timestamps=(0.0, 2.0)))
    assert overlay.nearest_frames(half.layout, whole) == [0, 2]
    assert overlay.nearest_frames(whole, half.layout) == [0, 0, 1, 1]
    assert overlay.fullest_layout([half, make_result(frames=4)]) == whole
    still = replace(whole, timestamps=(0.0,) * 4)
    assert overlay.nearest_frames(still, still) == [0, 1, 2, 3], "a clip that repeats frames"
    grey = np.stack([np.full((30, 40, 3), value, np.uint8) for value in (20, 90, 160, 230)])
    keep_all = replace(half, kept=[list(range(15))] * 2, role=[["kept"] * 15] * 2)
    strip = np.asarray(Image.open(io.BytesIO(overlay.filmstrip(grey, keep_all, gap=0, whole=whole))).convert("L"))
    assert abs(int(strip[5, 50]) - 20) < 8
    assert abs(int(strip[5, 170]) - 160) < 8
