"""Questions, and an engine that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from lab.paper.store import Question
from sharp_demo.records import (
    AttentionMaps,
    Decoded,
    Event,
    Latency,
    Layout,
    Memory,
    MethodDone,
    MethodFailed,
    Request,
    Result,
    Stage,
    Tflops,
    TokenCounts,
)

FRAMES = 4


def question(doc_id: int, video: str = "/films/a.mp4", task: str = "toy") -> Question:
    return Question(task, "test", doc_id, video, f"what is in {doc_id}?", 8)


def result(request: Request, label: str, method: str, answer: str, frames: int = FRAMES) -> Result:
    times = Latency(1, 2, 0, 3, 4, 7, 5, None, 12, {"forward": Stage(4, False, "prefill")})
    return Result(
        method=method,
        label=label,
        config={"retention": request.retention},
        status="done",
        answer=answer,
        answer_tokens=1,
        first_token_prob=0.5,
        tokens=TokenCounts(9, 4, 2, 0.5, 0.5),
        visual_per_layer=[4, 2],
        left_before=[1, 2, 2, 1],
        kv_per_layer=[4, 2],
        layout=Layout(frames, 1, 1, 1, tuple(map(float, range(frames)))),
        kept=[[0]] * frames,
        role=[["kept"]] * frames,
        merged_into=[],
        scores={},
        segments=[],
        latency_ms=times,
        tflops=Tflops(1.0, 2.0),
        memory=Memory(1, None),
        device="cpu",
        dtype="float32",
        attention_backend="sdpa",
        seed=request.seed,
        versions={"python": "3"},
    )


class ToyEngine:
    """Answers "METHOD on VIDEO"; counts requests; `trouble` may change a result into another event, or raise."""

    def __init__(self, trouble: Callable[[Request, Result], Event | None] = lambda request, result: None) -> None:
        self.requests: list[Request] = []
        self.trouble = trouble

    def stream(self, request: Request) -> Iterator[Event]:
        self.requests.append(request)
        yield Decoded(np.zeros((FRAMES, 2, 2, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), {"distinct_frames": 3}, 1.0)
        for spec in request.methods:
            done = result(request, spec.title, spec.name, f"{spec.name} on {request.video}")
            yield self.trouble(request, done) or MethodDone(spec.title, done)

    def attention(self, request: Request) -> AttentionMaps:
        self.requests.append(request)
        rows = [[0.25] * FRAMES] * 2
        return AttentionMaps(Layout(FRAMES, 1, 1, 1, (0.0, 1.0, 2.0, 3.0)), 0.6, rows, rows, [[0.1] * FRAMES] * 2, [])


def fails(kind: str, method: str) -> Callable[[Request, Result], Event | None]:
    """One method always fails."""
    return lambda request, result: MethodFailed(result.label, kind, "no luck") if result.method == method else None


def thin(request: Request, done: Result) -> Event:
    """Every answer saw half of the frames."""
    layout = replace(done.layout, frames=FRAMES // 2, timestamps=(0.0, 2.0))
    return MethodDone(done.label, replace(done, layout=layout, kept=done.kept[:2], role=done.role[:2]))
