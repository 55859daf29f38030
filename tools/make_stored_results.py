"""Compute the results that the kiosk shows at once for every example: assets/stored.

Usage: python tools/make_stored_results.py
Runs the default methods on every example with the embedded model at 20 % of the tokens, twice: the first run warms up.
Latencies are this machine's.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sharp_demo.engine import Engine
from sharp_demo.page.examples import Example, load_examples
from sharp_demo.page.stored import Stored, path_of, write_stored
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import Decoded, Done, MethodSpec, Request, Started
from sharp_demo.settings import Settings
from sharp_demo.views.overlay import make_sprite

TIMING_S = 10.0  # nobody waits for it
METHODS = ("vanilla", "fastv", "feather", "sharp")


def compute(engine: Engine, example: Example) -> Stored:
    """Run one example to its end. Raises RuntimeError when a method failed."""
    methods = tuple(MethodSpec(name, {}, method_class(name).title) for name in METHODS)
    request = Request(str(example.video), example.question, methods, model="tiny-llava-onevision", timing_s=TIMING_S)
    seen: dict[type, object] = {type(event): event for event in engine.stream(request)}
    started, decoded, done = seen[Started], seen[Decoded], seen[Done]
    assert isinstance(started, Started)
    assert isinstance(decoded, Decoded)
    assert isinstance(done, Done)
    if done.failed:
        raise RuntimeError(f"{example.video.name}: {done.failed[0].message}")
    public = replace(request, video=example.video.name)
    return Stored(public, started.model, done.results, make_sprite(decoded.frames), len(decoded.frames))


def main() -> None:
    settings = Settings().for_serving()
    engine = Engine(settings)
    for number, example in enumerate(load_examples(settings)):
        stored = compute(engine, example)
        if number == 0:
            stored = compute(engine, example)
        path = path_of(settings.assets, example)
        write_stored(path, stored)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
