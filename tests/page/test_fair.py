"""The first run in a fresh tab is timed as fairly as a call of the API, for which no browser draws anything."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file

from tests.page.test_browser import Watched, ask, browser, run, saved_json, upload  # noqa: F401
from tests.serving import serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

QUESTION = "What moves?"
METHODS = ["vanilla", "fastv", "feather", "sharp"]
WITHIN = 0.25
Ratios = dict[str, float]


def ratios(results: list[dict[str, Any]], clock: str) -> Ratios:
    """Vanilla's prefill over each method's, the median of the ratios within a round, noisy or not."""
    rounds = {result["method"]: result["latency_ms"][clock] for result in results}
    vanilla = rounds.pop("vanilla")
    assert vanilla, "nothing was timed"
    return {
        name: statistics.median(other / own for other, own in zip(vanilla, mine, strict=True))
        for name, mine in rounds.items()
    }


def in_a_fresh_tab(browser, address: str, clip: Path, folder: Path) -> list[dict[str, Any]]:  # noqa: F811
    """Results of the first run in a tab that was just opened, as a visitor has it."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    watched = Watched(context.new_page())
    watched.open(address)
    upload(watched.page, clip)
    ask(watched.page, QUESTION)
    assert run(watched.page) == "done"
    results = saved_json(watched.page, folder / "first.json")["results"]
    context.close()
    return results


def by_the_api(client: Client, clip: Path) -> list[dict[str, Any]]:
    inputs = {"question": QUESTION, "methods": METHODS, "retention": 0.2, "match": "tokens"}
    return client.predict(video=handle_file(clip), **inputs, api_name="/compare")["results"]


def apart(one: Ratios, other: Ratios) -> dict[str, float]:
    return {name: abs(value / other[name] - 1) for name, value in one.items()}


def medians(of: list[Ratios]) -> Ratios:
    return {name: statistics.median(one[name] for one in of) for name in of[0]}


def test_a_fresh_tab_gives_the_apis_ratios_in_processor_time(browser, server, clip, tmp_path) -> None:  # noqa: F811
    """Interleaved, medians of three, by the clock that a busy machine disturbs least."""
    client, pages, apis = Client(server, verbose=False), [], []
    for _ in range(3):
        pages.append(ratios(in_a_fresh_tab(browser, server, clip, tmp_path), "cpu_rounds"))
        apis.append(ratios(by_the_api(client, clip), "cpu_rounds"))
    page, api = medians(pages), medians(apis)
    assert set(page) == set(api) == set(METHODS) - {"vanilla"}
    assert all(off <= WITHIN for off in apart(page, api).values()), (pages, apis)


@pytest.mark.full
def test_a_fresh_tab_gives_the_apis_ratios(
    browser,  # noqa: F811
    clip,
    tmp_path,
    measured: Callable[[str, str, str], None],
) -> None:
    """Interleaved, medians of five, by the wall clock that the page shows."""
    pages, apis = [], []
    with serving(tmp_path, SHARP_TIMING_S="2") as address:
        client = Client(address, verbose=False)
        for _ in range(5):
            pages.append(ratios(in_a_fresh_tab(browser, address, clip, tmp_path), "rounds"))
            apis.append(ratios(by_the_api(client, clip), "rounds"))
    page, api = medians(pages), medians(apis)
    for name, off in apart(page, api).items():
        measured(
            f"{name}'s prefill speed-up, first run in a fresh tab / API, medians of 5",
            f"{page[name]:.2f} / {api[name]:.2f}",
            f"{WITHIN:.0%} apart",
        )
        assert off <= WITHIN, (page, api)
