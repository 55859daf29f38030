"""The page keeps still while the clock runs: plot code comes before, charts after, and only those in view."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.page.test_browser import Watched, ask, browser, run, see_charts, upload, watched  # noqa: F401

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

LONG_MS = 200
LOADED = "performance.getEntriesByName('plotcode').length"
# Marks when the visitor pressed Run and when the last answer stood, and keeps every task over 50 ms.
RECORD = """() => {
  window.tasks = [];
  new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(one => [one.startTime, one.duration])))
    .observe({ type: "longtask" });
  const mark = (name) => performance.getEntriesByName(name).length || performance.mark(name);
  document.querySelector("#run").addEventListener("click", () => mark("asked"), true);
  new MutationObserver(() => {
    const cards = [...document.querySelectorAll(".sd-card")];
    if (cards.length && cards.every(one => one.dataset.status === "done")) mark("answered");
  }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-status"] });
}"""
BETWEEN = """() => {
  const at = (name) => performance.getEntriesByName(name)[0].startTime;
  return window.tasks.filter(([start, ms]) => start + ms > at("asked") && start < at("answered")).map(([_, ms]) => ms);
}"""


def plots(page: Page) -> int:
    return page.locator(".js-plotly-plot").count()


def first_run(watched: Watched, address: str, clip: Path) -> None:  # noqa: F811
    """Open the page, wait for its idle work, and run it for the first time."""
    watched.open(address)
    page = watched.page
    page.wait_for_function(LOADED, timeout=90_000)
    upload(page, clip)
    ask(page, "What moves?")
    page.evaluate(RECORD)
    assert run(page) == "done"


@pytest.mark.full
def test_no_long_task_before_the_last_answer(watched: Watched, server, clip, measured) -> None:  # noqa: F811
    """By the wall clock, as a visitor feels it; needs an idle machine."""
    first_run(watched, server, clip)
    longest = max(watched.page.evaluate(BETWEEN), default=0)
    measured("longest task of the page's thread from Run to the last answer", f"{longest:.0f} ms", f"{LONG_MS} ms")
    assert longest <= LONG_MS


def test_charts_are_drawn_when_they_are_seen(watched: Watched, server, clip) -> None:  # noqa: F811
    first_run(watched, server, clip)
    page = watched.page
    page.wait_for_timeout(1000)
    assert plots(page) == 0, "all of them are below the fold"
    see_charts(page)
    page.locator("#run").scroll_into_view_if_needed()
    assert run(page) == "done"
    page.wait_for_timeout(1000)
    assert plots(page) == 0, "another run's charts are others"
    watched.assert_clean()
