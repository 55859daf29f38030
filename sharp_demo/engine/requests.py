"""What a request must be, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import chain, count
from typing import get_args

from sharp_demo.backbones.processor import clean_question
from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import make_method, method_class
from sharp_demo.records import Match, MethodSpec, Request
from sharp_demo.settings import Settings

MAX_TIMING_S = 60.0


def check_request(request: Request, limits: Settings) -> None:
    """Raise InputError for a question, number or budget that is not served."""
    clean_question(request.question, limits.max_question_chars)
    for what, value, high in (
        ("frames", request.frames, limits.max_frames),
        ("max_new_tokens", request.max_new_tokens, limits.max_new_tokens),
    ):
        if value is not None and (not isinstance(value, int) or not 1 <= value <= high):
            raise InputError(f"{what} is {value}; it must be between 1 and {high}, a whole number")
    if request.timing_s is not None and not 0 <= request.timing_s <= MAX_TIMING_S:
        raise InputError(f"timing_s is {request.timing_s:g}; it must be between 0 and {MAX_TIMING_S:g} seconds")
    if not 0 < request.retention <= 1:
        raise MethodError(f"retention is {request.retention:g}; it must be above 0 and at most 1")
    if request.match not in get_args(Match):
        raise InputError(f"match is {request.match!r}; it must be one of {', '.join(get_args(Match))}")


def methods_of(request: Request) -> list[tuple[str, Method]]:
    """Build every method with its label; MethodError for a wrong option, which so costs nobody a wait."""
    if not request.methods:
        raise MethodError("no method was chosen: pick at least one")
    labels = unique_labels(request.methods)
    built = []
    for label, spec in zip(labels, request.methods, strict=True):
        options = dict(spec.options)
        if any(option.name == "seed" for option in fields(method_class(spec.name))):
            options.setdefault("seed", request.seed)
        retention = request.retention if spec.retention is None else spec.retention
        built.append((label, make_method(spec.name, retention, options)))
    return built


def unique_labels(specs: Sequence[MethodSpec]) -> list[str]:
    """Return the column titles; a repeated one gets the first number that is free."""
    labels: list[str] = []
    for spec in specs:
        numbered = (f"{spec.title} {number}" for number in count(2))
        labels.append(next(label for label in chain((spec.title,), numbered) if label not in labels))
    return labels
