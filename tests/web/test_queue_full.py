"""A queue that is really full, in three browsers: one runs, one waits, the third is told so and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from sharp_demo import strings
from tests.page.test_browser import ENDED, RUN_MS, Watched, answer_length, ask, browser, upload
from tests.serving import ENDLESS, endless, serving

__all__ = ["browser"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

QUESTION = "Describe everything that happens, at length."


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory, tiny_llava_folder: Path) -> Iterator[str]:
    """An app whose model never ends an answer and whose queue has one place."""
    folder = tmp_path_factory.mktemp("narrow")
    model = endless(tiny_llava_folder, folder / "model")
    settings = {"SHARP_MODEL": str(model), "SHARP_MAX_NEW_TOKENS": str(ENDLESS), "SHARP_QUEUE_SIZE": "1"}
    with serving(folder, **settings) as address:
        yield address


def visitor(browser: Browser, address: str, clip: Path) -> Watched:
    """A page of its own with a clip and a question."""
    watched = Watched(browser.new_context(viewport={"width": 1440, "height": 900}).new_page())
    watched.open(address)
    upload(watched.page, clip)
    ask(watched.page, QUESTION)
    return watched


def phase(page: Page, name: str) -> None:
    page.wait_for_function(f"document.querySelector('.sd').dataset.phase === {name!r}", timeout=RUN_MS)


def test_who_finds_the_queue_full_is_told_so_and_loses_nothing(browser, narrow_server, clip):
    running, waiting, refused = (visitor(browser, narrow_server, clip) for _ in range(3))
    answer_length(running.page, ENDLESS)
    running.page.locator("#run").click()
    running.page.wait_for_selector(".sd-card[data-status=running]", timeout=RUN_MS)
    waiting.page.locator("#run").click()
    expect(waiting.page.locator("#leave")).to_be_visible()

    page = refused.page
    page.locator("#retention input[type=number]").fill("35")
    page.locator("#retention input[type=number]").press("Tab")
    clip_shown = page.locator("#clip video").evaluate("clip => clip.currentSrc")
    page.locator("#run").click()
    phase(page, "error")
    expect(page.locator(".sd-message")).to_have_text(strings.queue_full(1))
    for button, usable in (("#run", True), ("#stop", False)):
        expect(page.locator(button)).to_be_enabled(enabled=usable)
    expect(page.locator("#leave")).to_be_hidden()
    page.get_by_role("tab", name=strings.MODE_SWEEP, exact=True).click()
    page.locator("#sweep-run").click()
    expect(page.locator("#sweep-status p")).to_have_text(strings.queue_full(1), timeout=RUN_MS)
    expect(page.locator("#sweep-run")).to_be_enabled()
    expect(page.locator("#sweep-leave")).to_be_hidden()

    assert page.locator("#question textarea").input_value() == QUESTION
    assert page.locator("#retention input[type=number]").input_value() == "35"
    assert page.locator("#clip video").evaluate("clip => clip.currentSrc") == clip_shown
    expect(running.page.locator(".sd")).to_have_attribute("data-phase", "running")
    expect(waiting.page.locator(".sd")).to_have_attribute("data-phase", "waiting")

    waiting.page.locator("#leave").click()
    phase(waiting.page, "stopped")
    running.page.locator("#stop").click()
    running.page.wait_for_function(ENDED, timeout=RUN_MS)
    page.get_by_role("tab", name=strings.MODE_COMPARE, exact=True).click()
    answer_length(page, 4)
    page.locator("#run").click()
    phase(page, "done")
    assert page.locator(".sd-card[data-status=done]").count() == 4, "there is room again, and it runs as it was set"
    for watched in (running, waiting, refused):
        watched.errors = [one for one in watched.errors if "503" not in one]  # the browser's own line on the refusal
        watched.assert_clean()
        watched.page.context.close()
