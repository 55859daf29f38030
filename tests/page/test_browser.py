"""The whole page in headless Chromium, on the real engine and the real embedded checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sharp_demo.page.components import example_row, plain_text, token_columns
from tests.page.pieces import served
from tests.serving import ENDLESS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

ENDED = "['done', 'stopped', 'error'].includes(document.querySelector('.sd-status').dataset.phase)"
PATIENCE_MS = 30_000  # a machine that does other work shows a page seconds later than an idle one
RUN_MS = 120_000
SCREENS = Path(__file__).resolve().parents[2] / "build" / "screens"
PAYLOADS = [
    "\u202eright to left\u202c \u0007\u0000 مرحبا",
    "<img src=x onerror='window.__x=1'>",
    "${window.__x=1}",
    "{{constructor.constructor('window.__x=1')()}}",
    "`;window.__x=1;`",
    "</textarea><script>window.__x=1</script>",
]


@dataclass
class Watched:
    """A page and everything that must not happen on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._host(request.url))
        self.page.goto(url)

    def _host(self, url: str) -> None:
        parts = urlparse(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.foreign.append(url)

    def assert_clean(self) -> None:
        assert not self.errors, self.errors
        assert not self.foreign, self.foreign
        assert self.page.evaluate("window.__x === undefined")


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield Watched(context.new_page())
    context.close()


def upload(page: Page, path) -> None:
    give_file(page, path)
    page.wait_for_selector("#clip video")


def give_file(page: Page, path) -> None:
    """Choose a file in place of the clip that the page opens with."""
    page.locator("#clip video, #clip input[type=file]").first.wait_for(state="attached")
    if page.locator("#clip video").count():
        page.locator("#clip").get_by_role("button", name="Clear").click()
    page.locator("#clip input[type=file]").first.set_input_files(str(path))


def ask(page: Page, question: str) -> None:
    page.locator("#question textarea").fill(question)


def answer_length(page: Page, tokens: int) -> None:
    field = page.locator("#max-new input[type=number]")
    if not field.is_visible():
        page.get_by_role("button", name="Advanced").click()
    field.fill(str(tokens))
    field.press("Tab")


def run(page: Page) -> str:
    """Press Run, wait for the end, and return the phase."""
    before = page.locator(".sd").get_attribute("data-phase")
    page.locator("#run").click()
    if before != "idle":
        page.wait_for_function("document.querySelector('#run').disabled")
    page.wait_for_function(ENDED, timeout=RUN_MS)
    expect(page.locator("#run")).to_be_enabled()
    return page.locator(".sd").get_attribute("data-phase")


def choose(page: Page, number: int) -> str:
    """Click an example, wait until it and its stored result are there, and return its question."""
    button = page.locator("#examples button").nth(number)
    button.click()
    question = button.get_attribute("aria-label")
    expect(page.locator("#question textarea")).to_have_value(question)
    expect(page.locator("#columns .sd-question")).to_have_text(question)
    page.wait_for_selector("#clip video")
    return question


def example_shown(watched: Watched, address: str, number: int = 6) -> Page:
    """Open the page, run one of its examples to the end and wait for the columns' pictures."""
    watched.open(address)
    page = watched.page
    choose(page, number)
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    return page


def see_charts(page: Page) -> None:
    """Scroll through the rows of charts, each of which is drawn when it is seen."""
    for row in range(3):
        page.locator(".charts").nth(row).scroll_into_view_if_needed()
        shown = f"document.querySelectorAll('.charts')[{row}].querySelectorAll('.js-plotly-plot').length == 2"
        page.wait_for_function(shown, timeout=60_000)


def labels(page: Page) -> list[str]:
    return page.locator(".sd-canvas").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def pictures(page: Page) -> list[str]:
    return page.locator(".sd-canvas").evaluate_all("all => all.map(one => one.toDataURL())")


def statuses(page: Page) -> list[str]:
    return page.locator(".sd-card").evaluate_all("all => all.map(one => one.dataset.status)")


def test_upload_ask_run_move_and_run_again(watched, server, clip):
    watched.open(server)
    page = watched.page
    upload(page, clip)
    ask(page, "What moves?")
    assert run(page) == "done"

    titles = page.locator(".sd-card h3").all_inner_texts()
    assert titles == ["Vanilla", "FastV", "Feather", "ShaRP"]
    assert statuses(page) == ["done"] * 4
    for answer in page.locator(".sd-answer").all_inner_texts():
        assert answer.strip() not in ("", "…")
    for note in page.locator(".sd-note").all_inner_texts():
        assert note, "the embedded model's limits stand next to every answer"

    page.wait_for_selector(".sd-canvas")
    first, drawn = labels(page), pictures(page)
    assert "frame 1 of" not in first[0], "the frame where the methods disagree most comes first"
    page.locator(".sd-frame").fill("0")
    first, drawn = labels(page), pictures(page)
    assert len(set(drawn)) == 4, "each method kept something else"
    page.locator(".sd-frame").focus()
    page.keyboard.press("ArrowRight")
    assert all("frame 2 of" in label for label in labels(page))
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    assert all("frame 3 of" in label for label in labels(page))
    assert not set(pictures(page)) & set(drawn), "every column moved"
    page.locator(".sd-frame").fill(page.locator(".sd-frame").get_attribute("max"))
    total = int(re.search(r"of (\d+):", labels(page)[0])[1])
    assert f"frame {total} of {total}" in labels(page)[0]

    page.locator(".sd-modes label", has_text="debiased").click()
    assert "no such score" in page.locator(".sd-probe").first.inner_text()
    assert page.locator(".sd-probe").last.inner_text().startswith("colour:")
    see_charts(page)
    expect(page.locator(".js-plotly-plot")).to_have_count(6)

    ask(page, "And now?")
    assert run(page) == "done"
    assert page.locator(".sd-card").count() == 4
    page.wait_for_selector(".sd-canvas")
    watched.assert_clean()


# Brightness at four points near each cell's corners, away from marks and outlines: [row][col][point], 0 to 255.
CORNERS = """(canvas, [rows, cols]) => {
  const pen = canvas.getContext("2d");
  const at = (row, col) => [[.22, .78], [.78, .22], [.78, .78], [.5, .5]].map(([down, right]) => {
    const x = Math.floor((col + right) * canvas.width / cols), y = Math.floor((row + down) * canvas.height / rows);
    const [r, g, b] = pen.getImageData(x, y, 1, 1).data;
    return (r + g + b) / 3;
  });
  return [...Array(rows).keys()].map(row => [...Array(cols).keys()].map(col => at(row, col)));
}"""


def saved_json(page: Page, path) -> dict:
    with page.expect_download() as download:
        page.locator("#save-json").click()
    download.value.save_as(path)
    return json.loads(path.read_text())


def saved_report(page: Page, path: Path) -> Watched:
    """Download the run's report and open it from disk."""
    with page.expect_download() as download:
        page.locator("#save-report").click()
    download.value.save_as(path)
    report = Watched(page.context.new_page())
    report.open(path.as_uri())
    report.page.wait_for_selector(".js-plotly-plot .bars")
    return report


def rank(scores: list[float], slot: int) -> int:
    return 1 + sum(other > scores[slot] for other in scores)


@pytest.mark.parametrize("model", ["tiny-llava-onevision", "tiny-qwen2-vl"])
def test_board_lines_up_and_every_token_tells_what_the_json_says(watched, server, checkerboard, tmp_path, model):
    """On a clip with one token a cell, a kept cell shows its own colour up to its corners, a dropped one is dark."""
    watched.open(f"{server}/?model={model}")
    page = watched.page
    expect(page.locator("#model input")).to_have_value(model)
    expect(page.locator("#question textarea")).to_have_value("")  # what the page opens with, a link takes out
    upload(page, checkerboard)
    ask(page, "What color is the brief flash?")
    assert run(page) == "done"
    page.wait_for_selector(".sd-canvas")
    results = saved_json(page, tmp_path / "board.json")["results"]
    assert {result["model"] for result in results} == {model}
    canvases = page.locator(".sd-canvas")
    bright = [0] * len(results)
    for frame in range(results[0]["layout"]["frames"]):
        page.locator(".sd-frame").fill(str(frame))
        for number, result in enumerate(results):
            assert (result["layout"]["rows"], result["layout"]["cols"]) == (7, 7)
            points = canvases.nth(number).evaluate(CORNERS, [7, 7])
            for cell in range(49):
                row, col = divmod(cell, 7)
                white, kept = (row + col) % 2 == 0, cell in result["kept"][frame]
                seen = points[row][col]
                assert all(value > 190 if white and kept else value < 170 for value in seen), (frame, cell, seen)
                bright[number] += kept and white
    whites = [sum((i // 7 + i % 7) % 2 == 0 for kept in result["kept"] for i in kept) for result in results]
    assert bright == whites
    for number, (result, picture) in enumerate(zip(results, pictures_of(page), strict=True)):
        shown = page.locator(".sd-card").nth(number).locator(".sd-big strong").first.inner_text()
        assert int(shown.split("/")[0]) == result["tokens"]["kept"] == sum(map(len, result["kept"])) == picture

    for frame, row, col in ((0, 0, 0), (3, 6, 2), (9, 2, 5), (15, 6, 6)):
        page.locator(".sd-frame").fill(str(frame))
        box = canvases.last.bounding_box()
        canvases.last.hover(position={"x": (col + 0.5) * box["width"] / 7, "y": (row + 0.5) * box["height"] / 7})
        for number, result in enumerate(results):
            told = page.locator(".sd-probe").nth(number).evaluate("node => ({...node.dataset})")
            slot = frame * 49 + row * 7 + col
            assert [int(told[name]) for name in ("token", "frame", "row", "col")] == [slot, frame, row, col]
            assert float(told["time"]) == result["layout"]["timestamps"][frame]
            cell, kept = row * 7 + col, result["kept"][frame]
            into = dict(result["merged_into"]).get(slot)
            fate = (
                result["role"][frame][kept.index(cell)] if cell in kept else "dropped" if into is None else "absorbed"
            )
            assert told["fate"] == fate
            assert told.get("target") == (None if into is None else str(into))
            scores = {kind: values for kind, values in result["scores"].items() if values[slot] is not None}
            for kind, values in scores.items():
                assert float(told[kind]) == values[slot], "the very number, not a rounded one"
            if scores:
                by = [kind for kind in ("raw", "bias", "debiased") if kind in scores][-1]
                known = [-1e9 if value is None else value for value in scores[by]]
                assert int(told["rank"]) == rank(known, slot)
    watched.assert_clean()


def pictures_of(page: Page) -> list[int]:
    """Kept tokens that each column's picture claims, over all frames."""
    counts = [0] * page.locator(".sd-canvas").count()
    for frame in range(int(page.locator(".sd-frame").get_attribute("max")) + 1):
        page.locator(".sd-frame").fill(str(frame))
        for number, label in enumerate(labels(page)):
            counts[number] += int(re.search(r": (\d+) of", label)[1])
    return counts


def test_one_timeline_by_keys_by_segments_and_by_the_clip(watched, server):
    page = example_shown(watched, server)
    frame = "Number(document.querySelector('.sd-frame').value)"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("5")
    assert page.evaluate(frame) == 8, "the fifth tenth of 16 frames"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(frame) == 7
    page.keyboard.press(" ")
    page.wait_for_function(f"{frame} === 9")
    page.keyboard.press(" ")
    assert page.locator(".sd-play").get_attribute("aria-pressed") == "false"
    for label in labels(page):
        assert f"frame {page.evaluate(frame) + 1} of 16" in label

    # The slider's thumb, the tracks and the frames of the clip agree on where a frame is.
    blocks = page.locator(".sd-block").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert blocks[0] == "evidence, frames 11 to 11"
    assert len([block for block in blocks if "segments" in block]) >= 2
    page.locator(".sd-block").first.click()
    assert page.evaluate(frame) == 10
    track = page.locator(".sd-track").first.bounding_box()
    page.mouse.click(track["x"] + track["width"] * 12.5 / 16, page.locator(".sd-frame").bounding_box()["y"] + 12)
    assert page.evaluate(frame) == 12

    # Tokens by keyboard, in every column at once.
    page.locator(".sd-canvas").nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    for probe in page.locator(".sd-probe").all():
        assert [probe.get_attribute(f"data-{name}") for name in ("row", "col")] == ["3", "4"]
    assert page.evaluate(frame) == 12, "arrows move between tokens while the picture has the focus"
    page.keyboard.press("Escape")
    assert page.locator(".sd-probe").first.get_attribute("data-row") is None

    page.locator("#clip video").evaluate("clip => { clip.currentTime = 2.8; }")
    page.wait_for_function(f"{frame} === 5")
    watched.assert_clean()


def frame_times(page: Page) -> list[float]:
    """The time the page gives for each frame, read by moving through them."""
    times = []
    for frame in range(int(page.locator(".sd-frame").get_attribute("max")) + 1):
        page.locator(".sd-frame").fill(str(frame))
        times.append(float(re.search(r"· ([\d.]+) s", page.locator(".sd-time").inner_text())[1]))
    return times


def test_the_columns_follow_the_clip_while_it_plays(watched, server):
    page = example_shown(watched, server)
    seen = page.evaluate(
        """async () => {
          const clip = document.querySelector("#clip video"), slider = document.querySelector(".sd-frame");
          const seen = [];
          clip.muted = true;
          clip.currentTime = 0;
          await clip.play();
          const end = Math.min(4, clip.duration - 0.3);
          while (clip.currentTime < end) {
            await new Promise(done => setTimeout(done, 60));
            seen.push([clip.currentTime, Number(slider.value)]);
          }
          clip.pause();
          return seen;
        }"""
    )
    shown = [frame for _, frame in seen]
    assert shown == sorted(shown)
    assert len(set(shown)) >= 5, "many frames passed by"
    times = frame_times(page)
    for at, frame in seen:
        nearest = min(range(len(times)), key=lambda one: abs(times[one] - at))
        assert abs(frame - nearest) <= 1, (at, frame, nearest)
    watched.assert_clean()


def test_another_clip_does_not_move_the_columns_and_marks_them_as_earlier(watched, server, clip):
    page = example_shown(watched, server)
    film = "document.querySelector('#clip video')"
    frame = "Number(document.querySelector('.sd-frame').value)"
    stale = page.locator("#columns .sd-stale")
    page.evaluate(f"{film}.currentTime = 2.8")
    page.wait_for_function(f"{frame} === 5")
    expect(stale).to_be_hidden()
    for control, name in (("#question textarea", "the question"), ("#retention input[type=number]", "the share kept")):
        before = page.locator(control).input_value()
        page.locator(control).fill("7")
        page.locator(control).blur()
        expect(stale).to_contain_text(f"Changed since: {name}.")
        page.locator(control).fill(before)
        page.locator(control).blur()
        expect(stale).to_be_hidden()
    upload(page, clip)
    page.wait_for_function(f"{film} && {film}.readyState > 0")
    page.evaluate(f"{film}.currentTime = 1.5")
    page.wait_for_function(f"!{film}.seeking && {film}.currentTime > 1")
    expect(stale).to_contain_text("Changed since: the clip.")
    expect(page.locator("#clip-line")).to_contain_text("knows only drawn shapes")
    assert page.evaluate(frame) == 5, "the columns are about the first clip"
    ask(page, "What moves?")
    assert run(page) == "done"
    expect(stale).to_be_hidden()
    expect(page.locator("#columns .sd-verdict")).to_contain_text("knows only drawn shapes")
    watched.assert_clean()


def test_the_page_opens_with_a_result_and_its_verdict(watched, server):
    """The story of the first ten seconds, measured in one visit."""
    watched.open(server)
    page = watched.page
    page.wait_for_selector("#columns .sd-canvas")
    assert page.locator("#columns .sd-chip").all_inner_texts() == ["stored"] * 4
    verdict, told = page.locator("#columns .sd-verdict"), "visual tokens dropped"
    expect(verdict).to_contain_text(told)
    assert page.locator(".sd-frame").input_value() != "0", "the most telling frame stands first"
    assert page.locator(".sd-play").get_attribute("aria-pressed") == "false"
    bottom = "node => node.getBoundingClientRect().bottom"
    for width, height in ((1366, 768), (1440, 900), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        for selector in ("#run", "#columns .sd-verdict", "#columns .sd-answer"):
            assert page.locator(selector).first.evaluate(bottom) < height, (width, selector)
        assert float(verdict.evaluate("node => parseFloat(getComputedStyle(node).fontSize)")) >= 28
        key, picture = (page.locator(f"#columns {name}").first.bounding_box() for name in (".sd-key", ".sd-canvas"))
        assert key["y"] + key["height"] <= picture["y"], "figures stand above the picture"

    page.locator("#columns .sd-race-go").click()
    ends = page.locator("#columns .sd-race-end")
    expect(ends.first).to_contain_text("first token after", timeout=10_000)
    raced = [int(re.search(r"\d+", text)[0]) for text in ends.all_inner_texts()]
    widths = page.locator("#columns .sd-race-bar").evaluate_all(
        "all => all.map(bar => [...bar.children].reduce((sum, part) => sum + parseFloat(part.style.width), 0))"
    )
    assert max(raced) == raced[0], "vanilla fills the longest bar"
    assert [round(100 * ms / raced[0]) for ms in raced] == [round(width) for width in widths]

    page.set_viewport_size({"width": 1280, "height": 720})
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("f")
    expect(page.locator("#inputs")).to_be_hidden()
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("#columns .sd *")].filter((node) => node.checkVisibility() &&
          [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim())).map((node) =>
          [node.className, parseFloat(getComputedStyle(node).fontSize) * node.currentCSSZoom])"""
    )
    assert sizes
    assert [one for one in sizes if one[1] < 20] == []
    tops = page.locator("#columns .sd-card").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len(set(tops)) == 1, "four columns in one row"
    page.keyboard.press("Escape")
    expect(page.locator("#inputs")).to_be_visible()

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("#run").evaluate(bottom) <= 844, "Run is at hand on a phone"
    assert choose(page, 2) in page.locator("#columns .sd-question").text_content()
    expect(verdict).to_contain_text(told)
    watched.assert_clean()


def test_by_keyboard_from_an_example_to_scrubbing(watched, server):
    watched.open(server)
    page = watched.page
    page.wait_for_selector("#examples button")

    def tab_to(selector: str) -> None:
        for _ in range(120):
            if page.evaluate("one => Boolean(document.activeElement.closest(one))", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#columns .sd-canvas")
    tab_to("#run")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#run').disabled")
    page.wait_for_function(ENDED, timeout=RUN_MS)
    page.wait_for_selector(".sd-canvas")
    expect(page.locator("#run")).to_be_focused()
    tab_to(".sd-frame")
    start = int(re.search(r"frame (\d+) of", labels(page)[0])[1])  # where the evidence is
    key, there = ("ArrowLeft", start - 2) if start > 2 else ("ArrowRight", start + 2)
    page.keyboard.press(key)
    page.keyboard.press(key)
    for canvas in page.locator("#columns .sd-canvas").all():
        expect(canvas).to_have_attribute("aria-label", re.compile(f"frame {there} of"))
    watched.assert_clean()


def test_a_long_stage_counts_its_seconds_silently(watched, talkative_server, clip):
    """One method that never ends its answer: the message stays, the seconds next to it go on."""
    watched.open(talkative_server)
    page = watched.page
    upload(page, clip)
    ask(page, "What moves?")
    for label in ("FastV", "Feather", "ShaRP"):
        page.locator("#methods").get_by_label(label, exact=True).uncheck()
    answer_length(page, ENDLESS)
    page.locator("#run").click()
    since = page.locator("#columns .sd-since")
    expect(since).to_have_text(re.compile(r"· [1-9]\d* s"), timeout=RUN_MS)
    assert since.get_attribute("aria-hidden") == "true"
    assert since.evaluate("node => !node.closest('[aria-live], [role=status]')")
    assert " s" not in page.locator(".sd-message").inner_text()[-3:]
    page.locator("#stop").click()
    page.wait_for_function(ENDED, timeout=RUN_MS)
    expect(since).to_be_hidden()
    watched.assert_clean()


def test_stop_labels_what_did_not_finish_and_the_next_run_is_whole(watched, talkative_server, clip):
    watched.open(talkative_server)
    page = watched.page
    upload(page, clip)
    ask(page, "Describe everything that happens, at length.")
    for method in ("Random", "Uniform", "Latest"):
        page.locator("#methods").get_by_label(method, exact=True).check()
    answer_length(page, ENDLESS)
    page.locator("#run").click()
    page.wait_for_selector(".sd-card[data-status=running]", timeout=RUN_MS)
    page.locator("#stop").click()
    page.wait_for_function(ENDED, timeout=RUN_MS)
    assert page.locator(".sd").get_attribute("data-phase") == "stopped"
    ends = statuses(page)
    assert len(ends) == 7
    assert set(ends) <= {"done", "stopped"}
    assert "stopped" in ends
    assert "Stopped" in page.locator(".sd-status").inner_text()
    answer_length(page, 8)
    assert run(page) == "done"
    assert statuses(page) == ["done"] * 7
    watched.assert_clean()


def test_a_waiting_page_can_leave_and_stops_nobody_else(browser, talkative_server, clip):
    first, second = (browser.new_context(viewport={"width": 1440, "height": 900}) for _ in range(2))
    running, waiting = Watched(first.new_page()), Watched(second.new_page())
    for watched in (running, waiting):
        watched.open(talkative_server)
        upload(watched.page, clip)
        ask(watched.page, "Describe everything that happens, at length.")
    answer_length(running.page, 150)  # so that it is still running when the other one leaves
    running.page.locator("#run").click()
    running.page.wait_for_function("document.querySelector('.sd').dataset.phase === 'running'")
    waiting.page.locator("#run").click()
    expect(waiting.page.locator("#leave")).to_be_visible()
    assert statuses(waiting.page) == ["waiting"] * 4
    waiting.page.locator("#leave").click()
    waiting.page.wait_for_function("document.querySelector('.sd').dataset.phase === 'stopped'")
    expect(waiting.page.locator("#run")).to_be_enabled()
    running.page.wait_for_function(ENDED, timeout=RUN_MS)
    assert statuses(running.page) == ["done"] * 4
    waiting.page.wait_for_timeout(1000)
    assert waiting.page.locator(".sd").get_attribute("data-phase") == "stopped", "it did not run after all"
    for watched in (running, waiting):
        watched.assert_clean()
    first.close()
    second.close()


def test_an_unusable_file_is_explained_and_nothing_is_lost(watched, server, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is not a video at all" * 50)
    watched.open(server)
    page = watched.page
    ask(page, "Is this kept?")
    give_file(page, broken)
    page.wait_for_function("/\\.mp4|video|container|recogni/i.test(document.querySelector('#clip-line').innerText)")
    message = page.locator("#clip-line").inner_text()
    assert run(page) == "error"
    assert page.locator(".sd-status").inner_text() == message
    assert page.locator("#question textarea").input_value() == "Is this kept?"
    assert not watched.foreign


def test_hostile_question_is_inert(watched, server, clip):
    watched.open(server)
    page = watched.page
    upload(page, clip)
    for label in ("FastV", "Feather", "ShaRP"):
        page.locator("#methods").get_by_label(label, exact=True).uncheck()
    for payload in PAYLOADS:
        ask(page, payload)
        assert run(page) == "done"
        assert page.evaluate("window.__x === undefined"), payload
    watched.assert_clean()


@pytest.mark.filterwarnings("ignore:A `<script>` tag")
def test_hostile_answer_label_and_note_are_inert(watched):
    """What a model or a file could say, put through the real components."""
    text = " ".join(PAYLOADS)
    column = {
        "label": text,
        "method": "sharp",
        "color": "#000000",
        "status": "done",
        "stage": text,
        "answer": text,
        "error": "",
        "note": text,
        "figures": [{"key": "kept", "label": text, "value": text, "help": text}],
        "tokens": None,
        "words": [[text, False], [text, True]],
        "badge": {"kind": "same", "text": text},
        "sure": {"value": 0.5, "vanilla": None, "text": text},
    }
    known = {"question": text, "query": "", "evidence": [], "clip": None}
    board = {"run": "1", "phase": "done", "message": text, "columns": [column], **known}
    with gr.Blocks(analytics_enabled=False) as demo:
        token_columns(board, elem_id="columns")
        plain_text(text, elem_id="line")
        example_row([{"video": {"url": "about:blank"}, "question": text, "note": text, "short": text}], elem_id="row")
    with served(demo) as url:
        watched.open(url)
        page = watched.page
        page.wait_for_selector(".sd-card")
        assert page.locator(".sd-answer").text_content() == text + text
        assert page.locator(".sd-badge").text_content() == text
        assert page.locator("#line p").text_content() == text
        assert page.locator("#row strong").text_content() == text
        page.wait_for_timeout(300)
        assert page.evaluate("window.__x === undefined")
        assert page.locator(".sd img, #line img, #row img").count() == 0


def screens(first: tuple[int, str]) -> list:
    """Every width in both colour schemes; only the first in the quick volume."""
    every = [(width, scheme) for width in (390, 768, 1440) for scheme in ("light", "dark")]
    return [first, *(pytest.param(*screen, marks=pytest.mark.full) for screen in every if screen != first)]


def keep_screenshot(page: Page, name: str) -> None:
    """Write the whole page to build/screens, for people to look at."""
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "scheme"), screens((390, "dark")))
def test_example_click_on_every_screen(browser, server, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    watched = Watched(context.new_page())
    watched.open(server)
    page = watched.page
    choose(page, 0)
    assert run(page) == "done"
    see_charts(page)
    too_wide = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter((node) => {
            const box = node.getBoundingClientRect();
            const scrolls = node.closest('.sd-strip-rows, .sd-cards, .charts, #examples');
            return box.width > 0 && box.right > innerWidth + 1 && !scrolls;
        }).map((node) => node.className)"""
    )
    assert not too_wide
    keep_screenshot(page, f"compare-{width}-{scheme}")
    watched.assert_clean()
    context.close()


def test_downloads_and_attention_by_layer(watched, server, clip, tmp_path):
    watched.open(server)
    page = watched.page
    upload(page, clip)
    ask(page, "What moves?")
    assert run(page) == "done"
    data = saved_json(page, tmp_path / "comparison.json")
    assert [result["method"] for result in data["results"]] == ["vanilla", "fastv", "feather", "sharp"]
    assert data["request"]["video"] == clip.name, "no server folders in what visitors download"
    page.locator("#by-layer").click()
    page.wait_for_selector("#layers .js-plotly-plot", timeout=RUN_MS)
    title = page.locator("#layers .gtitle")
    expect(title).to_contain_text("in layer 1 ")
    page.locator("#layer input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(title).to_contain_text("in layer 3 ")
    report = saved_report(page, tmp_path / "comparison.html")
    watched.assert_clean()
    assert report.page.locator(".card").count() == 4
    lines = "document.getElementById('layers').data.slice(0, 3).map(line => [...line.y])"
    before = report.page.evaluate(lines)
    report.page.locator(".layer input").focus()
    report.page.keyboard.press("End")
    layers = len(data["results"][0]["visual_per_layer"])
    expect(report.page.locator(".layer output")).to_have_text(str(layers - 1))
    expect(report.page.locator("#layers .gtitle")).to_contain_text(f"in layer {layers - 1} ")
    assert report.page.evaluate(lines) != before
    report.assert_clean()
