"""One run as the page shows it: folds the engine's events, for every mode, into plain data that it draws."""

from __future__ import annotations

import time
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from gradio.data_classes import FileData

from sharp_demo import strings
from sharp_demo.page.asked import asked
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import (
    Decoded,
    Done,
    Encoded,
    Event,
    Layout,
    MethodDone,
    MethodFailed,
    MethodSpec,
    MethodStarted,
    ModelInfo,
    Progress,
    Request,
    Result,
    Started,
    Text,
    Timing,
)
from sharp_demo.views.colors import method_color
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.overlay import (
    Sprite,
    colour_range,
    encode,
    frame_of_clip,
    make_sprite,
    nearest_frames,
    role_mask,
)
from sharp_demo.views.summary import (
    answers_compare,
    baseline_of,
    differing_words,
    figures_of,
    race_of,
    same_answer,
    words,
)
from sharp_demo.views.telling import telling_frame
from sharp_demo.views.verdict import verdict


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
    kind: str = ""  # of the failure, as in `MethodFailed`
    result: Result | None = None
    tokens: dict[str, Any] | None = None

    def picture(self, layout: Layout | None) -> dict[str, Any] | None:
        """Return the result's `token_view`, made once and only where it is drawn; None without a result."""
        if self.tokens is None and self.result is not None:
            self.tokens = token_view(self.result, layout)
        return self.tokens


