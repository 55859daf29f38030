"""Looks at every layer's last-token attention without dropping anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharp_demo.pruning.method import Method, knob
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.prefill import Prefill


@dataclass(frozen=True)
class AttentionProbe(Method):
    """Record the last token's attention to every visual token in every decoder layer, as `scores["layer i"]`.

    Post-softmax, mean over heads; nothing is pruned, so the answer is vanilla's.
    """

    name = "attention-probe"
    title = "Attention probe"
    where = "nowhere"
    question_aware = True

    retention: float = knob(1.0, "always 1: nothing is dropped", high=1.0)

    @property
    def active(self) -> bool:
        return True

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer:
            self._record(layer - 1, prefill)
        return None

    def after_prefill(self, prefill: Prefill) -> None:
        self._record(len(prefill.layers) - 1, prefill)

    @staticmethod
    def _record(layer: int, prefill: Prefill) -> None:
        attention = prefill.logits_of_last_layer(layer).softmax(-1).mean(0)
        prefill.record_scores(f"layer {layer}", attention[prefill.rows])


def attention_per_frame(scores: dict[str, Tensor], layers: int, frames: int) -> Tensor:
    """Sum a probe's scores over the tokens of each layout frame: [layers, frames], fp32."""
    stacked = torch.stack([scores[f"layer {layer}"] for layer in range(layers)])
    return stacked.view(layers, frames, -1).sum(-1)
