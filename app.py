"""Start the web demo: python app.py. Settings come from SHARP_* environment variables."""

from __future__ import annotations

import sys

from sharp_demo import logs
from sharp_demo.engine import Engine
from sharp_demo.engine.zerogpu import ZeroGPUEngine
from sharp_demo.errors import InputError
from sharp_demo.memory import share_heaps
from sharp_demo.page.build import build_ui, launch_options
from sharp_demo.settings import believe_no_forwarded_address, read_settings, use_own_upload_folder
from sharp_demo.web.serve import serve


def main() -> None:
    """Build engine and page, and serve until told to end; exit code 2 and one line for wrong settings."""
    share_heaps()
    try:
        settings = read_settings().for_serving()
        use_own_upload_folder()
        believe_no_forwarded_address()
        logs.set_up(settings.log)
        engine = ZeroGPUEngine(settings) if settings.zero_gpu else Engine(settings)
        engine.keep_ready()
        page = build_ui(engine, engine.settings)
        serve(page, launch_options(page, engine, engine.settings), leaving=engine.stop_all)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
