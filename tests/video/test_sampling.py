"""Which frames are taken and how large they become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharp_demo.video.sampling import bin_centres, fit, on_screen, square_pixels


def test_bin_centres_are_the_middles_of_equal_bins():
    assert bin_centres(8.0, 4) == [1.0, 3.0, 5.0, 7.0]


def test_the_frame_on_screen_is_the_last_one_that_has_started():
    times = [0.0, 0.1, 0.2, 3.0]
    assert on_screen(times, [0.05, 0.1, 0.19, 0.25, 2.9, 3.0, 9.0]) == [0, 1, 1, 2, 2, 3, 3]


def test_a_rounded_clock_does_not_push_sampling_one_frame_back():
    # 30 frames a second in a container that counts milliseconds: frame 1 starts at 0.033, not 0.0333.
    assert on_screen([0.0, 0.0334, 0.0667], [1 / 30]) == [1]


def test_a_time_before_the_first_frame_gets_the_first_frame():
    assert on_screen([5.0, 6.0], [4.0]) == [0]


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((1920, 1080), 768, (768, 432)),
        ((1080, 1920), 768, (432, 768)),
        ((160, 120), 768, (160, 120)),  # never enlarged
        ((161, 121), 768, (160, 120)),  # made even
        ((4096, 2), 768, (768, 2)),
        ((1, 1), 768, (1, 1)),
        ((1000, 1000), 337, (336, 336)),
    ],
)
def test_fit(size, max_side, expected):
    assert fit(*size, max_side) == expected


@given(st.integers(2, 8192), st.integers(2, 8192), st.integers(16, 2000))
def test_fit_is_even_never_larger_and_keeps_the_aspect_to_a_pixel_or_two(width, height, max_side):
    w, h = fit(width, height, max_side)
    scale = min(1, max_side / max(width, height))
    assert w % 2 == h % 2 == 0
    assert 2 <= w <= min(width, max_side)
    assert 2 <= h <= min(height, max_side)
    assert abs(w - width * scale) <= 2
    assert abs(h - height * scale) <= 2


def test_square_pixels_shortens_the_squeezed_side():
    assert square_pixels(720, 576, 16 / 11) == (720, 396)
    assert square_pixels(720, 480, 8 / 9) == (640, 480)
    assert square_pixels(720, 480, 1e9) == (720, 480)
