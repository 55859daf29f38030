"""One fixed colour per method, the same in every chart, column and report."""

from __future__ import annotations

from sharp_demo.pruning import registry
from sharp_demo.pruning.sharp import ShaRP

# For methods that name no colour, given out by name so that a colour never moves; two of them may share one.
SPARE_COLORS = ("#6E2C4F", "#9DBB1F", "#7A4B1E", "#3E5C2B")

SCORE_COLORS = {"raw": "#8E96A3", "bias": "#D2614A", "debiased": ShaRP.color}

SHARED_COLORS = ("#9AA3AF", "#C3C9D1")  # video decoding, vision encoder

# Viridis by stage order, so that neighbours in a stacked bar differ in lightness and not in hue alone.
STAGE_RAMP = ("#440154", "#46327E", "#365C8D", "#277F8E", "#1FA187", "#4AC16D", "#A0DA39", "#FDE725")


def method_color(method: str) -> str:
    """Return the hex colour of a method: its own, or a spare one."""
    own = next((known.color for known in registry.METHODS if known.name == method), "")
    return own or SPARE_COLORS[sum(map(ord, method)) % len(SPARE_COLORS)]
