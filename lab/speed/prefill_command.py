"""`python -m sharp_demo bench prefill`: reads the lists of a command line, measures, prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Console
from transformers.utils import logging

from lab.speed import scale
from lab.speed.content import Content
from lab.speed.prefill import PrefillPlan, measure_prefill, profiled
from lab.speed.subject import Subject, checkpoint_subject, random_subject
from lab.speed.timing import torch_threads
from lab.tables import scale as scale_tables
from lab.tables import speed as speed_tables
from sharp_demo.errors import InputError
from sharp_demo.pruning.registry import list_methods
from sharp_demo.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class PrefillOptions:
    """The options of the command line, as it gives them: lists are texts with commas."""

    config: str | None
    model: str | None
    tokens: int | None
    text_tokens: int
    methods: str
    retention: str
    segments: str
    duplicates: str
    rounds: int
    decode_tokens: int
    vision: int
    ttft: bool
    layers: str
    threads: int
    device: str | None
    dtype: str | None
    attention: str
    scale: str
    seed: int
    json_: Path | None
    markdown: Path | None
    svg: Path | None
    profile: Path | None

    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.attention.split(",") if part.strip()) or ("auto",)

    @property
    def lengths(self) -> tuple[int, ...]:
        return numbers(self.scale, int, "scale") if self.scale else ()

    @property
    def depth(self) -> int | None:
        return None if self.layers == "all" else numbers(self.layers, int, "layers")[0]

    def plan(self) -> PrefillPlan:
        """What to measure. Raises InputError."""
        contents = product(numbers(self.segments, int, "segments"), numbers(self.duplicates, float, "duplicates"))
        return PrefillPlan(
            methods=methods_of(self.methods),
            retentions=numbers(self.retention, float, "retention"),
            contents=tuple(Content(count, share) for count, share in contents),
            attentions=() if self.backends == ("auto",) else self.backends,
            tokens=self.tokens,
            text_tokens=self.text_tokens,
            rounds=self.rounds,
            decode_tokens=self.decode_tokens,
            vision=self.vision,
            ttft=self.ttft,
            seed=self.seed,
        )

    def check(self) -> None:
        """Raise InputError for options that do not go together."""
        if (self.model is None) == (self.config is None):
            raise InputError(
                "give either --model (a checkpoint) or --config (a published configuration, random weights)"
            )
        if self.svg is not None and not self.scale:
            raise InputError("--svg draws a sweep over lengths: give --scale as well, for example --scale 8,16,32")
        if any(count < 1 for count in self.lengths) or (self.lengths and self.tokens is not None):
            raise InputError("--scale takes numbers of frames of at least 1, in place of --tokens")


def run(settings: Settings, options: PrefillOptions) -> None:
    """Measure what the options say and write what was asked for. Raises InputError before a model is built."""
    options.check()
    for backend in options.backends:
        settings = placed(settings, device=options.device, dtype=options.dtype, attention=backend)
    plan, lengths = options.plan(), options.lengths
    logging.disable_progress_bar()
    with torch_threads(options.threads):
        subject = build(options, placed(settings, attention=options.backends[0]), plan)
        if lengths:
            document = scale.measure_scale(subject, plan, lengths, report)
            page = scale_tables.markdown(document)
        else:
            document = measure_prefill(subject, plan, report)
            page = speed_tables.markdown(document)
        print(page)
        write(options.json_, lambda: json.dumps(document, indent=1) + "\n")
        write(options.markdown, lambda: page)
        write(options.svg, lambda: scale_tables.svg(document))
        write(options.profile, lambda: profiled(subject, plan) + "\n")


def placed(settings: Settings, **choices: str | None) -> Settings:
    """The settings with device, dtype or attention replaced where one was named; InputError names the options."""
    chosen = {name: value for name, value in choices.items() if value is not None}
    try:
        return Settings(**{**settings.model_dump(), **chosen})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None


def build(options: PrefillOptions, settings: Settings, plan: PrefillPlan) -> Subject:
    """The checkpoint, or the configuration with random weights."""
    if options.config is not None:
        return random_subject(options.config, settings, layers=options.depth, vision=plan.tower, seed=plan.seed)
    if options.depth is not None:
        raise InputError("--layers shortens a configuration; a checkpoint keeps all of its layers")
    assert options.model is not None
    return checkpoint_subject(options.model, settings)


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
