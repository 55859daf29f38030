"""Serves a page until the process is told to end, and leaves nothing of its visitors."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import gradio as gr

from sharp_demo.errors import InputError

FAREWELL_S = 2  # for open connections, before they are cut


def serve(page: gr.Blocks, options: dict[str, Any], arrived: Callable[[], None], leaving: Callable[[], None]) -> None:
    """Launch the page and return after SIGTERM or SIGINT, when runs, connections and uploaded files are gone.

    `options` are the arguments of `launch`. `arrived` is called when the page can be had; `leaving` when the end has
    come, before all else: it should stop the runs. Raises InputError when the port cannot be had.
    """
    try:
        page.launch(**options, prevent_thread_lock=True)
    except OSError as error:
        host, port = options.get("server_name"), options.get("server_port")
        raise InputError(
            f"cannot listen on port {port} of {host}, which another server may use: choose another with SHARP_PORT"
        ) from error
    arrived()
    over = threading.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: over.set())
    while page.is_running and not over.wait(0.5):
        pass
    leaving()
    if page.is_running:
        page.server.config.timeout_graceful_shutdown = FAREWELL_S
        page.close(verbose=False)  # as the server goes down, Gradio deletes the files that it has made
