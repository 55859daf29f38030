"""Start the web demo: python app.py. Settings come from SHARP_* environment variables."""

from __future__ import annotations

import logging

from sharp_demo.engine import Engine
from sharp_demo.settings import Settings
from sharp_demo.ui.page import build_ui, launch_options


def main() -> None:
    """Build engine and page, and serve until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings()
    build_ui(Engine(settings), settings).launch(**launch_options(settings))


if __name__ == "__main__":
    main()
