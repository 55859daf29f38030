"""The page's settings as a query string, and back. What a link says is checked like any other input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from sharp_demo import strings
from sharp_demo.errors import SharpError
from sharp_demo.page.controls import KNOBS, knob_field
from sharp_demo.page.inputs import Example, example_of, frame_choices
from sharp_demo.pruning.registry import list_methods
from sharp_demo.settings import Settings

# The page's inputs in their order; a knob is named like `sharp.segm`.
NAMES = (
    "example",
    "question",
    "model",
    "methods",
    "retention",
    "match",
    "frames",
    "max_new_tokens",
    "seed",
    *(f"{method}.{name}" for method, name in KNOBS),
)

# What is open, and what the modes are set to; the comparison is what opens without a mode.
CHOICES = {
    "mode": ("compare", "ablate", "sweep", "walk", "benchmarks"),
    "plan": tuple(name for _, name in strings.ABLATE_CHOICES),
    "steps": tuple(name for _, name in strings.SWEEP_CHOICES),
}


def query_of(inputs: Sequence[Any], examples: Sequence[Example], **choices: str) -> str:
    """Return the query string of the page's inputs and any of `CHOICES`.

    An uploaded video has no name that a link could hold.
    """
    video, *rest = inputs
    example = example_of(examples, video) if video else None
    values = [example.video.stem if example else None, *rest]
    known = {name: _written(value) for name, value in zip(NAMES, values, strict=True) if value is not None}
    return urlencode({**known, **choices})


def inputs_of(
    query: Mapping[str, str], models: Sequence[str], examples: Sequence[Example], settings: Settings
) -> tuple[list[Any], list[str]]:
    """Return a value for each of the page's inputs and `CHOICES`, and the names that the link got wrong.

    A value is `gr.skip()` where the link has none.
    """
    readers = _readers(models, examples, settings)
    values: list[Any] = []
    wrong = []
    for name in (*NAMES, *CHOICES):
        value = gr.skip()
        if name in query:
            try:
                value = readers[name](query[name])
            except (ValueError, StopIteration, SharpError):
                wrong.append(name)
        values.append(value)
    return values, wrong


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _readers(models: Sequence[str], examples: Sequence[Example], settings: Settings) -> dict[str, Callable[[str], Any]]:
    def question(text: str) -> str:
        if len(text) > settings.max_question_chars:
            raise ValueError
        return text

    def methods(text: str) -> list[str]:
        names = [_one_of(list_methods())(name) for name in text.split(",")]
        if len(set(names)) < len(names):
            raise ValueError
        return names

    def frames(text: str) -> int:
        if int(text) not in frame_choices(settings):
            raise ValueError
        return int(text)

    return {
        "example": lambda text: str(next(one.video for one in examples if one.video.stem == text)),
        "question": question,
        "model": _one_of(models),
        "methods": methods,
        "retention": _number(int, 2, 100),
        "match": _one_of(("tokens", "flops")),
        "frames": frames,
        "max_new_tokens": _number(int, 1, settings.max_new_tokens),
        "seed": _number(int, 0, 2**31 - 1),
        **{f"{method}.{name}": _knob(method, name) for method, name in KNOBS},
        **{name: _one_of(options) for name, options in CHOICES.items()},
    }


def _one_of(options: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in options:
            raise ValueError
        return text

    return read


def _number(kind: type, low: float | None, high: float | None) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        # NaN compares false, so it is refused too.
        if not (-float("inf") if low is None else low) <= value <= (float("inf") if high is None else high):
            raise ValueError
        return value

    return read


def _knob(method: str, name: str) -> Callable[[str], Any]:
    knob = knob_field(method, name)
    if isinstance(knob.default, bool):
        return lambda text: _one_of(("true", "false"))(text) == "true"
    if knob.metadata["choices"]:
        return _one_of(knob.metadata["choices"])
    return _number(int if isinstance(knob.default, int) else float, knob.metadata["low"], knob.metadata["high"])
