"""What several commands take: methods with options, how they are matched, and files to write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharp_demo.errors import InputError, MethodError

if TYPE_CHECKING:
    from sharp_demo.records import MethodSpec


class Match(StrEnum):
    tokens = "tokens"
    flops = "flops"
    ttft = "ttft"


def parse_option(text: str) -> tuple[str, Any]:
    """Split `name=value`; the value is read as JSON (3, 0.5, true) and otherwise taken as text.

    Raises MethodError when there is no name or no `=`.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise MethodError(f"cannot read the option {text!r}; write name=value, for example layer=3")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or a number or nesting beyond Python's own limits
        return name.strip(), value.strip()


def method_specs(methods: str, settings: Iterable[str]) -> tuple[MethodSpec, ...]:
    """Read `--methods a,b` and `--set a.option=value` into one spec per method, in the order given.

    Raises MethodError when a method is named twice, none is named, or an option names a method that does not run.
    """
    from sharp_demo.records import MethodSpec

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise MethodError("no method was named; give --methods, for example vanilla,fastv,feather,sharp")
    if len(set(names)) < len(names):
        raise MethodError(f"a method is named twice in --methods {methods}")
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in settings:
        key, value = parse_option(text)
        method, dot, option = key.partition(".")
        if not dot or method not in options:
            raise MethodError(
                f"cannot read --set {text}; write METHOD.OPTION=VALUE with a method of {', '.join(names)}"
            )
        options[method][option] = value
    return tuple(MethodSpec(name, options[name]) for name in names)


def check_output(path: Path | None) -> None:
    """Refuse an output path before the run that would be lost with it."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; name a file")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"cannot write {path}: no permission")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def write(path: Path, text: str) -> None:
    """Write UTF-8 whatever the locale; an argument that was not valid text loses what cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
