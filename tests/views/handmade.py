"""Hand-made results with known contents."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sharp_demo.records import Latency, Layout, Memory, Ratio, Result, Speedup, Stage, Tflops, TokenCounts

ROLE_CYCLE = ("kept", "register", "filled", "merged", "grid")


def make_result(
    method: str = "sharp", *, frames: int = 4, rows: int = 3, cols: int = 5, keep: int = 7, **over
) -> Result:
    """A result that kept `keep` random slots; 8 ms decode_video and 4 ms vision are shared."""
    rng = np.random.default_rng(sum(map(ord, method)))
    total = frames * rows * cols
    slots = np.sort(rng.choice(total, total if method == "vanilla" else keep, replace=False))
    per_frame = [(slots[slots // (rows * cols) == f] % (rows * cols)).tolist() for f in range(frames)]
    roles = [[ROLE_CYCLE[i % len(ROLE_CYCLE)] for i in indices] for indices in per_frame]
    prefill = 20.0 if method == "vanilla" else 8.0
    inner = (
        {} if method == "vanilla" else {"scores": Stage(1.5, False, "prefill"), "forward": Stage(6.0, False, "prefill")}
    )
    scores = {kind: rng.random(total).tolist() for kind in (("raw", "bias", "debiased") if method == "sharp" else ())}
    values = {
        "method": method,
        "label": method.title(),
        "config": {"retention": keep / total},
        "status": "done",
        "answer": "A red circle.",
        "answer_tokens": 4,
        "first_token_prob": 0.9,
        "tokens": TokenCounts(total + 30, total, len(slots), len(slots) / total, len(slots) / total),
        "visual_per_layer": [total, len(slots)],
        "kv_per_layer": [total, len(slots)],
        "layout": Layout(frames, rows, cols, 1, tuple(float(f) for f in range(frames))),
        "kept": per_frame,
        "role": roles,
        "merged_into": [],
        "scores": scores,
        "segments": [[0, 1], [1, frames]] if method == "sharp" else [],
        "latency_ms": Latency(
            decode_video=8.0,
            vision=4.0,
            bias_setup=0.0,
            before_prefill=12.0,
            prefill=prefill,
            first_token=12.0 + prefill,
            decode=10.0,
            decode_per_token=2.5,
            total=22.0 + prefill,
            stages={"decode_video": Stage(8.0, True), "vision": Stage(4.0, True), **inner},
            rounds=[prefill - 0.5, prefill, prefill + 0.5],
            cpu_rounds=[prefill, prefill, prefill],
        ),
        "speedup": None
        if method == "vanilla"
        else Speedup(Ratio(2.5, 2.4, 2.6, 3), Ratio(2.5, 2.5, 2.5, 3), Ratio(1.6, 1.5, 1.7, 3), 32 / 12),
        "tflops": Tflops(0.002, 0.003) if method == "vanilla" else Tflops(0.001, 0.001),
        "memory": Memory(123_456, None),
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "sdpa",
        "seed": 0,
        "versions": {"torch": "2"},
    }
    values |= over
    return Result(**{"left_before": leaving(values), **values})


def leaving(values: dict) -> list[int]:
    """A `left_before` that goes with the counts: of the slots that are gone, the lowest left first."""
    layout, per_layer = values["layout"], values["visual_per_layer"]
    kept = {f * layout.rows * layout.cols + token for f, tokens in enumerate(values["kept"]) for token in tokens}
    gone = [slot for slot in range(layout.tokens) if slot not in kept]
    left = [len(per_layer)] * layout.tokens
    for layer, (before, after) in enumerate(pairwise([layout.tokens, *per_layer])):
        for slot in gone[layout.tokens - before : layout.tokens - after]:
            left[slot] = layer
    return left
