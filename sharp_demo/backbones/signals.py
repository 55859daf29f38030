"""What the vision tower says about its tokens: attention received, and keys. VisionZip and HoliTom choose by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sharp_demo.backbones.families import family_of
from sharp_demo.errors import UnsupportedError
from sharp_demo.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False)
class VisionSignals:
    """Of the tower layer whose output feeds the projector, for the N visual tokens of a layout, in its order.

    Attributes
    ----------
    received : [N] fp32, attention that a token receives: softmax, mean over heads and over all queries of its frame
        (or temporal patch). Neither tower has a class token, so there is no better single query.
    keys : [N, head_dim] fp32, keys without rotation, mean over heads.
    ms : what computing them took, without the tower's own pass.

    Patches become tokens as features do: bilinear pooling (LLaVA-OneVision), the mean of the square of patches that
    a token joins (Qwen-VL, SmolVLM2).
    """

    received: Tensor
    keys: Tensor
    ms: float = 0.0


@dataclass
class VisionTap:
    """Collects signals from every pass through the tower while `tapped` is open."""

    device: torch.device
    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    ms: float = 0.0

    def signals(self) -> VisionSignals | None:
        """Everything since the last `clear`, in the order of the passes; None when the tower did not run."""
        if not self.parts:
            return None
        received, keys = zip(*self.parts, strict=True)
        return VisionSignals(torch.cat(received), torch.cat(keys), self.ms)

    def clear(self) -> None:
        self.parts, self.ms = [], 0.0


@contextmanager
def tapped(model: PreTrainedModel) -> Iterator[VisionTap]:
    """Watch the attention of the tower layer that feeds the projector; nothing about the pass itself changes.

    The one layer's attention is computed a second time, a frame at a time, so no backend has to return weights.
    Raises UnsupportedError when the checkpoint joins several tower layers or drops a class token.
    """
    if refusal := signals_refusal(model):
        raise UnsupportedError(refusal)
    family = family_of(model.config)
    module, read = family.signal_source(model)
    tap = VisionTap(next(module.parameters()).device)

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch = Stopwatch(tap.device)
        with watch("signals"):
            hidden = args[0] if args else kwargs["hidden_states"]
            tap.parts.append(read(model, module, hidden, kwargs))
        tap.ms += watch.ms()["signals"]

    def label(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: BaseModelOutput) -> None:
        received, keys = (family.in_layout_order(model, kwargs, rows) for rows in tap.parts[-1])
        tap.parts[-1] = received, keys
        # `generate` encodes pixels before it calls the model, and hands on this very output.
        output.signals = VisionSignals(received, keys, tap.ms)

    hooks = (
        module.register_forward_pre_hook(see, with_kwargs=True),
        family.tower(model).register_forward_hook(label, with_kwargs=True),
    )
    try:
        yield tap
    finally:
        for hook in hooks:
            hook.remove()


def signals_refusal(model: PreTrainedModel) -> str | None:
    """Why this checkpoint's tower cannot be read, or None."""
    return family_of(model.config).signals_refusal(model.config)
