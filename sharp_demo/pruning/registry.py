"""All methods by name: menus, command line, documentation and tests read this one list."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sharp_demo.errors import MethodError
from sharp_demo.pruning.cdpruner import CDPruner
from sharp_demo.pruning.dart import DART
from sharp_demo.pruning.divprune import DivPrune
from sharp_demo.pruning.dycoke import DyCoke
from sharp_demo.pruning.evs import EVS
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.fastvid import FastVID
from sharp_demo.pruning.feather import Feather
from sharp_demo.pruning.flashvid import FlashVID
from sharp_demo.pruning.floors import Latest, Random, Uniform
from sharp_demo.pruning.framefusion import FrameFusion
from sharp_demo.pruning.holitom import HoliTom
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.pdrop import PDrop
from sharp_demo.pruning.schedule import Schedule
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharpv import SharpV
from sharp_demo.pruning.tome import ToMe
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.pruning.vidcom2 import VidCom2
from sharp_demo.pruning.video_floors import FewerFrames, SmallerFrames
from sharp_demo.pruning.visionzip import VisionZip
from sharp_demo.pruning.with_sharp import HoliTomShaRP, ToMeShaRP, VidCom2ShaRP, VisionZipShaRP

METHODS: tuple[type[Method], ...] = (
    *(Vanilla, FastV, Feather, ShaRP, PDrop, FrameFusion, VisionZip, HoliTom, SharpV, EVS),
    *(VidCom2, DART, CDPruner, DivPrune, DyCoke, FastVID, FlashVID, ToMe),
    *(VisionZipShaRP, HoliTomShaRP, VidCom2ShaRP, ToMeShaRP),
    *(Random, Uniform, Latest, FewerFrames, SmallerFrames),
)


def methods() -> dict[str, type[Method]]:
    """Return the class of every method by its name, the reference first and the floors last."""
    return {method.name: method for method in METHODS}


def list_methods() -> list[str]:
    """Return the names of all methods, the reference first and the floors last."""
    return [method.name for method in METHODS]


def method_class(name: str) -> type[Method]:
    """Return the class registered as `name`; MethodError lists the options."""
    for method in METHODS:
        if method.name == name:
            return method
    raise MethodError(f"there is no method named {name!r}; the methods are {', '.join(list_methods())}")


def make_method(name: str, retention: float, options: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its name, a retention in (0, 1] and its options.

    Option values may be text, as a command line or a form gives them ("false", "0.4", "0,1"). Raises MethodError
    naming the option, what it may be, or the options there are.
    """
    cls = method_class(name)
    kinds = typing.get_type_hints(cls)
    known = {option.name for option in fields(cls)} - {"retention"}
    values: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if key not in known:
            there_are = f"its options are {', '.join(sorted(known))}" if known else "it has no options"
            raise MethodError(f"{name}: there is no option {key!r}; {there_are}")
        values[key] = _coerce(f"{name}: {key}", value, kinds[key])
    return cls(retention=1.0 if cls is Vanilla else retention, **values)


def method_schedule(
    name: str, retention: float, n: int, layers: int = 28, options: Mapping[str, Any] | None = None, frames: int = 1
) -> Schedule:
    """Return the prune stages of a method by its name. Raises MethodError like `make_method`."""
    return make_method(name, retention, options).schedule(layers, n, frames)


def _coerce(what: str, value: Any, kind: Any) -> Any:
    """Turn an option's value into its field's type (bool, int, float, str, tuple of int)."""
    text = str(value).strip()
    if kind is bool:
        words = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        if text.lower() not in words:
            raise MethodError(f"{what} is {text!r}; it must be true or false")
        return words[text.lower()]
    if kind is str:
        return text
    try:
        if kind in (int, float):
            return kind(text)
        parts = value if isinstance(value, list | tuple) else [part for part in text.split(",") if part.strip()]
        return tuple(int(part) for part in parts)
    except (ValueError, TypeError):
        wanted = {int: "a whole number", float: "a number"}.get(kind, "whole numbers separated by commas")
        raise MethodError(f"{what} is {text!r}; it must be {wanted}") from None
