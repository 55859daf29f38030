"""Advanced settings, built from the methods' own knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

import gradio as gr

from sharp_demo import strings
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import MethodSpec

# The switches worth having on the page; the command line and the library have all of them.
KNOBS: tuple[tuple[str, str], ...] = (
    ("sharp", "segm"),
    ("sharp", "posc"),
    ("sharp", "regd"),
    ("sharp", "penalty"),
    ("sharp", "score_layer"),
    ("sharp", "score_space"),
    ("fastv", "layer"),
)


def knob_field(method: str, name: str) -> Field[Any]:
    """Return the dataclass field of a method's knob."""
    return next(knob for knob in fields(method_class(method)) if knob.name == name)


def method_specs(methods: Sequence[str], values: Mapping[str, Any]) -> tuple[MethodSpec, ...]:
    """Return the chosen columns with the options that differ from their defaults.

    `values` has those of `KNOBS` under names like `sharp.segm`; what it lacks stays at its default.
    """
    options: dict[str, dict[str, Any]] = {}
    for method, name in KNOBS:
        value = values.get(f"{method}.{name}")
        if value is not None and value != knob_field(method, name).default:
            options.setdefault(method, {})[name] = value
    return tuple(MethodSpec(name, options.get(name, {}), method_class(name).title) for name in methods)


def knob_control(method: str, name: str) -> gr.components.Component:
    """Create the control of one knob inside the current layout."""
    knob = knob_field(method, name)
    label = f"{method_class(method).title}: {strings.KNOB_NAMES.get(name, name.replace('_', ' '))}"
    text = knob.metadata["help"]
    if isinstance(knob.default, bool):
        return gr.Checkbox(knob.default, label=label, info=text)
    if knob.metadata["choices"]:
        return gr.Dropdown(list(knob.metadata["choices"]), value=knob.default, label=label, info=text)
    whole = isinstance(knob.default, int)
    return gr.Number(
        knob.default,
        label=label,
        info=text,
        precision=0 if whole else None,
        step=1 if whole else 0.1,
        minimum=knob.metadata["low"],
        maximum=knob.metadata["high"],
    )
