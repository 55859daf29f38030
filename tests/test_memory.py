"""The server's heaps: what runs in many threads leave behind."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from sharp_demo.engine import Engine
from sharp_demo.memory import share_heaps, trim_heaps
from sharp_demo.page.build import build_ui, launch_options
from sharp_demo.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
GLIBC = platform.libc_ver()[0] == "glibc"
THREADS, RUN_MB, LIMIT_MB = 12, 30, 120  # with a heap for every thread: 12 * 30 MB
# In place of the page, threads that are all there at once make a run's allocations one after another. The small block
# that each keeps is what a cache entry is to a real run: the heap cannot shrink below it.
SERVED = f"""
import os, threading
import app

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

class Page:
    is_running = False

    def launch(self, **_):
        kept, before = [], resident()
        there, turn, over = threading.Barrier({THREADS} + 1), threading.Lock(), threading.Event()

        def run():
            there.wait()
            with turn:
                blocks = [b"x" * 50_000 for _ in range({RUN_MB} * 20)]
                kept.append(b"x" * 5_000)
                del blocks
            over.wait()

        threads = [threading.Thread(target=run) for _ in range({THREADS})]
        for thread in threads:
            thread.start()
        there.wait()
        while len(kept) < {THREADS}:
            over.wait(0.01)
        with turn:
            print(round(resident() - before))
        over.set()

import sharp_demo.engine.background as background
import sharp_demo.page.build as build
nothing = staticmethod(lambda: None)
background.BackgroundEngine = lambda settings: type(
    "Engine", (), {{"settings": settings, "get_ready": nothing, "stop_all": nothing}}
)
build.build_ui, build.launch_options = lambda *_: Page(), lambda *_: {{}}
app.main()
"""

# Freed below a small block that stays, as between two models: what the system got back before and after the trim.
FREED = """
import os
from sharp_demo.memory import trim_heaps

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

before = resident()
blocks = [b"x" * 50_000 for _ in range(2000)]
kept = b"x" * 50_000
del blocks
freed = resident()
print(round(freed - before), trim_heaps(), round(resident() - before))
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc keeps a heap for every thread")
def test_the_servers_threads_share_heaps():
    own = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", SERVED], cwd=ROOT, env=own, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT_MB


@pytest.mark.skipif(not GLIBC, reason="only glibc is asked to return its heap")
def test_freed_heap_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    held, trimmed, left = done.stdout.split()
    assert int(held) > 80, "else there was nothing to trim"
    assert trimmed == "True"
    assert int(left) < 20


def test_a_number_of_heaps_set_by_the_host_holds(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("malloc was set"))
    assert share_heaps() is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert share_heaps() is False
    assert trim_heaps() is False


@pytest.fixture(scope="module")
def served(cpu_settings: Settings, tiny_llava_folder: Path) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page and the arguments of its launch."""
    settings = cpu_settings.model_copy(update={"model": str(tiny_llava_folder)})
    engine = Engine(settings)
    page = build_ui(engine, settings)
    return page, launch_options(page, engine, settings)


def test_what_gradio_keeps_of_its_callers_is_bounded(served: tuple[gr.Blocks, dict[str, Any]]) -> None:
    """Gradio copies the page's configuration for every caller, and a call of the API without a session is one."""
    page, options = served
    tracemalloc.start()
    try:
        states = [SessionState(page) for _ in range(5)]
        each = tracemalloc.get_traced_memory()[0] / len(states)
    finally:
        tracemalloc.stop()
    assert options["state_session_capacity"] * each < 40e6


def test_the_configuration_that_every_visit_copies_is_plain_data(served: tuple[gr.Blocks, dict[str, Any]]) -> None:
    """Gradio takes a quoted word of a component's script for an event, and its place in the page for the event's.

    A word that is also an argument of the component stands in the configuration then, and every visit copies half of
    the page with it.
    """
    page, _ = served
    components = page.get_config_file()["components"]
    assert [(one["props"].get("elem_id"), name) for one in components for name in callables(one["props"])] == []


def callables(props: dict[str, Any]) -> list[str]:
    return [name for name, value in props.items() if callable(value)]
