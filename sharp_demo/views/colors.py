"""One fixed colour per method, the same in every chart, column and report."""

from __future__ import annotations

METHOD_COLORS = {
    "vanilla": "#7D8590",
    "fastv": "#E08A00",
    "feather": "#0B9B78",
    "sharp": "#3D7FF0",
    "pdrop": "#D2614A",
    "framefusion": "#4F9E3F",
    "visionzip": "#B5A100",
    "holitom": "#2FA4D7",
    "sharpv": "#B63BD1",
    "evs": "#8E1F2F",
    "visionzip+sharp": "#5546D6",
    "holitom+sharp": "#126A80",
    "random": "#A9745B",
    "uniform": "#8F6BC4",
    "latest": "#C2548A",
}
# For methods of a host's own, given out by name so that a colour never moves; two of them may share one.
SPARE_COLORS = ("#6E2C4F", "#9DBB1F", "#7A4B1E", "#3E5C2B")

SCORE_COLORS = {"raw": "#8E96A3", "bias": "#D2614A", "debiased": METHOD_COLORS["sharp"]}

SHARED_COLORS = ("#9AA3AF", "#C3C9D1")  # video decoding, vision encoder

# Viridis by stage order, so that neighbours in a stacked bar differ in lightness and not in hue alone.
STAGE_RAMP = ("#440154", "#46327E", "#365C8D", "#277F8E", "#1FA187", "#4AC16D", "#A0DA39", "#FDE725")


def method_color(method: str) -> str:
    """Return the hex colour of a method; of each registered one, its own."""
    if method in METHOD_COLORS:
        return METHOD_COLORS[method]
    return SPARE_COLORS[sum(map(ord, method)) % len(SPARE_COLORS)]
