"""The theatre layer by layer, in headless Chromium on the real engine: its counts are those of the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from sharp_demo import strings
from sharp_demo.page.components import token_columns
from sharp_demo.records import Result
from tests.page.pieces import board_of, served
from tests.page.test_browser import RUN_MS, Watched, browser, pictures, pictures_of, run, saved_json, watched
from tests.views.handmade import make_result

__all__ = ["browser", "watched"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

LINK = "?example=background-of-a-letter&question=What+is+the+background+of+the+letter+L%3F"
# What each column says of the layer as a whole, and of the frame that is shown.
COUNTS = """() => [...document.querySelectorAll('.sd-card')].map(card => [
  card.querySelector('.sd-probe').dataset.entering,
  card.querySelector('.sd-canvas').getAttribute('aria-label'),
])"""


def to_layer(page: Page, layer: int) -> None:
    page.locator(".sd-layer").fill(str(layer))


def test_every_layer_shows_as_many_tokens_as_the_result_says(watched, server, tmp_path):
    """Drops before layer 0, before layer 1, before layer 2, at two and at more layers, and none."""
    watched.open(f"{server}/{LINK}&methods=vanilla,fastv,sharp,pdrop,holitom,visionzip%2Bsharp")
    page = watched.page
    page.wait_for_selector("#clip video")
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    results = saved_json(page, tmp_path / "run.json")["results"]
    per_layer = [result["visual_per_layer"] for result in results]
    layers = len(per_layer[0])
    slider = page.locator(".sd-layer")
    assert (slider.get_attribute("max"), slider.input_value()) == (str(layers), str(layers))
    expect(page.locator(".sd-layer-name")).to_have_text(strings.THEATRE["layer_end"])
    at_the_end = pictures(page)
    assert pictures_of(page) == [result["tokens"]["kept"] for result in results]

    for layer in (0, 1, 2, layers - 1):
        to_layer(page, layer)
        expect(page.locator(".sd-layer-name")).to_have_text(strings.THEATRE["layer_at"].format(layer=layer))
        expected = [counts[layer] for counts in per_layer]
        assert [int(told) for told, _ in page.evaluate(COUNTS)] == expected
        assert pictures_of(page) == expected, layer
    assert len({tuple(counts) for counts in per_layer}) >= 4, "the methods drop at different layers"

    # By keyboard, back to the end, where everything is as it was.
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(".sd-layer-name")).to_have_text(strings.THEATRE["layer_at"].format(layer=0))
    page.locator(".sd-frame").fill("0")
    assert pictures(page)[1] != at_the_end[1], "FastV drops later: here all of its patches are bright"
    slider.focus()
    page.keyboard.press("End")
    page.locator(".sd-frame").fill("0")
    assert slider.get_attribute("aria-valuetext") == strings.THEATRE["layer_end"]
    page.evaluate("document.activeElement.blur()")
    assert pictures_of(page) == [result["tokens"]["kept"] for result in results]

    # A token that is pointed at tells where it was dropped.
    gone = next(cell for cell in range(49) if cell not in results[1]["kept"][0])
    page.locator(".sd-frame").fill("0")
    canvas = page.locator(".sd-canvas").nth(1)
    box = canvas.bounding_box()
    row, col = divmod(gone, 7)
    canvas.hover(position={"x": (col + 0.5) * box["width"] / 7, "y": (row + 0.5) * box["height"] / 7})
    probe = page.locator(".sd-probe").nth(1)
    left = next(layer for layer, count in enumerate(per_layer[1]) if count < per_layer[1][0])
    assert probe.get_attribute("data-left") == str(left)
    expect(probe).to_contain_text(strings.THEATRE["left"].format(layer=left))
    watched.assert_clean()


@contextmanager
def shown(watched: Watched, **over) -> Iterator[tuple[Page, Result]]:
    """The columns of one hand-made result of 60 tokens, 7 of them kept."""
    result = make_result("sharp", merged_into=[], **over)
    with gr.Blocks(analytics_enabled=False) as demo:
        token_columns(board_of(result), elem_id="columns")
    with served(demo) as url:
        watched.open(url)
        watched.page.wait_for_selector(".sd-canvas")
        yield watched.page, result
        watched.assert_clean()


def test_layers_whose_cache_forgets_the_video_say_so(watched):
    cached = [60, 60, 0, 7]
    with shown(watched, visual_per_layer=[60, 60, 7, 7], kv_per_layer=cached) as (page, _):
        for layer, count in enumerate(cached):
            to_layer(page, layer)
            probe = page.locator(".sd-probe")
            assert probe.get_attribute("data-cached") == str(count)
            told = strings.THEATRE["forgotten"].format(cached=count) in probe.inner_text()
            assert told == (layer == 2)


def test_a_new_run_begins_after_all_layers(watched, server):
    watched.open(f"{server}/{LINK}&methods=vanilla,sharp")
    page = watched.page
    page.wait_for_selector("#clip video")
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    to_layer(page, 0)
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas", timeout=RUN_MS)
    expect(page.locator(".sd-layer-name")).to_have_text(strings.THEATRE["layer_end"])
    watched.assert_clean()
