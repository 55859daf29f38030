"""One model, many methods: a request becomes a stream of plain-data events.

`Engine` is imported when it is asked for: who wants `generation` or `condition` alone does not load all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharp_demo.engine.runs import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from sharp_demo.engine.runs import Engine

    return Engine
