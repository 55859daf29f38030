"""Start the app and complete a run in the browser, in a network of its own that has nothing but loopback.

`unshare --net --map-root-user python tests/web/offline_run.py FOLDER CHROMIUM`, started by test_offline.py.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.page.test_browser import Watched, choose, run, statuses
from tests.serving import serving

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def raise_loopback() -> None:
    """A new network's loopback is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def assert_alone() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.socket() as outward:
        outward.settimeout(3)
        try:
            outward.connect(("192.0.2.1", 443))
        except OSError:
            return
    raise AssertionError("there is a way out of this network")


def main(folder: Path, chromium: str) -> None:
    """Click the first example and press Run; print what the columns say."""
    raise_loopback()
    assert_alone()
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with serving(folder) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        watched = Watched(browser.new_page())
        watched.open(server)
        page = watched.page
        choose(page, 1)
        run(page)
        watched.assert_clean()
        print(statuses(page))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
