"""Folds the engine's events into the value of the token columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from gradio.data_classes import FileData

from sharp_demo.pruning.registry import method_class
from sharp_demo.records import (
    Decoded,
    Done,
    Encoded,
    Event,
    MethodDone,
    MethodFailed,
    MethodSpec,
    MethodStarted,
    ModelInfo,
    Progress,
    Result,
    Started,
    Text,
)
from sharp_demo.ui import strings
from sharp_demo.views.colors import method_color
from sharp_demo.views.overlay import Sprite, encode, frame_of_clip, kept_per_frame, make_sprite, quantise, role_mask
from sharp_demo.views.summary import baseline_of, figures_of


@dataclass
class Column:
    """One method on the page; `status` is one of idle, waiting, running, done, stopped, error."""

    label: str
    method: str
    settings: str = ""
    status: str = "waiting"
    stage: str = strings.WAITING
    answer: str = ""
    error: str = ""
    result: Result | None = None
    tokens: dict[str, Any] | None = None


@dataclass
class Board:
    """The state of one run as the page shows it."""

    run: str = field(default_factory=lambda: uuid4().hex)
    phase: str = "idle"  # idle | waiting | running | done | stopped | error
    message: str = strings.IDLE
    columns: list[Column] = field(default_factory=list)
    model: ModelInfo | None = None
    sprite: Sprite | None = None
    sprite_path: str = ""
    sampled: int = 0
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def idle(cls, methods: Sequence[str]) -> Board:
        """Return the board before any run: what each method does."""
        classes = [method_class(name) for name in methods]
        columns = [Column(known.title, known.name, known.summary, "idle", "") for known in classes]
        return cls(columns=columns)

    @classmethod
    def waiting(cls, specs: Sequence[MethodSpec], message: str = strings.QUEUED) -> Board:
        """Return a board with every column cleared."""
        return cls(phase="waiting", message=message, columns=[_column(spec, spec.title) for spec in specs])

    @property
    def results(self) -> list[Result]:
        """Results so far, in column order."""
        return [column.result for column in self.columns if column.result is not None]

    def apply(self, event: Event) -> bool:
        """Take in one event; return True when a result, and so the charts, changed."""
        match event:
            case Started(request=request, model=model, labels=labels):
                self.phase, self.message, self.model = "running", strings.STARTING, model
                self.columns = [_column(spec, label) for spec, label in zip(request.methods, labels, strict=True)]
            case Progress(message=message):
                self.phase, self.message = "running", message
            case Decoded(frames=frames, info=info, ms=ms):
                self.sprite, self.sampled = make_sprite(frames), len(frames)
                decoder = info.get("decoder", "")
                self.message = f"{len(frames)} frames decoded in {ms:.0f} ms{f' ({decoder})' if decoder else ''}."
            case Encoded(tokens=tokens, ms=ms, cached=cached):
                source = "from the cache" if cached else f"in {ms:.0f} ms"
                self.message = f"{tokens} visual tokens encoded {source}; the methods run one after another."
            case MethodStarted(label=label):
                column = self._find(label)
                column.status, column.stage = "running", strings.RUNNING
            case Text(label=label, text=text):
                column = self._find(label)
                column.answer, column.stage = text, strings.ANSWERING
            case MethodDone(label=label, result=result):
                self._finish(self._find(label), result)
                return True
            case MethodFailed(label=label, message=message):
                column = self._find(label)
                column.status, column.stage, column.error = "error", strings.FAILED, message
            case Done():
                self.close()
        return False

    def stop(self, message: str) -> None:
        """Label every column that has no end yet as stopped."""
        for column in self.columns:
            if column.status in ("waiting", "running"):
                column.stage = strings.NOT_RUN if column.status == "waiting" else strings.STOPPED
                column.status = "stopped"
        self.phase, self.message = "stopped", message

    def fail(self, message: str) -> None:
        """End the whole run with an error."""
        self.stop(message)
        self.phase = "error"

    def close(self) -> None:
        """End the run: done, or stopped when any column was."""
        seconds = time.monotonic() - self.began
        model = self.model
        where = f" on {model.name} ({model.device}, {model.dtype}, {model.attention_backend})" if model else ""
        if any(column.status in ("stopped", "waiting", "running") for column in self.columns):
            self.stop(f"Stopped after {seconds:.1f} s{where}.")
            return
        failed = sum(column.status == "error" for column in self.columns)
        self.phase = "error" if failed == len(self.columns) else "done"
        ending = f"; {failed} failed" if failed else ""
        self.message = f"{len(self.columns) - failed} answers in {seconds:.1f} s{where}{ending}."

    def value(self) -> dict[str, Any]:
        """Return the JSON that the page draws."""
        baseline = baseline_of(self.results)
        return {
            "run": self.run,
            "phase": self.phase,
            "message": self.message,
            "clip": self._clip(),
            "columns": [
                {
                    "label": column.label,
                    "method": column.method,
                    "color": method_color(column.method),
                    "status": column.status,
                    "stage": column.stage,
                    "answer": column.answer,
                    "error": column.error,
                    "note": self._note(column),
                    "figures": [vars(figure) for figure in figures_of(column.result, baseline)]
                    if column.result
                    else [],
                    "tokens": column.tokens,
                }
                for column in self.columns
            ],
        }

    def _finish(self, column: Column, result: Result) -> None:
        column.result, column.answer = result, result.answer
        column.status = "stopped" if result.status == "stopped" else "done"
        column.stage = strings.STOPPED if result.status == "stopped" else strings.DONE
        column.tokens = token_view(result)

    def _find(self, label: str) -> Column:
        return next(column for column in self.columns if column.label == label)

    def _clip(self) -> dict[str, Any] | None:
        if self.sprite is None or not self.sprite_path or not self.results:
            return None
        layout = self.results[0].layout
        return {
            "sprite": FileData(path=self.sprite_path, mime_type="image/jpeg").model_dump(),
            "per_row": self.sprite.per_row,
            "width": self.sprite.width,
            "height": self.sprite.height,
            "shown": frame_of_clip(layout, self.sampled),
            "timestamps": list(layout.timestamps),
        }

    def _note(self, column: Column) -> str:
        parts = [column.settings]
        if self.model is not None:
            parts.append(self.model.note or ("" if self.model.trained else strings.UNTRAINED))
        if column.result is not None:
            parts += column.result.notes
        return " ".join(dict.fromkeys(part for part in parts if part))


def token_view(result: Result) -> dict[str, Any]:
    """Return what the page needs to draw a result's tokens: uint8 codes in base64, row-major, frame after frame."""
    mask, roles = role_mask(result)
    scores = {}
    for kind, values in result.scores.items():
        codes, low, high = quantise(values)
        scores[kind] = {"codes": encode(codes), "low": low, "high": high}
    return {
        "frames": result.layout.frames,
        "rows": result.layout.rows,
        "cols": result.layout.cols,
        "roles": roles,
        "mask": encode(mask),
        "kept": kept_per_frame(result),
        "pruned": result.tokens["kept"] < result.tokens["visual"],
        "scores": scores,
        "segments": [list(segment) for segment in result.segments],
    }


def _column(spec: MethodSpec, label: str) -> Column:
    settings = ", ".join(f"{name} = {value}" for name, value in spec.options.items())
    return Column(label=label, method=spec.name, settings=f"With {settings}." if settings else "")
