"""The scripts' modules: their pure parts, run in Chromium without a page, and that they fit into one scope."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
import pytest

from sharp_demo.page.components import HERE, SCRIPTS
from tests.page.test_browser import browser  # noqa: F401

LOADED = {"plots", "plotcode", "address", "inputs", "stage"}  # in the page's head, not in a component


@pytest.fixture(scope="module")
def scripts(browser) -> Any:  # noqa: F811
    """Run an expression in the scope of the theatre's modules but its last, which needs its component."""
    page = browser.new_page()
    modules = "".join(map(module, SCRIPTS["theatre"][:-1]))
    source = 'const STRINGS = { greet: "Hello {who}, {more}" };\n' + modules

    def run(expression: str, *values: Any) -> Any:
        program = f"(given) => new Function('given', {source!r} + 'return ' + {expression!r})(given)"
        return page.evaluate(program, list(values))

    yield run
    page.close()


def module(name: str) -> str:
    return (HERE / "js" / f"{name}.js").read_text("utf-8")


def packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def test_texts_are_filled_with_what_is_given_and_nothing_else(scripts):
    assert scripts("say('greet', { who: given[0] })", "<b> {more} $& constructor") == (
        "Hello <b> {more} $& constructor, {more}"
    )


def test_packed_arrays_arrive_as_they_were_sent(scripts):
    values = np.array([0, 1, 127, 255], np.uint8)
    assert scripts("[...bytes(given[0])]", packed(values)) == values.tolist()
    scores = np.array([0.0, 0.5, 2.0, np.nan, -1.0], np.float32)
    score = {"values": packed(scores), "low": 0.0, "high": 1.0}
    assert scripts("[...unpackScore(given[0]).codes]", score) == [0, 128, 255, 0, 0]


def test_the_colour_map_has_the_ends_of_viridis(scripts):
    assert scripts("[VIRIDIS.length, VIRIDIS[0], VIRIDIS[255]]") == [256, "rgb(68,1,84)", "rgb(253,231,37)"]


def test_equal_scores_share_a_rank_and_missing_ones_have_none(scripts):
    ranks = scripts("(({places, count}) => [[...places], count])(ranking(Float32Array.from([3, NaN, 5, 3, 1])))")
    assert ranks == [[2, 0, 1, 2, 4], 4]


@pytest.mark.parametrize(
    ("frames", "runs"), [([], []), ([4], [[4, 5]]), ([0, 1, 2, 5, 7, 8], [[0, 3], [5, 6], [7, 9]])]
)
def test_frames_join_into_runs(scripts, frames, runs):
    assert scripts("runsOf(given[0])", frames) == runs


@pytest.mark.parametrize(("now", "frame"), [(-1, 0), (0.49, 0), (0.5, 0), (0.51, 1), (9, 2)])
def test_the_frame_nearest_in_time_is_shown_the_earlier_of_two(scripts, now, frame):
    assert scripts("nearest([0, 1, 2], given[0])", now) == frame


def test_lines_are_wrapped_at_blanks_and_long_words_are_cut(scripts):
    wrapped = scripts(
        "wrap({ measureText: (text) => ({ width: text.length }) }, given[0], 10)", "one two  three " + "x" * 23
    )
    assert all(len(line) <= 10 for line in wrapped)
    assert "".join(wrapped) == "one two three " + "x" * 23
    assert wrapped[0] == "one two "


ASKED = {"video": f"{'a' * 64}/a.mp4", "question": "Q", "methods": ["x", "y"], "retention": 20, "sharp.penalty": 1}
NOW = {"video": {"path": "clips/a.mp4"}, "question": " Q ", "methods": ["y", "x"], "retention": 20, "seed": 1}


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({}, []),
        ({"video": {"path": f"uploads/{'a' * 64}/a.mp4"}, "sharp.penalty": 1.0}, []),
        ({"video": {"path": f"uploads/{'b' * 64}/a.mp4"}}, ["video"]),
        ({"video": None, "question": ""}, ["video", "question"]),
        ({"methods": ["x"], "retention": 19}, ["methods", "retention"]),
        ({"sharp.penalty": 0.5}, ["sharp.penalty"]),
    ],
)
def test_inputs_that_no_longer_say_what_was_asked_are_named(scripts, now, changed):
    tell = (
        f"((window) => {{ {module('inputs')}\nwindow.sharpInputs.now = given[1]; return window.sharpInputs; }})({{}})"
    )
    assert scripts(f"{tell}.changed(given[0])", ASKED, {**NOW, **now}) == changed


@pytest.mark.parametrize("component", SCRIPTS)
def test_modules_of_one_component_share_no_name(component):
    declared = re.compile(r"^(?:async )?(?:function|const|let) (\$|\w+)", re.MULTILINE)
    names = [name for one in SCRIPTS[component] for name in declared.findall(module(one))]
    assert sorted(names) == sorted(set(names))


def test_every_module_is_used_by_a_component():
    files = {path.stem for path in (HERE / "js").glob("*.js")}
    own = {path.stem for path in (HERE / "html").glob("*.html")}
    assert files == LOADED | own | {module for modules in SCRIPTS.values() for module in modules}
