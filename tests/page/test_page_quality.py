"""Who can use the page, how fast it is, and what it lets people keep, in headless Chromium on the real engine."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import urlparse

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from sharp_demo import strings
from sharp_demo.page.components import component, token_columns
from sharp_demo.pruning.outcome import Role
from sharp_demo.records import Result
from tests.page.pieces import board_of, served
from tests.page.test_browser import PAYLOADS, Watched, ask, browser, run, see_charts, upload, watched
from tests.views.handmade import make_result

__all__ = ["browser", "watched"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
# Findings of these two kinds with the markup they are about, and how many rules found nothing to object to.
SERIOUS = """async (only) => {
  const {violations, passes} = await axe.run(document, only.length ? {runOnly: only} : {});
  const serious = violations.filter(found => ['serious', 'critical'].includes(found.impact));
  return [serious.map(found => [found.id, ...found.nodes.map(node => node.html.slice(0, 200))]), passes.length];
}"""
LINK = "?example=background-of-a-letter&question=What+is+the+background+of+the+letter+L%3F"
FRAME_MS, PAYLOAD_BYTES, PAINT_MS, READY_MS = 33, 3_000_000, 2000, 4000


def opened(watched: Watched, server: str, query: str = LINK) -> Page:
    """Open a link to an example and wait until it is filled in."""
    watched.open(f"{server}/{query}")
    watched.page.wait_for_selector("#clip video")
    return watched.page


def serious(page: Page, only: Sequence[str] = ()) -> list:
    """What axe has to say about the page as it stands; `only`: by these rules, else by all."""
    page.wait_for_timeout(500)  # transitions change colours for a moment
    page.evaluate(AXE)
    found, passed = page.evaluate(SERIOUS, list(only))
    assert passed > (0 if only else 20), "it looked"
    return found


@pytest.mark.parametrize(("scheme", "only"), [("light", []), ("dark", ["color-contrast"])], ids=["light", "dark"])
def test_axe_finds_nothing_serious(browser, server, scheme, only):
    """Of all rules only contrast depends on the colour scheme."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    watched = Watched(context.new_page())
    page = opened(watched, server)
    assert not serious(page, only)
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    see_charts(page)
    page.locator("#by-layer").click()
    page.wait_for_selector("#layer-map .js-plotly-plot", timeout=60_000)
    for tab in page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            assert not serious(page, only), tab.inner_text()
    watched.assert_clean()
    context.close()


def test_a_link_restores_the_settings_and_says_what_it_cannot(watched, server):
    page = opened(watched, server, LINK + "&methods=vanilla,sharp&retention=10&sharp.posc=false&seed=oops")
    expect(page.locator("#question textarea")).to_have_value("What is the background of the letter L?")
    expect(page.locator("#retention input[type=number]")).to_have_value("10")
    assert page.locator("#methods input:checked").count() == 2
    page.wait_for_function('document.body.innerText.includes("The link\'s seed cannot be used")')
    assert run(page) == "done"
    address = page.evaluate("Object.fromEntries(new URLSearchParams(location.search))")
    assert address["example"] == "background-of-a-letter"
    assert (address["methods"], address["retention"], address["sharp.posc"]) == ("vanilla,sharp", "10", "false")
    page.locator("#api button").first.click()
    program = page.locator("#api code").first.text_content()
    assert f'Client("{server}")' in program, "the examples name the server the page came from"
    watched.assert_clean()


def test_picture_of_the_comparison(watched, server, clip):
    """A PNG with every column; a hostile question is drawn, not run, and changes nothing but its own line."""
    watched.open(server)
    page = watched.page
    upload(page, clip)
    pictures = []
    for question in ("What moves?", " ".join(PAYLOADS)[:190]):
        ask(page, question)
        assert run(page) == "done"
        page.wait_for_selector(".sd-canvas")
        with page.expect_download() as download:
            page.locator("#save-picture").click()
        assert download.value.suggested_filename == "comparison.png"
        picture = Image.open(io.BytesIO(download.value.path().read_bytes()))
        assert picture.format == "PNG"
        pictures.append(picture.convert("RGB"))
    for picture in pictures:
        assert picture.width >= 4 * 360
        strip = picture.crop((20, picture.height - 400, 380, picture.height - 100))
        assert len(strip.getcolors(1 << 20)) > 50, "the frames are in it"
    assert pictures[0].height < pictures[1].height, "a longer question takes more lines"
    watched.assert_clean()


def test_nothing_moves_for_those_who_asked_for_it(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 800}, reduced_motion="reduce")
    watched = Watched(context.new_page())
    page = opened(watched, server)
    page.locator("#examples button").first.hover()
    assert page.locator("#examples video").evaluate_all("all => all.every(clip => clip.paused)")
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    assert page.locator(".sd-play").get_attribute("aria-pressed") == "false", "frames play only when told to"
    running = "document.getAnimations().filter(one => one.playState === 'running').length"
    page.wait_for_function(f"{running} === 0")
    watched.assert_clean()
    context.close()


def test_roles_nobody_foresaw_have_a_mark_and_a_line_in_the_legend(watched):
    """Methods name their own roles; the columns show any, and what it was merged into, on any grid."""
    result = in_role("foveal", merged_into=[[1, 0]])
    with gr.Blocks(analytics_enabled=False) as demo:
        token_columns(board_of(result), elem_id="columns")
    with served(demo) as url:
        watched.open(url)
        page = watched.page
        page.wait_for_selector(".sd-canvas")
        page.locator(".sd-help summary").click()
        shown = page.locator(".sd-legend li").evaluate_all("all => all.map(one => one.innerText.replace(/\\s+/g, ' '))")
        assert shown == ["dropped", "F foveal", "merged into another"]
        frame = next(number for number, kept in enumerate(result.kept) if kept)
        page.locator(".sd-frame").fill(str(frame))
        assert f"{len(result.kept[frame])} foveal" in page.locator(".sd-probe").inner_text()
        watched.assert_clean()


