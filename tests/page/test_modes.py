"""The modes next to the comparison, in headless Chromium on the real engine and the embedded model."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from sharp_demo.page.tabs.sweep import STEPS
from tests.page.test_browser import Watched, answer_length, ask, browser, choose, keep_screenshot, upload, watched  # noqa: F401
from tests.page.test_page_quality import serious
from tests.serving import ENDLESS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

HOSTILE = "<img src=x onerror='window.__x=1'> ${window.__x=1} {{constructor.constructor('window.__x=1')()}}"


def open_mode(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press_run(page: Page, mode: str) -> str:
    """Press the mode's Run, wait for the end, and return the phase."""
    page.locator(f"#{mode}-run").click()
    return ended(page, mode)


def ended(page: Page, mode: str) -> str:
    box = f"document.querySelector('#{mode}-status .md-status').dataset.phase"
    page.wait_for_function(f"['done', 'stopped', 'error'].includes({box})", timeout=120_000)
    expect(page.locator(f"#{mode}-run")).to_be_enabled()
    return page.evaluate(box)


def rows(page: Page, table: str) -> list[list[str]]:
    return page.locator(f"#{table} tbody tr").evaluate_all("all => all.map(r => [...r.cells].map(c => c.innerText))")


def test_sweep_shows_where_the_answer_flips(watched, server):  # noqa: F811
    watched.open(server)
    page = watched.page
    choose(page, 1)
    open_mode(page, "Sweep")
    assert not page.locator("#run").is_visible(), "every mode has one Run button"
    page.get_by_label("6 steps, quicker").check()
    page.locator("#methods").get_by_label("FastV", exact=True).uncheck()
    assert press_run(page, "sweep") == "done"
    assert page.locator("#sweep-status p").inner_text().startswith("11 answers in ")
    table = rows(page, "sweep-table")
    assert [row[0].split("\n")[0] for row in table] == ["Feather", "ShaRP"]
    for row in table:
        assert len(row) == 7
        assert row[1] == "✓\n784 (100\u00a0%)", "nothing is pruned at 100 %"
        assert all(cell.startswith(("✓\n", "✗ ")) for cell in row[1:])
        kept = [re.search(r"\n(\d+) \((\S+)\s%\)$", cell).groups() for cell in row[1:]]
        assert [int(count) for count, _ in kept] == [round(share * 784) for share in STEPS["coarse"]]
        assert [float(share) for _, share in kept] == [float(f"{100 * int(count) / 784:.3g}") for count, _ in kept]
        flips = "flips at" in row[0]
        assert flips == any(cell.startswith("✗") for cell in row[1:])
    title = page.locator("#sweep-table tbody td").last.get_attribute("title")
    assert "16 of 784 tokens kept" in title
    page.wait_for_selector("#sweep-plot .js-plotly-plot .scatterlayer")
    watched.assert_clean()


def test_sweep_stops_and_says_what_is_missing(watched, talkative_server, clip):  # noqa: F811
    watched.open(talkative_server)
    page = watched.page
    upload(page, clip)
    ask(page, HOSTILE)
    answer_length(page, ENDLESS)  # so that it is still running when Stop is pressed
    open_mode(page, "Sweep")
    page.locator("#sweep-run").click()
    page.wait_for_function("/of 34/.test(document.querySelector('#sweep-status p').innerText)", timeout=120_000)
    page.locator("#sweep-stop").click()
    assert ended(page, "sweep") == "stopped"
    assert "Stopped after" in page.locator("#sweep-status p").inner_text()
    assert rows(page, "sweep-table")[0][-1] == "not run"
    watched.assert_clean()


def test_the_address_holds_mode_and_plan(watched, server):  # noqa: F811
    question = "What is the background of the letter L?"
    known = {"example": "background-of-a-letter", "question": question, "methods": "vanilla,sharp", "retention": "30"}
    watched.open(f"{server}/?{urlencode({**known, 'mode': 'ablate', 'plan': 'all', 'steps': 'coarse'})}")
    page = watched.page
    address = "Object.fromEntries(new URLSearchParams(location.search))"
    selected = page.locator("#modes [role=tab][aria-selected=true]")
    expect(selected).to_have_text("Ablate")
    expect(page.get_by_label("all 8", exact=True)).to_be_checked()
    expect(page.locator("#run")).to_be_hidden()

    open_mode(page, "Sweep")
    expect(page.get_by_label("6 steps, quicker")).to_be_checked()
    assert page.evaluate(address)["mode"] == "sweep"
    page.wait_for_selector("#clip video")
    assert press_run(page, "sweep") == "done"
    held = page.evaluate(address)
    assert held["mode"] == "sweep"
    assert held["steps"] == "coarse"
    assert {name: held[name] for name in known} == known
    page.reload()
    expect(selected).to_have_text("Sweep")
    expect(page.get_by_label("6 steps, quicker")).to_be_checked()
    expect(page.locator("#question textarea")).to_have_value(question)

    open_mode(page, "Compare")
    expect(page.locator("#run")).to_be_visible()
    assert "mode" not in page.evaluate(address)
    watched.assert_clean()


