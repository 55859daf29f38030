"""Time what a visitor waits for, in this checkout and in an older one, interleaved (docs/results/clicks.json, .md).

Usage: python tools/clicks.py --before FOLDER [--rounds 5] [--output docs/results/clicks]
FOLDER is another checkout, as `git worktree add --detach FOLDER COMMIT` makes one; both run on this Python. Each round
starts both servers in turn, opens each in headless Chromium and presses Run in a fresh server, in a fresh tab, and with
another question in that tab; then it runs `compare` and `--help` from a shell and decodes a clip.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.provenance import commit, machine  # noqa: E402
from lab.tables.clicks import markdown  # noqa: E402
from tests.serving import CHROMIUM, free_port  # noqa: E402

CLIP = "color-in-a-scene.mp4"
METHODS = ["vanilla", "fastv", "feather", "sharp"]
RUN_MS = 120_000
ANSWERED = "document.querySelectorAll('.sd-card[data-status=done]').length === 4"
ENDED = "['done', 'stopped', 'error'].includes(document.querySelector('.sd-status').dataset.phase)"
WATCH_TASKS = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask", buffered: true });
"""
DECODE = """
import statistics, sys, time
from sharp_demo.settings import Settings
from sharp_demo.video import reader

settings = Settings()
readers = reader.Reader(settings) if hasattr(reader, "Reader") else None
times = []
for _ in range(6):
    if readers:
        readers.warm()  # as the app does between two videos
        time.sleep(1)
    start = time.perf_counter()
    readers.decode(sys.argv[1], 16) if readers else reader.decode(sys.argv[1], 16, settings)
    times.append(time.perf_counter() - start)
print(statistics.median(times[1:]) * 1e3)
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "clicks")
    asked = parser.parse_args(arguments)
    checkouts = {"before": asked.before.resolve(), "after": ROOT}
    measured: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in checkouts}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for number in range(asked.rounds):
            for name, root in list(checkouts.items())[:: -1 if number % 2 else 1]:
                for figure, value in one_round(browser, root).items():
                    measured[name][figure].append(value)
                print(number + 1, name, {figure: round(all[-1], 2) for figure, all in measured[name].items()})
        browser.close()
    document = {
        "commit": commit(),
        "before": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=asked.before, text=True).strip(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "gradio")},
        "rounds": asked.rounds,
        "measured": measured,
    }
    asked.output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    asked.output.with_suffix(".md").write_text(f"# What a visitor waits for\n\n{markdown(document)}\n", "utf-8")


def one_round(browser: Browser, root: Path) -> dict[str, float]:
    """Every figure once: seconds, but for the ratios and what ends in `_ms`."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with serving(root, Path(folder)) as (address, figures["http"]):
            page = opened(browser, address, root)
            figures["fresh_server"] = press(page)
            page.context.close()
            page = opened(browser, address, root)
            figures["first_in_tab"] = press(page)
            figures["frozen_ms"] = page.evaluate("window.longest")
            page.wait_for_function(ENDED, timeout=RUN_MS)
            figures["fastv_in_tab"] = speed_up(saved(page, Path(folder)))
            page.locator("#question textarea").fill("Which color does the ring have in the last scene?")
            figures["later"] = press(page)
            page.wait_for_function(ENDED, timeout=RUN_MS)
            page.context.close()
            figures["fastv_by_api"] = speed_up(by_the_api(address, root))
        clip = str(root / "assets" / "clips" / CLIP)
        figures["compare"] = shell(root, "-m", "sharp_demo", "compare", clip, "What color is it?")
        figures["help"] = shell(root, "-m", "sharp_demo", "--help")
        figures["decode_ms"] = float(
            subprocess.check_output([sys.executable, "-c", DECODE, clip], cwd=root, env=environment(), text=True)
        )
    return figures


def environment(**variables: str) -> dict[str, str]:
    """What a user's shell has: no settings of ours, bytecode written."""
    ours = ("SHARP_", "GRADIO_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables


@contextmanager
def serving(root: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """Run a checkout's app; yield its address and the seconds until it answered."""
    port = free_port()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=root,
        env=environment(SHARP_PORT=str(port), GRADIO_TEMP_DIR=str(folder / "cache"), HF_HUB_OFFLINE="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(address, timeout=60):
                break
            time.sleep(0.05)
        yield address, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(60)


def opened(browser: Browser, address: str, root: Path) -> Page:
    """A fresh tab with an example's clip and question in it, ready to run."""
    page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
    page.set_default_timeout(RUN_MS)
    page.add_init_script(WATCH_TASKS)
    page.goto(address)
    page.wait_for_selector("#run:enabled")
    page.locator("#clip input[type=file]").first.set_input_files(str(root / "assets" / "clips" / CLIP))
    page.wait_for_selector("#clip video")
    page.locator("#question textarea").fill("Which color does the disk have in the first scene?")
    return page


def press(page: Page) -> float:
    """Seconds from the click on Run to the fourth answer."""
    old = page.locator(".sd-card[data-status=done]").count()
    page.evaluate("window.longest = 0")
    start = time.perf_counter()
    page.locator("#run").click()
    if old:
        page.wait_for_function(f"!({ANSWERED})", timeout=RUN_MS)
    page.wait_for_function(ANSWERED, timeout=RUN_MS)
    return time.perf_counter() - start


def saved(page: Page, folder: Path) -> list[dict[str, Any]]:
    """What the page saves of its run."""
    with page.expect_download() as download:
        page.locator("#save-json").click()
    download.value.save_as(folder / "run.json")
    return json.loads((folder / "run.json").read_text("utf-8"))["results"]


def by_the_api(address: str, root: Path) -> list[dict[str, Any]]:
    client = Client(address, verbose=False)
    inputs = {"question": "What color is it?", "methods": METHODS, "retention": 0.2, "match": "tokens"}
    clip = handle_file(str(root / "assets" / "clips" / CLIP))
    return client.predict(video=clip, **inputs, api_name="/compare")["results"]


def speed_up(results: list[dict[str, Any]]) -> float:
    """Vanilla's prefill over FastV's, as each commit's own figures have it."""
    vanilla, fastv = (next(one for one in results if one["method"] == name)["latency_ms"] for name in METHODS[:2])
    if vanilla.get("rounds"):
        return statistics.median(a / b for a, b in zip(vanilla["rounds"], fastv["rounds"], strict=True))
    return vanilla["prefill"] / fastv["prefill"]


def shell(root: Path, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=root, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def chromium() -> str:
    from shutil import which

    return next(path for name in CHROMIUM if (path := which(name)))


if __name__ == "__main__":
    main()
