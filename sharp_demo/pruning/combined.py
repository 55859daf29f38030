"""Several methods on one prefill: `VisionZip(...) + ShaRP(...)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sharp_demo.pruning.method import Method
from sharp_demo.pruning.schedule import Schedule


@dataclass(frozen=True)
class Combined(Method):
    """Calls the hooks of several methods one after another; what one drops, the next no longer sees.

    `retention` is what the last one leaves. A part whose own retention is 1 stays out.
    """

    name = "combined"
    title = "Combined"
    where = "both"

    methods: tuple[Method, ...] = ()

    @property
    def parts(self) -> tuple[Method, ...]:
        return self.methods

    @property
    def active(self) -> bool:
        return any(part.active for part in self.parts)

    @property
    def needs_vision(self) -> bool:  # type: ignore[override]
        return any(part.needs_vision for part in self.parts if part.active)

    @property
    def question_aware(self) -> bool:  # type: ignore[override]
        return any(part.question_aware for part in self.parts)

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return any(part.adaptive for part in self.parts)

    def fitted(self, layers: int) -> Combined:
        return replace(self, methods=tuple(part.fitted(layers) for part in self.methods))

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        stages = [stage for part in self.parts if part.active for stage in part.schedule(layers, n, frames)]
        kept, left = n, {}
        for layer, asked in sorted(stages, key=lambda stage: stage[0]):  # stable: in one layer the first part is first
            left[layer] = kept = min(kept, asked)
        return list(left.items())

    def require(self, processor: Any | None) -> None:
        for part in self.parts:
            part.require(processor)

    def check(self, layers: int) -> None:
        for part in self.parts:
            part.check(layers)