def in_role(role: str, **over) -> Result:
    """A hand-made result, all of whose tokens were kept as `role`."""
    result = make_result("sharp", **over)
    result.role = [[role] * len(kept) for kept in result.kept]
    return result


@pytest.mark.parametrize("role", ["dominant", "contextual", "static"])
def test_roles_of_other_methods_have_words(role):
    assert role in {one.label for one in Role}
    assert strings.THEATRE["roles"][role] != role


def test_strip_pauses_and_a_table_keeps_its_arrow_keys(watched):
    with gr.Blocks(analytics_enabled=False) as demo:
        token_columns(board_of(in_role("dominant")), elem_id="columns")
        component("table", {"caption": "Wide", "head": ["x" * 80] * 40, "rows": [["y"] * 40]}, elem_id="table")
    with served(demo) as url:
        watched.open(url)
        page = watched.page
        page.wait_for_selector(".sd-strip-canvas")
        page.locator(".sd-help summary").click()
        assert "most attended" in page.locator(".sd-legend").inner_text()
        page.locator(".sd-play").click()
        page.locator(".sd-strip-canvas").first.click(position={"x": 5, "y": 5})
        assert page.locator(".sd-play").get_attribute("aria-pressed") == "false"
        assert page.locator(".sd-frame").input_value() == "0"
        page.locator(".md-scroll").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('.md-scroll').scrollLeft > 0")
        assert page.locator(".sd-frame").input_value() == "0", "the frames stay"
        watched.assert_clean()


def test_lost_pictures_are_said(watched):
    broken = "data:image/jpeg;base64,AAAA"
    story = {"clip": {"sprite": {"url": broken}}, "chapters": []}
    with gr.Blocks(analytics_enabled=False) as demo:
        token_columns(board_of(in_role("kept"), broken), elem_id="columns")
        component("walk", story, elem_id="story")
    with served(demo) as url:
        watched.open(url)
        expect(watched.page.locator(".sd-lost")).to_contain_text("no longer on the server")
        expect(watched.page.locator("#story")).to_contain_text("no longer on the server")
        watched.assert_clean()


@pytest.mark.full
def test_first_paint_and_run_enabled(browser, server, measured):
    """A fresh browser context each time; best of three."""
    paints, enabled = [], []
    for _ in range(3):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(server, wait_until="commit")
        page.wait_for_function("document.querySelector('#run') && !document.querySelector('#run').disabled", polling=20)
        enabled.append(page.evaluate("performance.now()"))
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        context.close()
    measured("first contentful paint, best of 3", f"{min(paints):.0f} ms", f"{PAINT_MS} ms")
    measured("Run enabled, best of 3", f"{min(enabled):.0f} ms", f"{READY_MS} ms")
    assert min(paints) <= PAINT_MS
    assert min(enabled) <= READY_MS


# Every animation frame moves the slider one frame on; the time between two of them is what a visitor waits.
SCRUB = """() => new Promise(done => {
  const slider = document.querySelector('.sd-frame'), gaps = [];
  let last = null, at = 0;
  const step = now => {
    if (last !== null) gaps.push(now - last);
    last = now;
    if (gaps.length === 96) return done(gaps);
    slider.value = at++ % 32;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


@pytest.mark.full
def test_scrubbing_and_payload(watched, server, measured):
    """32 frames and four methods: the median frame while scrubbing, and what a whole visit loads apart from Gradio."""
    sizes: dict[str, int] = {}
    addresses: dict[str, str] = {}
    wire = watched.page.context.new_cdp_session(watched.page)
    wire.on("Network.requestWillBeSent", lambda event: addresses.update({event["requestId"]: event["request"]["url"]}))

    def received(event: dict) -> None:
        sizes[event["requestId"]] = sizes.get(event["requestId"], 0) + event["dataLength"]

    wire.on("Network.dataReceived", received)
    wire.send("Network.enable")
    page = opened(watched, server, LINK + "&frames=32")
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    see_charts(page)
    page.wait_for_timeout(1000)
    assert page.locator(".sd-frame").get_attribute("max") == "31"
    assert page.locator(".sd-card").count() == 4
    page.locator(".sd-cards").scroll_into_view_if_needed()
    medians = [statistics.median(page.evaluate(SCRUB)) for _ in range(3)]
    own = {
        addresses[request]: size
        for request, size in sizes.items()
        if request in addresses and "/assets/" not in addresses[request] and "/static/" not in addresses[request]
    }
    measured(
        "median frame while scrubbing 32 frames of 4 methods, best of 3", f"{min(medians):.1f} ms", f"{FRAME_MS} ms"
    )
    total = sum(own.values())
    measured(
        "bytes of all responses of a visit with one run, without Gradio's own scripts and styles",
        f"{total / 1e6:.2f} MB",
        "3 MB",
    )
    address, largest = max(own.items(), key=lambda item: item[1])
    name = urlparse(address).path.rsplit("/", 1)[-1]
    what = "the event stream with the run's results" if name == "data" else name
    measured(f"largest response of that visit: {what}", f"{largest / 1e6:.2f} MB", "none")
    assert min(medians) <= FRAME_MS
    assert total < PAYLOAD_BYTES
    watched.assert_clean()
