"""Where an answer flips, on hand-made points."""

from __future__ import annotations

import pytest
from handmade import make_result

from sharp_demo.views.sweep import Point, Verdict, point_of, probability_by_retention, verdict


def points(text: str) -> list[Point]:
    """One point per character, from 100 % down by halves: "s" the same answer, "d" another one."""
    return [Point(0.5**i, 10, 20, "x", letter == "s", 0.5) for i, letter in enumerate(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssss", Verdict(0.125, None, None)),
        ("ssdd", Verdict(0.5, 0.25, None)),
        ("sdsd", Verdict(1.0, 0.5, 0.25)),
        ("s", Verdict(1.0, None, None)),
    ],
)
def test_verdict_is_the_first_flip_from_above(text, expected):
    assert verdict(points(text)) == expected
    assert verdict(points(text)[::-1]) == expected


def test_a_point_says_what_was_achieved():
    vanilla, sharp = make_result("vanilla"), make_result("sharp", keep=7, answer="Blue.", first_token_prob=0.25)
    assert point_of(sharp, 0.2, vanilla) == Point(0.2, 7, 60, "Blue.", False, 0.25)


def test_plot_runs_from_many_tokens_to_few_and_crosses_other_answers():
    figure = probability_by_retention([("ShaRP", "sharp", points("ssd")[::-1])])
    line = figure.data[0]
    assert list(line.x) == [100, 50, 25]
    assert line.marker.symbol[2] == "x-open"
    assert "x-open" not in line.marker.symbol[:2]
    assert figure.layout.xaxis.range[0] > figure.layout.xaxis.range[1]
