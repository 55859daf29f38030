"""Stored results and the kiosk: what a visitor leaves is gone, what was stored is what a run gives."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sharp_demo.engine import Engine
from sharp_demo.page.examples import load_examples
from sharp_demo.page.stored import path_of, read_stored, write_stored
from sharp_demo.records import Done, MethodStarted
from sharp_demo.settings import Settings
from tests.page.test_browser import browser, run, watched  # noqa: F401
from tests.serving import serving

EXAMPLES = load_examples(Settings())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.video.stem)
def test_every_example_has_a_stored_result(example):
    path = path_of(Settings().assets, example)
    stored = read_stored(path)
    assert stored is not None
    assert path.stat().st_size < 200_000
    assert (stored.request.video, stored.request.question) == (example.video.name, example.question)
    value = stored.board(example).value()
    assert [column["stage"] for column in value["columns"]] == ["stored"] * len(stored.results)
    assert "Stored result" in value["message"]
    assert [result.status for result in stored.results] == ["done"] * 4


def test_stored_results_survive_the_file(tmp_path):
    stored = read_stored(path_of(Settings().assets, EXAMPLES[0]))
    assert stored is not None
    for name in ("a", "b"):
        write_stored(tmp_path / name, stored)
    assert read_stored(tmp_path / "a") == stored
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_stored(tmp_path / "c") is None


def test_a_stored_result_is_what_a_run_gives():
    """Scores may differ in the last bits from machine to machine, and with them a token at the threshold."""
    example = EXAMPLES[1]
    stored = read_stored(path_of(Settings().assets, example))
    assert stored is not None
    request = stored.request
    engine = Engine(Settings(model=request.model, threads=1))
    live = next(
        event.results
        for event in engine.stream(
            type(request)(str(example.video), request.question, request.methods, model=request.model, timing_s=0)
        )
        if isinstance(event, Done)
    )
    for one, other in zip(live, stored.results, strict=True):
        assert (one.label, one.answer, one.layout) == (other.label, other.answer, other.layout)
        mine, theirs = (
            {(frame, token) for frame, tokens in enumerate(result.kept) for token in tokens} for result in (one, other)
        )
        assert len(mine) == len(theirs)
        assert len(mine & theirs) >= 0.95 * len(mine)


def test_forgetting_drops_frames_and_features():
    engine = Engine(Settings(model="tiny-llava-onevision", threads=1))
    stored = read_stored(path_of(Settings().assets, EXAMPLES[0]))
    assert stored is not None
    request = type(stored.request)(
        str(EXAMPLES[0].video), "?", stored.request.methods[:1], frames=4, max_new_tokens=1, timing_s=0
    )
    list(engine.stream(request))
    assert engine._stages.clips.items()
    assert engine._loaded is not None
    assert engine._loaded.features.items()
    engine.forget()
    assert not engine._stages.clips.items()
    assert not engine._loaded.features.items()

    going = engine.stream(request)
    next(event for event in going if isinstance(event, MethodStarted))
    start = time.monotonic()
    engine.forget()
    assert time.monotonic() - start < 5, "a run that goes on is not waited for"
    assert engine._stages.clips.items()
    going.close()
    assert not engine._stages.clips.items(), "forgotten when the run ended"
    assert not engine._loaded.features.items()
    list(engine.stream(request))
    assert engine._stages.clips.items(), "and not again"


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory):
    """A kiosk without uploads and without a network beyond this machine."""
    dead = "http://127.0.0.1:9"
    with serving(
        tmp_path_factory.mktemp("kiosk"),
        SHARP_KIOSK="1",
        SHARP_KIOSK_UPLOAD="0",
        SHARP_KIOSK_IDLE_S="6",
        SHARP_KIOSK_LOOP_S="2",
        HF_HUB_OFFLINE="0",
        http_proxy=dead,
        https_proxy=dead,
        no_proxy="127.0.0.1",
    ) as address:
        yield address


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_kiosk_shows_stored_results_wipes_and_loops(watched, kiosk):  # noqa: F811
    watched.open(kiosk)
    page = watched.page
    status = page.locator("#columns .sd-status")
    expect(status).to_contain_text("Stored result", timeout=30_000)
    page.wait_for_selector("#columns .sd-canvas")
    assert page.locator("#columns .sd-chip").all_inner_texts() == ["stored"] * 4
    assert page.locator("#clip input[type=file]").count() == 0, "nothing can be uploaded"

    page.mouse.move(300, 300)
    page.mouse.move(310, 320)
    page.locator("#examples button").nth(3).click()
    expect(page.locator("#question textarea")).to_have_value(EXAMPLES[3].question)
    expect(status).to_contain_text("Stored result")
    page.locator("#run").click()
    page.wait_for_function("document.querySelector('#columns .sd').dataset.phase === 'running'")
    expect(status).to_contain_text("4 answers in", timeout=60_000)
    assert page.locator("#columns .sd-chip").all_inner_texts() == ["done"] * 4

    page.locator("#question textarea").click()
    page.evaluate("window.__visitor = 1")
    page.keyboard.type("nobody shall read this")
    page.wait_for_function("window.__visitor === undefined", timeout=60_000)
    expect(page.locator(".kk")).to_be_visible(timeout=30_000)
    assert "nobody" not in page.locator("#question textarea").input_value()
    first = page.locator("#question textarea").input_value()
    expect(page.locator("#question textarea")).not_to_have_value(first, timeout=30_000)
    watched.assert_clean()


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_plots_that_were_replaced_are_let_go(watched, kiosk):  # noqa: F811
    watched.open(kiosk)
    page = watched.page
    expect(page.locator("#columns .sd-status")).to_contain_text("Stored result", timeout=30_000)
    counters = page.context.new_cdp_session(page)

    def listeners() -> int:
        counters.send("HeapProfiler.collectGarbage")
        return counters.send("Memory.getDOMCounters")["jsEventListeners"]

    def show(number: int) -> None:
        page.locator("#examples button").nth(number).click()
        expect(page.locator("#question textarea")).to_have_value(EXAMPLES[number].question)
        page.wait_for_timeout(1500)

    show(1)
    before = listeners()
    for number in (2, 3, 4, 5):
        show(number)
    # Six plots a comparison: a page that keeps them gains about 300 listeners each time.
    assert listeners() - before < 300


@pytest.mark.timeout(120)
def test_a_kiosk_without_uploads_takes_none(kiosk, clip: Path):
    edge = "edge-of-the-part"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{clip.name}"\r\n\r\n'
    body = head.encode() + clip.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{kiosk}/gradio_api/upload", body, headers), timeout=30)
    assert refused.value.code in (400, 413)