@dataclass
class Board:
    """The state of one run as the page shows it."""

    run: str = field(default_factory=lambda: uuid4().hex)
    phase: str = "idle"  # idle | waiting | running | done | stopped | error
    message: str = strings.IDLE
    detail: str = ""  # for a line without columns, which say the same: the method that runs, the first failure
    request: Request | None = None
    query: str = ""  # the settings, for the page's address
    evidence: Sequence[Evidence] = ()
    columns: list[Column] = field(default_factory=list)
    model: ModelInfo | None = None
    sprite: Sprite | None = None
    sprite_path: str = ""
    sampled: int = 0
    layout: Layout | None = None
    stored: bool = False  # computed before, and not for this visitor
    own: bool = False  # the visitor's own clip, and no example
    opening: bool = False  # what the page opens with: gives way to all that a visitor asked for
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def idle(cls, methods: Sequence[str]) -> Board:
        """Return the board before any run: what each method does."""
        classes = [method_class(name) for name in methods]
        columns = [Column(known.title, known.name, known.summary, "idle", "") for known in classes]
        return cls(columns=columns)

    @classmethod
    def waiting(cls, request: Request, message: str = strings.QUEUED) -> Board:
        """Return a board with every column cleared."""
        columns = [_column(spec, spec.title) for spec in request.methods]
        return cls(phase="waiting", message=message, request=request, columns=columns)

    @property
    def results(self) -> list[Result]:
        """Results so far, in column order."""
        return [column.result for column in self.columns if column.result is not None]

    @property
    def baseline(self) -> Result | None:
        """Vanilla's result, unless it was stopped while it was answering."""
        return next((one for one in self.results if one.method == "vanilla" and one.status == "done"), None)

    @property
    def over(self) -> bool:
        return self.phase in ("done", "stopped", "error")

    @property
    def missing(self) -> tuple[dict[str, str], ...]:
        """Label, kind and message of every method without a result: it failed, or was never run."""
        return tuple(
            {
                "label": column.label,
                "kind": column.kind or "not_run",
                "message": column.error or strings.NOT_RUN,
            }
            for column in self.columns
            if column.result is None
        )

    def column(self, label: str) -> Column:
        """Return the column of this label."""
        return next(column for column in self.columns if column.label == label)

    def apply(self, event: Event) -> bool:
        """Take in one event; return True when a method ended, and so tables and charts changed."""
        match event:
            case Started(request=request, model=model, labels=labels):
                self.request, self.model = request, model
                self.columns = [_column(spec, label) for spec, label in zip(request.methods, labels, strict=True)]
                self._say(strings.STARTING)
            case Progress(message=message):
                self._say(message)
            case Decoded(frames=frames, info=info, ms=ms):
                self.sprite, self.sprite_path, self.sampled = make_sprite(frames), "", len(frames)
                self._say(strings.decoded(len(frames), ms, info.get("decoder", "")))
            case Encoded(layout=layout, tokens=tokens, ms=ms, cached=cached, frames=frames):
                self.layout = layout
                self._say(strings.encoded(tokens, ms, cached, frames, layout.frames))
            case MethodStarted(label=label):
                column = self.column(label)
                column.status, column.stage = "running", strings.RUNNING
                self.detail = strings.step(self._ended() + 1, len(self.columns), label)
            case Text(label=label, text=text):
                column = self.column(label)
                column.answer, column.stage = text, strings.ANSWERING
            case MethodDone(label=label, result=result):
                column = self.column(label)
                column.result, column.answer = result, result.answer
                column.status = "stopped" if result.status == "stopped" else "done"
                column.stage = strings.STOPPED if result.status == "stopped" else strings.DONE
                return True
            case MethodFailed(label=label, kind=kind, message=message):
                column = self.column(label)
                column.status, column.stage, column.kind = "error", strings.FAILED, kind
                column.error = strings.sentence(message)
                return True
            case Timing(budget_s=budget_s):
                self._say(strings.timing(budget_s))
            case Done(results=results):
                for result in results:
                    self.column(result.label).result = result
                self.close()
        return False

    def start(self) -> None:
        """Begin to run: what comes is told by the engine's events."""
        self._say(strings.STARTING)

    def stop(self, message: str) -> None:
        """Mark every column that has not ended as stopped, and the run with it, for this reason."""
        for column in self.columns:
            if column.status in ("waiting", "running"):
                column.stage = strings.NOT_RUN if column.status == "waiting" else strings.STOPPED
                column.status = "stopped"
        self.phase, self.message, self.detail = "stopped", message, ""

    def fail(self, message: str) -> None:
        """End the whole run with an error."""
        self.stop(message)
        self.phase = "error"

    def close(self) -> None:
        """End the run: done, or stopped when any column was."""
        seconds = time.monotonic() - self.began
        done, failed = (sum(column.status == status for column in self.columns) for status in ("done", "error"))
        stopped = done + failed < len(self.columns)
        message = strings.ended(done, len(self.columns), failed, seconds, self.model, stopped=stopped)
        self.stop(message)
        if not stopped:
            self.phase = "done" if done else "error"
        first = next((column.error for column in self.columns if column.status == "error"), "")
        self.detail = f"{message} {first}" if first else ""

    def status(self) -> dict[str, Any]:
        """Return how far the run is, for a line with a progress bar."""
        return {
            "phase": self.phase,
            "message": self.detail or self.message,
            "done": self._ended(),
            "of": len(self.columns),
            "query": self.query,
        }

    def value(self) -> dict[str, Any]:
        """Return the JSON that the page draws."""
        baseline, clip = baseline_of(self.results), self.clip() if self.results else None
        return {
            "run": self.run,
            "phase": self.phase,
            "message": self.message,
            "question": self.request.question if self.request else "",
            "query": self.query,
            "evidence": [vars(one) for one in self.evidence],
            "clip": clip,
            "frame": telling_frame(self.results, self._shown, self.evidence) if clip and self._shown else 0,
            "play": self.stored and not self.opening,  # the frames, through once
            "opening": self.opening,
            "verdict": verdict(self.results, self.missing, knows_little=self._foreign) if self.over else "",
            "asked": asked(self.request) if self.request else None,
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
                    **comparison_with(column.result, baseline),
                    "figures": self._figures(column, baseline),
                    "race": race_of(column.result) if self.over and column.result else [],
                    "tokens": column.picture(self.layout),
                }
                for column in self.columns
            ],
        }

    def clip(self, layout: Layout | None = None) -> dict[str, Any] | None:
        """Return the frames as the page draws them, of the run or of a result's own layout; None without frames."""
        layout = layout or self._shown
        if self.sprite is None or layout is None or not (self.stored or self.sprite_path):
            return None
        picture: Mapping[str, Any]
        if self.stored:  # it is every page's: it has no file of its own, whose time could be over
            picture = {"url": f"data:image/jpeg;base64,{b64encode(self.sprite.jpeg).decode('ascii')}"}
        else:
            picture = FileData(path=self.sprite_path, mime_type="image/jpeg").model_dump()
        return {
            "sprite": picture,
            "per_row": self.sprite.per_row,
            "width": self.sprite.width,
            "height": self.sprite.height,
            "shown": frame_of_clip(layout, self.sampled),
            "timestamps": list(layout.timestamps),
        }

    @property
    def _foreign(self) -> bool:
        return self.own and self.model is not None and bool(self.model.note)

    @property
    def _shown(self) -> Layout | None:
        return self.layout or next((result.layout for result in self.results), None)

    def _say(self, message: str) -> None:
        self.phase, self.message, self.detail = "running", message, ""

    def _ended(self) -> int:
        return sum(column.result is not None or column.status == "error" for column in self.columns)

    def _figures(self, column: Column, baseline: Result | None) -> list[dict[str, Any]]:
        if column.result is None:
            return []
        return [vars(figure) for figure in figures_of(column.result, baseline, pending=not self.over)]

    def _note(self, column: Column) -> str:
        parts = [column.settings]
        if self.model is not None:
            parts.append(self.model.note or ("" if self.model.trained else strings.UNTRAINED))
        if column.result is not None:
            parts += [strings.READINGS.get(column.result.config.get("score_layer", ""), ""), *column.result.notes]
        return " ".join(dict.fromkeys(part for part in parts if part))


