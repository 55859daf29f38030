"""What published checkpoints are known by, and the decoders that several families share; numbers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedModel:
    """One published checkpoint: where it lives, its config.json and its size.

    `config` is that of the hub repository `hub`; `parameters` counts tied weights once.
    """

    name: str
    hub: str
    config: dict[str, Any]
    parameters: int

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config, whether nested or flat."""
        text: dict[str, Any] = self.config.get("text_config", self.config)
        return text


QWEN2_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QWEN2_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
