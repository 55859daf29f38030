"""`python -m sharp_demo bench prefill`: reads the lists of a command line, measures, prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Console
from transformers.utils import logging

from lab.speed import scale
from lab.speed.content import Content
from lab.speed.prefill import PrefillPlan, measure_prefill, profiled
from lab.speed.prefill_tables import markdown
from lab.speed.subject import Subject, checkpoint_subject, random_subject
from lab.speed.timing import torch_threads
from sharp_demo.errors import InputError
from sharp_demo.pruning.registry import list_methods
from sharp_demo.settings import Settings

T = TypeVar("T")


def run(
    settings: Settings,
    *,
    model: str | None,
    config: str | None,
    layers: str,
    tokens: int | None,
    text_tokens: int,
    methods: str,
    retention: str,
    segments: str,
    duplicates: str,
    device: str | None,
    dtype: str | None,
    attention: str,
    scale_frames: str,
    rounds: int,
    decode_tokens: int,
    vision: int,
    seed: int,
    threads: int,
    json_path: Path | None,
    markdown_path: Path | None,
    svg_path: Path | None,
    profile_path: Path | None,
) -> None:
    """Measure what the options say and write what was asked for. Raises InputError before a model is built."""
    if (model is None) == (config is None):
        raise InputError("give either --model (a checkpoint) or --config (a published configuration, random weights)")
    if svg_path is not None and not scale_frames:
        raise InputError("--svg draws a sweep over lengths: give --scale as well, for example --scale 8,16,32")
    backends = tuple(part.strip() for part in attention.split(",") if part.strip()) or ("auto",)
    for backend in backends:
        settings = placed(settings, device=device, dtype=dtype, attention=backend)
    contents = product(numbers(segments, int, "segments"), numbers(duplicates, float, "duplicates"))
    plan = PrefillPlan(
        methods=methods_of(methods),
        retentions=numbers(retention, float, "retention"),
        contents=tuple(Content(count, share) for count, share in contents),
        attentions=() if backends == ("auto",) else backends,
        tokens=tokens,
        text_tokens=text_tokens,
        rounds=rounds,
        decode_tokens=decode_tokens,
        vision=vision,
        seed=seed,
    )
    depth = None if layers == "all" else numbers(layers, int, "layers")[0]
    lengths = numbers(scale_frames, int, "scale") if scale_frames else ()
    if any(count < 1 for count in lengths) or (lengths and tokens is not None):
        raise InputError("--scale takes numbers of frames of at least 1, in place of --tokens")
    logging.disable_progress_bar()
    with torch_threads(threads):
        subject = build(model, config, placed(settings, attention=backends[0]), depth, plan)
        if lengths:
            document = scale.measure_scale(subject, plan, lengths, report)
            page = scale.markdown(document)
        else:
            document = measure_prefill(subject, plan, report)
            page = markdown(document)
        print(page)
        write(json_path, lambda: json.dumps(document, indent=1) + "\n")
        write(markdown_path, lambda: page)
        write(svg_path, lambda: scale.svg(document))
        write(profile_path, lambda: profiled(subject, plan) + "\n")


def placed(settings: Settings, **choices: str | None) -> Settings:
    """The settings with device, dtype or attention replaced where one was named; InputError names the options."""
    chosen = {name: value for name, value in choices.items() if value is not None}
    try:
        return Settings(**{**settings.model_dump(), **chosen})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None


def build(model: str | None, config: str | None, settings: Settings, layers: int | None, plan: PrefillPlan) -> Subject:
    """The checkpoint, or the configuration with random weights."""
    if config is not None:
        return random_subject(config, settings, layers=layers, vision=plan.vision > 0, seed=plan.seed)
    if layers is not None:
        raise InputError("--layers shortens a configuration; a checkpoint keeps all of its layers")
    assert model is not None
    return checkpoint_subject(model, settings)


def methods_of(text: str) -> tuple[str, ...]:
    """Read "vanilla,sharp"; "all" stands for every registered method."""
    named = (name.strip() for name in text.split(",") if name.strip())
    return tuple(dict.fromkeys(one for name in named for one in (list_methods() if name == "all" else [name])))


def numbers(text: str, kind: Callable[[str], T], what: str) -> tuple[T, ...]:
    """Read "0.235,0.14". Raises InputError for what is no number, or nothing at all."""
    try:
        values = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values:
        raise InputError(f"cannot read {what} {text!r}; write numbers separated by commas")
    return values


def report(line: str) -> None:
    """Say on a terminal's stderr what is being measured."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(line, style="dim", highlight=False)


def write(path: Path | None, text: Callable[[], str]) -> None:
    if path is not None:
        try:
            path.write_text(text(), "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        print(f"wrote {path}", file=sys.stderr)