def merged_on_page(result: Result, places: Sequence[int]) -> list[list[int]]:
    """Return `merged_into` with the slots of the page, whose frame f shows the result's frame `places[f]`."""
    per_frame = result.layout.rows * result.layout.cols
    pairs: dict[int, list[tuple[int, int]]] = {}
    for source, target in result.merged_into:
        first = bisect_left(places, target // per_frame)
        pairs.setdefault(source // per_frame, []).append((source % per_frame, first * per_frame + target % per_frame))
    return [
        [frame * per_frame + token, target]
        for frame, place in enumerate(places)
        for token, target in pairs.get(place, ())
    ]


def token_view(result: Result, layout: Layout | None = None) -> dict[str, Any]:
    """Return what the page needs to draw a result's tokens, row-major, frame after frame, in base64.

    `mask`: uint8 codes of `roles`; `scores`: float32, NaN where a slot was never scored; `absorbed`: int32 pairs of
    a token and the one it was merged into; `left`: uint8, the layer before which a slot was dropped (for the kept the
    number of layers); `layers`: tokens that entered each layer, of `visual`; `cached`: those whose keys and values
    its cache holds. `layout` is the page's: of a result that saw fewer frames, each of the page's frames shows the
    nearest in time.
    """
    layout = layout or result.layout
    places = nearest_frames(layout, result.layout)
    mask, roles = role_mask(result)
    scores = {}
    for kind, values in result.scores.items():
        low, high = colour_range(values)
        by_frame = np.asarray(values, np.float32).reshape(mask.shape)
        scores[kind] = {"values": encode(by_frame[places]), "low": low, "high": high}
    left = np.asarray(result.left_before, np.uint8)
    return {
        "frames": layout.frames,
        "rows": result.layout.rows,
        "cols": result.layout.cols,
        "roles": roles,
        "mask": encode(mask[places]),
        "left": encode(left.reshape(mask.shape)[places]),
        "layers": list(result.visual_per_layer),
        "cached": list(result.kv_per_layer),
        "visual": result.layout.tokens,
        "scores": scores,
        "segments": [[bisect_left(places, start), bisect_left(places, end)] for start, end in result.segments],
        "absorbed": encode(np.asarray(merged_on_page(result, places), np.int32)),
    }


def comparison_with(result: Result | None, baseline: Result | None) -> dict[str, Any]:
    """Return what a column says about its answer compared with vanilla's: marked words, badge, and how sure it was."""
    if result is None:
        return {"words": [], "badge": None, "sure": None}
    own, other = result.first_token_prob, baseline.first_token_prob if baseline else None
    sure = None if own is None else {"value": own, "vanilla": other, "text": strings.sure(own)}
    if baseline is None or not answers_compare(result, baseline) or not words(result.answer):
        return {"words": [], "badge": None, "sure": sure}
    same = same_answer(result.answer, baseline.answer)
    badge = {"kind": "same" if same else "different", "text": strings.agreement(same, own, other)}
    return {"words": differing_words(result.answer, baseline.answer), "badge": badge, "sure": sure}


def _column(spec: MethodSpec, label: str) -> Column:
    settings = ", ".join(f"{name} = {value}" for name, value in spec.options.items())
    return Column(label=label, method=spec.name, settings=f"With {settings}." if settings else "")
