"""What the cases of a measurement are called, in its fits and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharp_demo.pruning.registry import method_class

PLAIN = "plain"  # the model as transformers ships it, nothing attached


def label(result: dict[str, Any], document: dict[str, Any]) -> str:
    """Title and retention; content and backend where there are several."""
    if result["method"] == PLAIN:
        parts = ["plain model"]
    else:
        parts = [method_class(result["method"]).title]
        if result["method"] != "vanilla":
            parts[0] += f" {result['retention']:.1%}"
    results = document["results"]
    if len({tuple(one["content"].values()) for one in results}) > 1 and result["method"] not in (PLAIN, "vanilla"):
        parts.append(content_title(result["content"]))
    if len({one["attention"] for one in results}) > 1:
        parts.append(result["attention"])
    return ", ".join(parts)


def content_title(content: Mapping[str, Any]) -> str:
    """How repetitive an imagined clip is; `content` are the fields of `lab.speed.content.Content`."""
    segments = content["segments"]
    return f"{segments} segment{'s' * (segments > 1)}, {content['duplicates']:.0%} repeated"
