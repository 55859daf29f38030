"""Small helpers for reading checkpoint files that may be missing or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sharp_demo.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no such file. Raises `ModelError` when it cannot be read."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({one_line(error)}); download it again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return values


def one_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
