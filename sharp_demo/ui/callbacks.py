"""What the page's events do: run, stop, attention by layer, downloads, and the API endpoint."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import plotly.graph_objects as go
from gradio.exceptions import Error
from gradio.processing_utils import save_bytes_to_cache

from sharp_demo.engine import Engine, file_digest
from sharp_demo.errors import InputError, InternalError, SharpError, VideoError
from sharp_demo.logs import RunLine, tagged
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import AttentionMaps, Done, Event, MethodFailed, MethodSpec, Request, Result, Text
from sharp_demo.settings import Settings
from sharp_demo.ui import strings
from sharp_demo.ui.board import Board
from sharp_demo.ui.controls import method_specs
from sharp_demo.ui.inputs import check_request, evidence_for, load_examples
from sharp_demo.ui.link import inputs_of, query_of
from sharp_demo.views import figures
from sharp_demo.views.benchmark import load_benchmark
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.overlay import Sprite
from sharp_demo.views.report import comparison_dict, render_report

log = logging.getLogger(__name__)

TEXT_INTERVAL_S = 0.05  # a faster stream only keeps the browser busy


@dataclass(frozen=True)
class Finished:
    """A run that has ended, for downloads and attention by layer."""

    request: Request
    results: tuple[Result, ...]
    sprite: Sprite
    evidence: tuple[Evidence, ...] = ()
    attention: AttentionMaps | None = None


class Callbacks:
    """Event handlers bound to one engine. Holds no state of any visitor; a page's session names its run."""

    def __init__(self, engine: Engine, settings: Settings, cache: Path, examples: Path) -> None:
        self.engine, self.settings = engine, settings
        self.cache, self.allowed = cache, (cache, examples)
        # Without uploads only the examples' own content passes: the page hands out copies of them.
        self.only = None if settings.uploads else {file_digest(str(one.video)) for one in load_examples(settings)}

    # -- the page ------------------------------------------------------------------------------------------------

    def request_of(self, inputs: Sequence[Any]) -> Request:
        """Return the checked request of the page's inputs, in the order `page.build_ui` lists them."""
        video, question, model, methods, percent, match, frames, max_new, seed, *knobs = inputs
        return self.check(
            video=video,
            question=question,
            methods=method_specs(methods or (), knobs),
            retention=(percent or 0) / 100,
            match=match,
            frames=frames,
            model=model,
            max_new_tokens=max_new,
            seed=seed or 0,
        )

    def check(self, **values: Any) -> Request:
        """Return the checked request; see `check_request`. Raises InputError."""
        request = check_request(**values, models=self.engine.models(), allowed=self.allowed, settings=self.settings)
        if self.only is not None and file_digest(request.video) not in self.only:
            raise VideoError("refused", strings.NO_UPLOAD)
        return request

    def begin(self, *inputs: Any) -> Iterator[list[Any]]:
        """Check the inputs, clear every column at once and wait; runs outside the queue."""
        try:
            request = self.request_of(inputs)
        except InputError as error:
            yield [Board(phase="error", message=str(error)).value(), *buttons("idle")]
            raise Error(str(error), print_exception=False) from None
        board = Board.waiting(request.methods)
        board.query = query_of(inputs, load_examples(self.settings))
        yield [board.value(), *buttons("waiting")]

    def open_link(self, caller: gr.Request) -> list[Any]:
        """Return the page's inputs as the link that opened it says; a value that is no good stays as it is."""
        values, wrong = inputs_of(
            dict(caller.query_params), self.engine.models(), load_examples(self.settings), self.settings
        )
        if wrong:
            gr.Warning(strings.wrong_link(wrong))
        return values

    def run(self, *inputs: Any) -> Iterator[list[Any]]:
        """Stream one comparison. Inputs: those of `request_of`, then the `gr.Request`."""
        *inputs, caller = inputs  # type: ignore[assignment]
        request = self.request_of(inputs)
        board = Board.waiting(request.methods, strings.STARTING)
        board.evidence = self._evidence(request)
        yield self._outputs(board, charts=False, state="running")
        problem = None
        try:
            for event in self.events(request, caller.session_hash, board):
                changed = board.apply(event)
                self._store_sprite(board)
                yield self._outputs(board, charts=changed, state="running")
        except Exception as error:
            problem = problem_of(error)
        if problem is not None:
            board.fail(problem)
        elif board.phase == "running":
            board.close()
        yield self._outputs(board, charts=bool(board.results), state="idle", finished=_finished(request, board))
        if problem is not None:
            raise Error(problem, print_exception=False)

    def events(self, request: Request, run_id: str, board: Board | None = None) -> Iterator[Event]:
        """Yield the engine's events, text thinned out, and log how the run went.

        The wall clock ends the run like Stop does. Raises SharpError, with a message for the visitor, and nothing else.
        """
        deadline = time.monotonic() + self.settings.run_timeout_s
        shown = 0.0
        number = uuid4().hex[:8]
        line = RunLine(number, request)
        # Closed with this generator: a page that went away ends its run at the next token.
        stream = self.engine.stream(request, run_id)
        try:
            for event in tagged(stream, number):
                line.take(event)
                late = time.monotonic() > deadline
                if late:
                    line.outcome = "timed out"
                    self.engine.stop(run_id)
                if isinstance(event, Text) and time.monotonic() - shown < TEXT_INTERVAL_S:
                    if board is not None:
                        board.apply(event)
                    continue
                shown = time.monotonic()
                yield event
                if late and isinstance(event, Done) and board is not None:
                    board.stop(strings.timed_out(self.settings.run_timeout_s))
        except SharpError as error:
            line.fail(error)
            raise
        except Exception as error:
            line.fail(error)
            log.exception("run %s failed", number)
            raise InternalError(strings.internal(number)) from error
        finally:
            stream.close()  # type: ignore[attr-defined]
            line.write()

    def stop(self, caller: gr.Request) -> Any:
        """Ask this page's own run to stop; the run goes on to its labelled end."""
        found = self.engine.stop(caller.session_hash or "")
        return gr.Button(strings.STOPPING if found else strings.STOP, interactive=not found)

    def leave(self) -> list[Any]:
        """Label everything as stopped; Gradio has taken the run out of the queue."""
        return [Board(phase="stopped", message=strings.LEFT).value(), *buttons("idle")]

    def check_upload(self, path: str | None) -> str:
        """Return one line on the uploaded clip, or what is wrong with it."""
        if not path:
            return strings.limits(self.settings)
        try:
            return describe_clip(self.engine.probe(path))
        except InputError as error:
            gr.Warning(str(error))
            return str(error)

    def attention(self, finished: Finished | None) -> Iterator[tuple[Any, ...]]:
        """Compute and draw the attention of every layer for the run on the page."""
        if finished is None:
            raise Error(strings.NO_RUN, print_exception=False)
        yield gr.skip(), gr.skip(), gr.skip(), gr.Button(strings.BY_LAYER_BUSY, interactive=False)
        try:
            maps = self.engine.attention(finished.request)
        except SharpError as error:
            yield gr.skip(), gr.skip(), gr.skip(), gr.Button(strings.BY_LAYER, interactive=True)
            raise Error(str(error), print_exception=False) from None
        charts = [
            gr.Plot(draw(maps, finished.evidence), visible=True)
            for draw in (figures.attention_by_layer, figures.attention_map)
        ]
        yield *charts, replace(finished, attention=maps), gr.Button(strings.BY_LAYER, interactive=True)

    def save_json(self, finished: Finished | None) -> str:
        """Write the comparison as JSON into the page's file cache and return its path."""
        finished = _needed(finished)
        data = comparison_dict(_public(finished.request), finished.results)
        return self._save(json.dumps(data, indent=1, default=str), "comparison.json")

    def save_report(self, finished: Finished | None) -> str:
        """Write the HTML report into the page's file cache and return its path."""
        finished = _needed(finished)
        page = render_report(
            _public(finished.request), finished.results, finished.sprite, finished.attention, finished.evidence
        )
        return self._save(page, "comparison.html")

    # -- the API -------------------------------------------------------------------------------------------------

    def compare(
        self,
        video: str | None,
        question: str,
        methods: list[str],
        retention: float,
        match: str,
        frames: int | None,
        model: str | None,
    ) -> Iterator[dict[str, Any]]:
        """Run pruning methods side by side on one video and one question.

        `retention` is the share of visual tokens kept, above 0 and at most 1; `match` is "tokens" or "flops";
        `frames` 0 means the model's default. Returns {"request", "results", "failed"} as `compare --json` does;
        while it runs, what is finished so far.
        """
        try:
            request = self.check(
                video=video,
                question=question,
                methods=[MethodSpec(name, {}, method_class(name).title) for name in methods or ()],
                retention=retention,
                match=match,
                frames=frames,
                model=model,
            )
            answer: dict[str, Any] = {"request": _public(request), "results": [], "failed": []}
            yield answer
            for event in self.events(request, uuid4().hex):
                match event:
                    case MethodFailed(label=label, kind=kind, message=message):
                        failure = {"label": label, "kind": kind, "message": message}
                        answer = {**answer, "failed": [*answer["failed"], failure]}
                    case Done(results=results):
                        answer = {**answer, "results": [result.to_dict() for result in results]}
                # Also when nothing changed: a client that hung up is noticed at a yield only.
                yield answer
        except SharpError as error:
            raise Error(str(error), print_exception=False) from None

    # -- helpers -------------------------------------------------------------------------------------------------

    def _evidence(self, request: Request) -> tuple[Evidence, ...]:
        return evidence_for(load_examples(self.settings), request.video, request.question)

    def _charts(self, board: Board) -> list[go.Figure | None]:
        """Draw the charts in the order of `CHARTS`."""
        results, evidence = board.results, board.evidence
        scored = max(results, key=lambda result: len(result.scores))
        return [
            figures.speedup_bars(results),
            figures.latency_bars(results),
            figures.kept_over_time(results, evidence),
            figures.attention_per_frame(scored, evidence) if scored.scores else None,
            figures.kept_by_layer(results),
            figures.accuracy_by_retention(load_benchmark(self.settings.assets), results),
        ]

    def _store_sprite(self, board: Board) -> None:
        if board.sprite is not None and not board.sprite_path:
            board.sprite_path = save_bytes_to_cache(board.sprite.jpeg, "frames.jpg", str(self.cache))

    def _save(self, text: str, name: str) -> str:
        return save_bytes_to_cache(text.encode("utf-8"), name, str(self.cache))

    def outputs(self, board: Board, finished: Finished) -> list[Any]:
        """Return the updates of the comparison's outputs for a run that has ended."""
        self._store_sprite(board)
        return self._outputs(board, charts=True, state="idle", finished=finished)

    def _outputs(self, board: Board, *, charts: bool, state: str, finished: Finished | None = None) -> list[Any]:
        shown = bool(board.results)
        return [
            board.value(),
            *(self._charts(board) if charts else [gr.skip()] * len(CHARTS)),
            gr.Column(visible=shown) if charts or not shown else gr.skip(),
            *([gr.skip() if shown else gr.Plot(visible=False)] * 2),
            finished if finished is not None or not shown else gr.skip(),
            *buttons(state),
        ]