def test_a_mode_refuses_bad_input_in_one_line(watched, server):  # noqa: F811
    watched.open(server)
    page = watched.page
    page.locator("#clip").get_by_role("button", name="Clear").click()
    open_mode(page, "Sweep")
    assert press_run(page, "sweep") == "error"
    assert page.locator("#sweep-status p").inner_text() == "Choose a video first: upload one or pick an example."
    assert not watched.foreign


def test_ablation_shows_every_setting_beside_vanilla(watched, server):  # noqa: F811
    watched.open(server)
    page = watched.page
    choose(page, 3)
    open_mode(page, "Ablate")
    page.get_by_label("the paper's Table 5").check()
    assert press_run(page, "ablate") == "done"
    table = rows(page, "ablate-table")
    titles = ["Vanilla", "All on", "PosC + RegD", "SegM + PosC", "SegM + RegD", "PosC", "No module"]
    assert sorted(row[0] for row in table) == sorted(titles)
    switches = {row[0]: [cell[0] for cell in row[1:4]] for row in table[1:]}
    assert switches["All on"] == ["●", "●", "●"]
    assert switches["SegM + RegD"] == ["●", "○", "●"]
    assert switches["No module"] == ["○", "○", "○"]
    assert next(row for row in table if row[0] == "All on")[7] == "100 %"
    page.wait_for_selector("#ablate-columns .sd-canvas")
    cards = page.locator("#ablate-columns .sd-card h3").all_inner_texts()
    assert cards == [row[0] for row in table]
    canvases = page.locator("#ablate-columns .sd-canvas")
    pictures = canvases.evaluate_all("all => all.map(one => one.toDataURL())")
    assert len(set(pictures)) > 3, "switches change what is kept"
    watched.assert_clean()


def test_walk_tells_the_numbers_of_this_run(watched, server):  # noqa: F811
    watched.open(server)
    page = watched.page
    choose(page, 1)
    open_mode(page, "How it works")
    assert press_run(page, "walk") == "done"
    page.wait_for_selector("#walk-story .wk-strip")
    titles = page.locator("#walk-story h3").all_inner_texts()
    assert [title[:3] for title in titles] == ["1 ·", "2 ·", "3 ·", "Wha"]
    text = page.locator("#walk-story").inner_text()
    assert "K = 157" in text
    assert "from 157 of 784 visual tokens" in text
    assert page.locator("#walk-story .wk-cell.wk-cut").count() == 2, "three scenes"
    regd = page.locator("#walk-story section").nth(2)
    counts = "all => all.reduce((sum, one) => sum + Number(one.querySelector('small span:last-child').innerText), 0)"
    for step in ("Pre-filter", "Deduplicate", "Fill"):
        before = regd.locator("canvas").last.evaluate("one => one.toDataURL()")
        regd.get_by_text(step, exact=True).click()
        assert regd.locator(".wk-note").inner_text() != ""
        if step != "Fill":
            continue
        assert regd.locator("canvas").last.evaluate("one => one.toDataURL()") != before
        assert regd.locator(".wk-cell").evaluate_all(counts) == 157, "the last picture shows what is kept"
    page.wait_for_selector("#walk-plot .js-plotly-plot .scatterlayer")
    watched.assert_clean()


def test_benchmarks_show_the_stored_tables_without_a_run(watched, server):  # noqa: F811
    watched.open(server)
    page = watched.page
    open_mode(page, "Benchmarks")
    page.wait_for_selector("#bench-plot .js-plotly-plot .scatterlayer")
    first = rows(page, "bench-table")
    assert "ShaRP, K=1" in [row[0] for row in first]
    page.locator("#bench-model").get_by_label("tiny-qwen2-vl").check()
    page.wait_for_function("document.querySelector('#bench-table .md-caption').innerText.startsWith('tiny-qwen2-vl')")
    assert rows(page, "bench-table") != first
    assert rows(page, "bench-ablation")
    assert rows(page, "bench-speed")
    watched.assert_clean()


SIZES = [(width, scheme) for width in (1440, 768, 390) for scheme in ("light", "dark")]
MODES = [("Ablate", "ablate"), ("Sweep", "sweep"), ("How it works", "walk"), ("Benchmarks", None)]


@pytest.mark.full
@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_mode_fits_every_screen(browser, server, width, scheme):  # noqa: F811
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched = Watched(context.new_page())  # noqa: F811
    watched.open(server)
    page = watched.page
    choose(page, 1)
    for title, mode in MODES:
        open_mode(page, title)
        if mode:
            assert press_run(page, mode) == "done"
        page.wait_for_timeout(500)
        wide = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter((node) => {
                const box = node.getBoundingClientRect();
                return box.width > 0 && box.right > innerWidth + 1
                  && !node.closest('.sd-strip-rows, .sd-cards, .charts, #examples, .md-scroll');
            }).map((node) => node.className)"""
        )
        assert not wide, (title, wide)
        assert not serious(page), title
        keep_screenshot(page, f"{mode or 'benchmarks'}-{width}-{scheme}")
    watched.assert_clean()
    context.close()
