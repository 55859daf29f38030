"""An impatient visitor: a double click on Run, a reload midway, two tabs at once."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Page, expect

from sharp_demo import strings
from tests.page.test_browser import ENDED, RUN_MS, Watched, answer_length, ask, browser, run, upload, watched
from tests.page.test_faults import health
from tests.serving import ENDLESS

__all__ = ["browser", "watched"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def wait_idle(server: str, seconds: float) -> None:
    """Wait until the server's model is free."""
    end = time.monotonic() + seconds
    while (report := health(server)[1])["running"] or report["queue"]["waiting"]:
        assert time.monotonic() < end, report
        time.sleep(0.1)


def restored(page: Page, tokens: int) -> None:
    """Wait until the page has read this length of the answer from its address: it would undo what is set before."""
    page.get_by_role("button", name="Advanced").click()
    expect(page.locator("#max-new input[type=number]")).to_have_value(str(tokens), timeout=RUN_MS)


def test_a_double_click_runs_once(watched, server, clip):
    watched.open(server)
    page = watched.page
    upload(page, clip)
    ask(page, "What moves?")
    assert run(page) == "done"
    before = health(server)[1]["runs"]
    page.locator("#run").dblclick()
    page.wait_for_function("document.querySelector('#run').disabled")
    page.wait_for_function(ENDED, timeout=RUN_MS)
    expect(page.locator("#run")).to_be_enabled()
    assert page.locator(".sd-card[data-status=done]").count() == 4
    wait_idle(server, 10)
    assert health(server)[1]["runs"] == before + 1
    assert len(watched.errors) <= 1, "the refusal of the second press, which browsers log"
    watched.errors.clear()
    watched.assert_clean()


def test_a_reload_midway_ends_the_run_and_the_page_works_again(watched, talkative_server, clip):
    watched.open(talkative_server)
    page = watched.page
    upload(page, clip)
    ask(page, "Describe everything.")
    answer_length(page, ENDLESS)
    page.locator("#run").click()
    page.wait_for_selector(".sd-card[data-status=running]", timeout=RUN_MS)
    page.reload()
    watched.errors.clear()  # what the page says whose streams a reload cuts
    wait_idle(talkative_server, 15)
    assert page.locator("#run").is_enabled()
    restored(page, ENDLESS)
    upload(page, clip)
    ask(page, "What moves?")
    answer_length(page, 4)
    assert run(page) == "done"
    watched.assert_clean()


def test_two_tabs_of_one_visitor_do_not_mix(browser, talkative_server, clip, checkerboard):
    """The second waits while the first runs; Stop in the second's page stops nothing of the first."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tabs = [Watched(context.new_page()) for _ in range(2)]
    for tab, own, length in zip(tabs, (clip, checkerboard), (ENDLESS, 4), strict=True):
        tab.open(f"{talkative_server}/?max_new_tokens={length}")
        restored(tab.page, length)
        upload(tab.page, own)
        ask(tab.page, f"What is on {own.stem}?")
    first, second = (tab.page for tab in tabs)
    first.locator("#run").click()
    first.wait_for_selector(".sd-card[data-status=running]", timeout=RUN_MS)
    second.locator("#run").click()
    expect(second.locator("#leave")).to_be_visible()
    second.locator("#leave").click()
    expect(second.locator(".sd-message")).to_have_text(strings.LEFT)
    expect(first.locator(".sd")).to_have_attribute("data-phase", "running")
    second.locator("#run").click()
    expect(second.locator("#leave")).to_be_visible()
    first.locator("#stop").click()
    first.wait_for_function(ENDED, timeout=RUN_MS)
    second.wait_for_function(ENDED, timeout=RUN_MS)
    phases = [page.locator(".sd").get_attribute("data-phase") for page in (first, second)]
    assert phases == ["stopped", "done"]
    assert second.locator(".sd-card[data-status=done]").count() == 4
    for page, own in zip((first, second), (clip, checkerboard), strict=True):
        assert page.locator("#question textarea").input_value() == f"What is on {own.stem}?"
    for tab in tabs:
        tab.assert_clean()
    context.close()