def problem_of(error: Exception) -> str:
    """Return what to tell the visitor; what is not meant for visitors goes to the log."""
    if isinstance(error, SharpError):
        return str(error)
    log.exception("failed")
    return strings.NO_DISK if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else strings.INTERNAL


def buttons(state: str) -> list[Any]:
    """Return the updates of Run, Stop and Leave for "idle", "waiting" or "running"."""
    return [
        gr.Button(interactive=state == "idle"),
        gr.Button(strings.STOP, interactive=state == "running", visible=state != "waiting"),
        gr.Button(visible=state == "waiting"),
    ]


CHARTS = ("speed", "latency", "kept", "attention", "depth", "accuracy")


def describe_clip(info: Any) -> str:
    """Return size, length and codec of a probed clip in one line."""
    return (
        f"{info.width} × {info.height}, {info.duration_s:.1f} s, {info.fps:.3g} fps, {info.codec} in {info.container}"
    )


def _finished(request: Request, board: Board) -> Finished | None:
    if board.sprite is None or not board.results:
        return None
    return Finished(request, tuple(board.results), board.sprite, tuple(board.evidence))


def _needed(finished: Finished | None) -> Finished:
    if finished is None:
        raise Error(strings.NO_RUN, print_exception=False)
    return finished


def _public(request: Request) -> dict[str, Any]:
    """Return the request without the server's folders."""
    return {**request.to_dict(), "video": Path(request.video).name}
