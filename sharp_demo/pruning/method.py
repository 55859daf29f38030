"""The base class of every method: one shared knob, four hook points, and a `with` block that undoes itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sharp_demo.backbones.view import WHOLE, VideoShape, View
from sharp_demo.cost import ModelShape, Prunes
from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.schedule import Schedule, budget, visual_per_layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sharp_demo.backbones.load import Backbone
    from sharp_demo.pruning.layers import AttentionOverride
    from sharp_demo.pruning.outcome import Run, Selection
    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")

Where = Literal["nowhere", "tower", "before", "inside", "both"]
"""Where a method drops visual tokens: in the vision tower, before the LLM, between or inside its layers, or both."""

GROUPS = {
    "nowhere": "Reference",
    "inside": "Inside the LLM",
    "before": "Before the LLM",
    "both": "Before and inside the LLM",
    "tower": "In the vision tower",
    "floor": "Floors",
}
"""Titles of the groups that menus show methods in, in their order."""


REINDEX = (
    "renumber the positions of what is left, as the original does; off, and always with M-RoPE, tokens keep their own"
)


def knob(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    costs: bool = False,
) -> Any:
    """Return a dataclass field that knows its help text and what it may be; menus, CLI and checks read it.

    `costs`: the option changes what a prefill costs, so the command `flops` takes it.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "costs": costs}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Method:
    """A pruning method with its hyperparameters.

    `with Method(...)(model, processor) as run: model.generate(**inputs)` prunes inside the block; `run` tells what
    happened. Subclasses override the hooks they need. `retention` is the share of visual tokens left after the
    prune (methods with several stages say which one).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""  # link to the source
    year: ClassVar[int | None] = None
    summary: ClassVar[str] = ""  # one line: what is scored, where it prunes
    color: ClassVar[str] = ""  # hex, in every chart and column; empty: a spare one
    where: ClassVar[Where] = "inside"
    floor: ClassVar[bool] = False  # looks at nothing: what any method has to beat
    question_aware: ClassVar[bool] = False
    needs_vision: ClassVar[bool] = False  # reads attention of the vision tower: `prefill.signals`
    adaptive: ClassVar[bool] = False  # how many tokens it keeps depends on the video; `schedule` is nominal
    engines: ClassVar[str] = ""  # serving engines that offer it (docs/deployed.md)
    inside_layers: ClassVar[bool] = False  # drops between a layer's attention and its MLP, not between layers

    retention: float = knob(0.2, "share of visual tokens to keep, in (0, 1]", high=1.0)

    def __post_init__(self) -> None:
        if not 0 < self.retention <= 1:
            raise MethodError(f"{self.name}: retention is {self.retention:g}; it must be above 0 and at most 1")
        for option in fields(self):
            value = getattr(self, option.name)
            choices, low, high = (option.metadata.get(key) for key in ("choices", "low", "high"))
            if isinstance(value, float) and not math.isfinite(value):
                raise MethodError(f"{self.name}: {option.name} is {value}; it must be a finite number")
            if choices and value not in choices:
                options = ", ".join(map(str, choices))
                raise MethodError(f"{self.name}: {option.name} is {value!r}; it must be one of {options}")
            if low is not None and value < low:
                raise MethodError(f"{self.name}: {option.name} is {value:g}; it must be at least {low:g}")
            if high is not None and value > high:
                raise MethodError(f"{self.name}: {option.name} is {value:g}; it must be at most {high:g}")

    def __call__(
        self, model: nn.Module | Backbone, processor: Any | None = None, bias_cache: Any | None = None
    ) -> AbstractContextManager[Run]:
        """Attach this method to `model` for the length of a `with` block; see `attach.attached`.

        A `Backbone` brings its processor; with a model of your own, give its transformers processor or a `Processor`.
        """
        from sharp_demo.pruning.attach import attached

        if not isinstance(model, torch.nn.Module):
            model, processor = model.model, processor or model.processor
        self.require(processor)
        return attached(model, self, processor, bias_cache)

    @classmethod
    def group(cls) -> str:
        """A key of `GROUPS`."""
        return "floor" if cls.floor else cls.where

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods whose hooks are called, in this order at every hook point: itself, unless it combines others."""
        return (self,)

    @property
    def active(self) -> bool:
        """False when there is nothing to prune; the untouched forward runs then."""
        return self.retention < 1

    def fitted(self, layers: int) -> Method:
        """This method on a model of `layers` decoder layers: whatever its options leave to the depth is worked out."""
        return self

    def view(self, video: VideoShape) -> View:
        """How this method has a video shown to the model, before it is encoded; as it is unless a method says more."""
        return WHOLE

    def behind(self, view: View) -> Method:
        """What is attached to a prompt that was made by the method's own view: itself, unless the view did it all."""
        return self

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """Prune stages (layer, tokens kept) for a model of `layers` decoder layers and n visual tokens.

        `frames` matters to methods whose budget is one of each frame: it decides what rounding leaves.
        """
        return []

    def visual_per_layer(self, layers: int, n: int, frames: int = 1) -> list[int]:
        """Visual tokens that enter each decoder layer when nothing depends on the video's content."""
        return visual_per_layer(layers, n, self.schedule(layers, n, frames) if self.active else [])

    def mlp_per_layer(self, visual: Sequence[int]) -> list[int]:
        """Visual tokens that enter each layer's MLP, given those that enter its attention (`visual`)."""
        return [*visual[1:], *visual[-1:]] if self.inside_layers else list(visual)

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        """Multiply-adds that scoring adds to the forward, by stage: `scores`, `bias`, `bias_setup`.

        `bias_setup` is paid once and cached, the others in every prefill. A method that reads no attention adds none.
        """
        return {}

    def overhead_macs(
        self,
        shape: ModelShape,
        n: int,
        text_tokens: int = 40,
        prefix_tokens: int = 0,
        *,
        frames: int = 1,
        achieved: Sequence[int] | None = None,
    ) -> dict[str, int]:
        """Return `overhead` for a prompt of n visual tokens in `frames` layout frames and `text_tokens` others.

        `prefix_tokens` of the others stand before the video. `achieved` are the visual tokens that entered each layer,
        where a run has shown them; else the schedule's.
        """
        stages = self.schedule(shape.layers, n, frames)
        before = [n, *(kept for _, kept in stages)]
        if achieved is not None:
            before = [achieved[layer - 1] if layer else n for layer, _ in stages]
        return self.overhead(Prunes(shape, text_tokens, prefix_tokens, stages, before, frames))

    def least_retention(self, layers: int, frames: int) -> float:
        """The least retention that the method takes on so many decoder layers and layout frames; 0: any."""
        return 0.0

    def require(self, processor: Any | None) -> None:
        """Raise MethodError when the method needs the processor and there is none."""

    def check(self, layers: int) -> None:
        """Raise MethodError when the method does not fit a model of `layers` decoder layers."""
        for layer, _ in self.schedule(layers, 1):
            if layer >= layers:
                raise MethodError(
                    f"{self.name}: prunes before layer {layer}, but this model has layers 0 to {layers - 1}"
                )

    def __add__(self, other: Method) -> Method:
        """Both on one prefill, this one first at every hook point."""
        return Combined(retention=other.retention, methods=(*self.parts, *other.parts))

    # -- hook points ---------------------------------------------------------------------------------------------

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        """Called before decoder layer `layer`; a Selection drops every other visual token. Layer 0: before the LLM."""
        return None

    def attention(self, layer: int, prefill: Prefill) -> AttentionOverride | None:
        """Called just before the attention of `layer`, after any drop; returns what replaces it, or None."""
        return None

    def looks_inside(self, layer: int, prefill: Prefill) -> bool:
        """Whether `after_attention` may drop in `layer`; every such layer is run in two steps, which takes longer."""
        return type(self).after_attention is not Method.after_attention

    def after_attention(self, layer: int, prefill: Prefill) -> Selection | None:
        """Called inside `layer`, between attention and MLP; a Selection drops as in `before_layer`."""
        return None

    def after_prefill(self, prefill: Prefill) -> None:
        """Called when all layers ran; may shrink the cache with `prefill.drop_kv`."""


@dataclass(frozen=True)
class SingleStage(Method, ABC):
    """A method that drops once, before decoder layer `layer` (FastV's K)."""

    layer: int = knob(
        2, "K: decoder layers that run on all tokens; tokens are dropped before layer K", low=0, costs=True
    )

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(self.layer, budget(self.retention, n))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer != self.layer:
            return None
        return self.select(prefill, min(budget(self.retention, len(prefill.layout)), len(prefill.rows)))

    @abstractmethod
    def select(self, prefill: Prefill, k: int) -> Selection:
        """Choose k of the visual tokens."""


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

    def view(self, video: VideoShape) -> View:
        views = [view for part in self.parts if part.active and (view := part.view(video)) != WHOLE]
        if len(views) > 1:
            raise MethodError("two of the combined methods have the video shown in their own way: take one of them")
        return views[0] if views else WHOLE

    def behind(self, view: View) -> Combined:
        return replace(self, methods=tuple(part.behind(view) for part in self.methods))

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


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [k] of the highest scores, ascending; of equal scores the lower index wins."""
    return torch.sort(scores, descending=True, stable=True).indices[:k].sort().values
