"""Take the screenshots of docs/images from a real run of the app in headless Chromium.

Usage: python tools/screenshots.py [FOLDER]      (default: docs/images)
Starts app.py on a free port, runs one example per picture, and writes light.png, dark.png and phone.png.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
EXAMPLE, FRAME = 1, 13  # where the methods disagree, at the evidence
SHOTS = {  # name: (colour scheme, width, height)
    "light": ("light", 1440, 1500),
    "dark": ("dark", 1440, 1500),
    "phone": ("light", 390, 1500),
}


def start_app(port: int) -> subprocess.Popen[bytes]:
    """Start app.py and wait until it answers."""
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, "SHARP_PORT": str(port)})
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return process
        except OSError:
            time.sleep(0.25)
    process.kill()
    raise SystemExit("app.py did not come up.")


def shoot(browser: Browser, url: str, path: Path, scheme: str, width: int, height: int) -> None:
    """Run an example, move to a frame, and save the page's visible part."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    example = page.locator("#examples button").nth(EXAMPLE)
    example.click()
    asked = page.locator("#columns .sd-question", has_text=str(example.get_attribute("aria-label")))
    asked.wait_for(state="attached")
    page.locator("#run").click()
    page.wait_for_function("document.querySelector('.sd').dataset.phase === 'done'", timeout=120_000)
    page.locator(".sd-frame").fill(str(FRAME))
    page.locator(".sd-status" if width < 600 else "#title").scroll_into_view_if_needed()
    page.locator("#examples").evaluate("row => row.scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    if width < 600:
        page.evaluate("window.scrollTo(0, document.querySelector('.sd').getBoundingClientRect().top + scrollY - 8)")
        page.wait_for_timeout(400)
    page.screenshot(path=path)
    context.close()


def main(folder: Path) -> None:
    chromium = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit(f"One of {', '.join(CHROMIUM)} is needed on the PATH.")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = start_app(port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            # The first run loads the model and is thrown away: a visitor sees the warm ones.
            for name in [next(iter(SHOTS)), *SHOTS]:
                shoot(browser, f"http://127.0.0.1:{port}/", folder / f"{name}.png", *SHOTS[name])
            browser.close()
    finally:
        app.terminate()
        app.wait(20)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
