"""The model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from sharp_demo.pruning.method import Method, knob


@dataclass(frozen=True)
class Vanilla(Method):
    """No pruning: the untouched forward of the model runs. The reference of every comparison."""

    name = "vanilla"
    title = "Vanilla"
    summary = "Keeps every visual token."
    where = "nowhere"
    color = "#7D8590"

    retention: float = knob(1.0, "always 1: nothing is dropped", high=1.0)

    @property
    def active(self) -> bool:
        return False
