"""The grouped menu of methods."""

import re

from sharp_demo.page.menu import group_css, grouped, method_choices
from sharp_demo.pruning.method import GROUPS
from sharp_demo.pruning.registry import METHODS, list_methods


def test_every_method_is_in_one_group_and_in_the_menu():
    assert sorted(name for _, name in method_choices()) == sorted(list_methods())
    assert [title for title, _ in grouped()] == [title for title in GROUPS.values() if title in dict(grouped())]
    assert all(one.group() == key for key, title in GROUPS.items() for one in dict(grouped()).get(title, []))
    assert dict(grouped())["Floors"] == [one for one in METHODS if one.floor]


def test_headings_stand_before_the_first_label_of_each_group():
    placed = dict(re.findall(r'nth-of-type\((\d+)\)::before \{ content: "([^"]+)" / ""', group_css("methods")))
    names = [name for _, name in method_choices()]
    for place, title in placed.items():
        assert dict(grouped())[title][0].name == names[int(place) - 1]
    assert len(placed) == len(grouped())
