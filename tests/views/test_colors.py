"""Colours tell methods apart."""

from itertools import combinations

from sharp_demo.pruning.registry import METHODS, list_methods
from sharp_demo.views.colors import SPARE_COLORS, method_color


def channels(color: str) -> list[int]:
    return [int(color[at : at + 2], 16) for at in (1, 3, 5)]


def test_every_registered_method_has_a_colour_of_its_own():
    assert all(method.color for method in METHODS)
    colors = [method_color(name) for name in list_methods()] + list(SPARE_COLORS)
    for one, other in combinations(colors, 2):
        apart = sum((a - b) ** 2 for a, b in zip(channels(one), channels(other), strict=True)) ** 0.5
        assert apart > 35, (one, other)
