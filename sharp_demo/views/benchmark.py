"""The stored accuracy of the embedded models under pruning: `assets/benchmark.json`, made from docs/results."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One line of the benchmark: a method at one retention on one model.

    `match` is what was held equal, "tokens" or "flops"; `kept_share` the share of visual tokens kept, as achieved;
    `accuracy` and the ends of its 95 % interval are shares of `n` questions; `flops_share` is against vanilla.
    """

    model: str
    method: str
    label: str
    match: str
    retention: float
    kept_share: float
    accuracy: float
    ci95: tuple[float, float]
    n: int
    flops_share: float


def load_benchmark(assets: Path) -> list[Measured]:
    """Return the stored benchmark; empty where the file is not there."""
    path = assets / "benchmark.json"
    if not path.is_file():
        return []
    stored = json.loads(path.read_text("utf-8"))
    return [Measured(**dict(zip(stored["fields"], row, strict=True))) for row in stored["rows"]]


def pack_benchmark(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of `assets/benchmark.json` from the results of `evaluate --json`."""
    names = [field.name for field in fields(Measured)]
    rows = [{**result, "flops_share": result["tflops_ratio"]} for result in results]
    return {"fields": names, "rows": [[row[name] for name in names] for row in rows]}
