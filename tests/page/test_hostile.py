"""A model that answers with markup, template syntax, control characters and right-to-left text, in every place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from sharp_demo import strings
from tests.page.test_browser import PAYLOADS, Watched, ask, browser, run, saved_json, saved_report, upload, watched
from tests.page.test_modes import open_mode, press_run
from tests.serving import serving

__all__ = ["browser", "watched"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

ANSWER = " ".join([*PAYLOADS, "</script><script>window.__x=1</script>", "{% for a in b %}", "long " * 60 + "end"])
QUESTION = " ".join(PAYLOADS)[:190]
PROGRAM = f"""
from sharp_demo.backbones.processor import Processor
Processor.decode = lambda self, ids: {ANSWER!r}
import app
app.main()
"""


@pytest.fixture(scope="module")
def hostile_server(tmp_path_factory) -> Iterator[str]:
    """The app with a model whose every answer is `ANSWER`."""
    with serving(tmp_path_factory.mktemp("hostile"), ("-c", PROGRAM)) as address:
        yield address


def asked(watched: Watched, address: str, clip: Path) -> Page:
    watched.open(address)
    upload(watched.page, clip)
    ask(watched.page, QUESTION)
    return watched.page


def assert_inert(page: Page, place: Locator) -> None:
    """Nothing of it became an element or ran."""
    page.wait_for_timeout(300)
    assert page.evaluate("window.__x === undefined")
    assert place.locator("img:not([src^='data:image/jpeg']), script:not([type])").count() == 0


def test_compare_picture_and_report_show_it_whole(watched, hostile_server, clip, tmp_path):
    page = asked(watched, hostile_server, clip)
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    assert page.locator("#columns .sd-answer").evaluate_all("all => all.map(one => one.textContent)") == [ANSWER] * 4
    assert_inert(page, page.locator("#columns"))

    # The picture writes every word, in lines that fit; none is left out.
    page.evaluate(
        """() => {
          window.written = [];
          const write = CanvasRenderingContext2D.prototype.fillText;
          CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
            if (this.canvas.width > 700) window.written.push([text, x + this.measureText(text).width, this.canvas.width,
              y, this.canvas.height]);
            return write.call(this, text, x, y, ...rest);
          };
        }"""
    )
    with page.expect_download() as download:
        page.locator("#save-picture").click()
    download.value.save_as(tmp_path / "comparison.png")
    written = page.evaluate("window.written")
    bare = re.sub(r"\s", "", "".join(text for text, *_ in written))
    assert bare.count(re.sub(r"\s", "", ANSWER)) == 4
    assert re.sub(r"\s", "", QUESTION) in bare
    assert all(right <= width and y < height for _, right, width, y, height in written)

    data = saved_json(page, tmp_path / "comparison.json")
    page.locator("#by-layer").click()
    page.wait_for_selector("#layers .js-plotly-plot", timeout=60_000)
    report = saved_report(page, tmp_path / "comparison.html")
    watched.assert_clean()
    shown = report.page.locator(".answer").evaluate_all("all => all.map(one => one.textContent)")
    expected = [data["request"]["question"].strip(), *[ANSWER.strip()] * 4]
    assert [text.strip() for text in shown] == [text.replace("\0", "\ufffd") for text in expected]
    assert_inert(report.page, report.page.locator("body > :not(.charts)"))
    report.assert_clean()


def test_ablate_sweep_and_walk_show_it_as_text(watched, hostile_server, clip):
    page = asked(watched, hostile_server, clip)
    open_mode(page, strings.MODE_ABLATE)
    assert press_run(page, "ablate") == "done"
    answers = page.locator("#ablate-table td[data-kind=same]").evaluate_all("all => all.map(one => one.textContent)")
    assert answers == [ANSWER.strip()] * 7
    page.wait_for_selector("#ablate-columns .sd-canvas")
    shown = page.locator("#ablate-columns .sd-answer").evaluate_all("all => all.map(one => one.textContent)")
    assert shown == [ANSWER] * 7
    assert_inert(page, page.locator("#ablate-table, #ablate-columns"))

    open_mode(page, strings.MODE_SWEEP)
    page.get_by_label("6 steps, quicker").check()
    for label in ("FastV", "Feather"):
        page.locator("#methods").get_by_label(label, exact=True).uncheck()
    assert press_run(page, "sweep") == "done"
    expect(page.locator("#sweep-table tbody td[data-kind=same]")).to_have_count(6)
    assert ANSWER.strip() in page.locator("#sweep-table .md-caption").text_content()
    assert ANSWER.strip() in page.locator("#sweep-table tbody td").last.get_attribute("title")
    assert_inert(page, page.locator("#sweep-table"))

    open_mode(page, strings.MODE_WALK)
    assert press_run(page, "walk") == "done"
    page.wait_for_selector("#walk-story .wk-strip")
    assert f"“{ANSWER.strip()}”" in page.locator("#walk-story section").last.text_content()
    assert_inert(page, page.locator("#walk-story"))
    watched.assert_clean()
