"""Start the web demo: python app.py. Settings come from SHARP_* environment variables."""

from __future__ import annotations

import sys

from sharp_demo import logs
from sharp_demo.errors import InputError
from sharp_demo.memory import importing, share_heaps
from sharp_demo.settings import believe_no_forwarded_address, read_settings, use_own_upload_folder


def main() -> None:
    """Build engine and page, and serve until told to end; exit code 2 and one line for wrong settings."""
    share_heaps()
    try:
        settings = read_settings().for_serving()
        use_own_upload_folder()
        believe_no_forwarded_address()
        logs.set_up(settings.log)
        with importing():
            from sharp_demo.engine.background import AnyEngine, BackgroundEngine
            from sharp_demo.page.build import build_ui, launch_options
            from sharp_demo.web.serve import serve
        engine: AnyEngine
        if settings.zero_gpu:
            from sharp_demo.engine.zerogpu import ZeroGPUEngine

            engine = ZeroGPUEngine(settings)
        else:
            engine = BackgroundEngine(settings)
        page = build_ui(engine, engine.settings)
        options = launch_options(page, engine, engine.settings)
        serve(page, options, arrived=engine.get_ready, leaving=engine.stop_all)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
