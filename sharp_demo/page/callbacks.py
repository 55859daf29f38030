"""What the page's events do: run, stop, attention by layer, downloads, and the API endpoint."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import gradio as gr
import plotly.graph_objects as go
from gradio.exceptions import Error
from gradio.processing_utils import save_bytes_to_cache

from sharp_demo import strings
from sharp_demo.engine import Engine, file_digest
from sharp_demo.errors import InputError, InternalError, SharpError, VideoError
from sharp_demo.logs import RunLine, tagged
from sharp_demo.page.board import Board
from sharp_demo.page.controls import method_specs
from sharp_demo.page.inputs import check_request, evidence_for, load_examples
from sharp_demo.page.link import inputs_of, query_of
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import AttentionMaps, Done, Event, MethodFailed, MethodSpec, Request, Result, Text
from sharp_demo.settings import Settings
from sharp_demo.views import figures
from sharp_demo.views.benchmark import load_benchmark
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.overlay import Sprite
from sharp_demo.views.report import comparison_dict, render_report
from sharp_demo.web.visits import Visits

log = logging.getLogger(__name__)

TEXT_INTERVAL_S = 0.05  # a faster stream only keeps the browser busy
LISTEN_S = 15.0  # a run is ended when none of its messages was taken for so long


@dataclass(frozen=True)
class Finished:
    """A run that has ended, for downloads and attention by layer."""

    request: Request
    results: tuple[Result, ...]
    sprite: Sprite
    evidence: tuple[Evidence, ...] = ()
    attention: AttentionMaps | None = None
    failed: tuple[dict[str, str], ...] = ()  # label, kind and message of methods without an answer
    stored: bool = False


class Shown(Protocol):
    """What a run is shown on."""

    def apply(self, event: Event) -> bool:
        """Take in one event."""

    def stop(self, message: str) -> None:
        """Label what has no end yet as stopped, for this reason."""


class Callbacks:
    """Event handlers bound to one engine. A page's session names its run and its `Visit`.

    `waiting` : how many requests wait in the queue. `unread` : how many messages a session has not taken yet.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        cache: Path,
        examples: Path,
        waiting: Callable[[], int] = lambda: 0,
        unread: Callable[[str], int] = lambda session: 0,
    ) -> None:
        self.visits, self.waiting, self.unread = Visits(), waiting, unread
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
        """Check the inputs, clear every column at once and wait; runs outside the queue. Inputs: as `run`'s."""
        *inputs, caller = inputs  # type: ignore[assignment]
        try:
            request = self.request_of(inputs)
        except InputError as error:
            yield [Board(phase="error", message=str(error)).value(), *buttons("idle")]
            raise Error(str(error), print_exception=False) from None
        visit = self.visits.of(caller.session_hash)
        visit.waiting = True
        visit.files.add(Path(request.video))
        board = Board.waiting(request.methods, self.queued())
        board.query = self.query(inputs)
        yield [board.value(), *buttons("waiting")]

    def query(self, inputs: Sequence[Any], **choices: str) -> str:
        """Return the page's inputs, and what a mode is set to, for the page's address."""
        return query_of(inputs, load_examples(self.settings), **choices)

    def queued(self) -> str:
        """Return what a request that is about to wait is told."""
        return strings.queued(self.waiting() + bool(self.engine.condition.running))

    def refused(self, shown: Any, caller: gr.Request) -> list[Any]:
        """Say that a run never began: the queue was full, or the request no longer good. `shown`: {"phase"}."""
        if not waits(shown):
            return [gr.skip(), *buttons(None)]
        self.visits.of(caller.session_hash).end()
        return [Board(phase="error", message=self.refusal()).value(), *buttons("idle")]

    def refusal(self) -> str:
        """Return why a request that passed the checks may not have begun."""
        waiting = self.waiting()
        return strings.queue_full(waiting) if waiting >= self.settings.queue_size else strings.REFUSED

    def open_link(self, caller: gr.Request) -> list[Any]:
        """Return the page's inputs and `link.CHOICES` as the page's link says; what is no good stays as it is."""
        values, wrong = inputs_of(
            dict(caller.query_params), self.engine.models(), load_examples(self.settings), self.settings
        )
        if wrong:
            gr.Warning(strings.wrong_link(wrong))
        return values

    def run(self, *inputs: Any) -> Iterator[list[Any]]:
        """Stream one comparison. Inputs: those of `request_of`, then the `gr.Request`."""
        *inputs, caller = inputs  # type: ignore[assignment]
        visit = self.visits.of(caller.session_hash)
        visit.begin()
        try:
            yield from self._run(inputs, caller.session_hash)
        finally:
            visit.end()

    def _run(self, inputs: Sequence[Any], session: str) -> Iterator[list[Any]]:
        request = self.request_of(inputs)
        board = Board.waiting(request.methods, strings.STARTING)
        board.evidence = self._evidence(request)
        yield self._outputs(board, charts=False, state="running")
        problem = None
        try:
            for event in self.events(request, session, board):
                changed = board.apply(event)
                self.store_sprite(board, session)
                yield self._outputs(board, charts=changed, state=None)
        except Exception as error:
            problem = problem_of(error)
        if problem is not None:
            board.fail(problem)
        elif board.phase == "running":
            board.close()
        yield self._outputs(board, charts=bool(board.results), state="idle", finished=_finished(request, board))
        if problem is not None:
            raise Error(problem, print_exception=False)

    def events(
        self, request: Request, run_id: str, shown: Shown | None = None, session: str | None = None
    ) -> Iterator[Event]:
        """Yield the engine's events, text thinned out, and log how the run went.

        The wall clock ends the run like Stop does, and so does a session (`run_id`, if none is given) that has not
        listened for `LISTEN_S`: a client may ask and never open its stream, which nothing else would notice. Raises
        SharpError, with a message for the visitor, and nothing else.
        """
        deadline = time.monotonic() + self.settings.run_timeout_s
        told, heard, unheard = 0.0, time.monotonic(), False
        given, most_taken = 0, -1
        visit = self.visits.of(run_id if shown is not None else None)
        number = uuid4().hex[:8]
        line = RunLine(number, request)
        # Closed with this generator: a page that went away ends its run at the next token.
        stream = self.engine.stream(request, run_id)
        try:
            for event in tagged(stream, number):
                line.take(event)
                late = time.monotonic() > deadline
                taken = given - self.unread(session or run_id)  # a slow connection takes them late, but takes them
                if taken > most_taken:
                    most_taken, heard = taken, time.monotonic()
                unheard = unheard or time.monotonic() - heard > LISTEN_S
                if late or unheard:
                    line.outcome = "timed out" if late else "left"
                if late or unheard or visit.stopping:
                    self.engine.stop(run_id)
                if isinstance(event, Text) and time.monotonic() - told < TEXT_INTERVAL_S:
                    if shown is not None:
                        shown.apply(event)
                    continue
                told = time.monotonic()
                given += 1
                yield event
                if late and isinstance(event, Done) and shown is not None:
                    shown.stop(strings.timed_out(self.settings.run_timeout_s))
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
        """Ask this page's own run to stop, also one that is only starting; the run goes on to its labelled end."""
        visit = self.visits.of(caller.session_hash)
        visit.stopping = visit.running
        self.engine.stop(caller.session_hash or "")
        return gr.Button(strings.STOPPING if visit.running else strings.STOP, interactive=False)

    def leave(self, caller: gr.Request) -> list[Any]:
        """Label everything as stopped; Gradio has taken the run out of the queue."""
        self.visits.of(caller.session_hash).waiting = False
        return [Board(phase="stopped", message=strings.LEFT).value(), *buttons("idle")]

    def check_upload(self, path: str | None, caller: gr.Request) -> str:
        """Return one line on the uploaded clip, or what is wrong with it."""
        if not path:
            return strings.limits(self.settings)
        self.visits.of(caller.session_hash).files.add(Path(path))
        try:
            return strings.clip_line(self.engine.probe(path))
        except InputError as error:
            gr.Warning(str(error))
            return str(error)

    def attention(self, finished: Finished | None) -> Iterator[tuple[Any, ...]]:
        """Compute and draw the attention of every layer for the run on the page."""
        if finished is None:
            raise Error(strings.NO_RUN, print_exception=False)
        idle = [gr.skip()] * 4
        yield *idle, gr.Button(strings.BY_LAYER_BUSY, interactive=False)
        try:
            maps = self.engine.attention(finished.request, penalty_of(finished.results))
        except Exception as error:
            yield *idle, gr.Button(strings.BY_LAYER, interactive=True)
            raise Error(problem_of(error), print_exception=False) from None
        charts = [
            gr.Plot(draw(maps, finished.evidence), visible=True)
            for draw in (figures.attention_by_layer, figures.attention_map)
        ]
        last = len(maps.raw) - 1
        layer = gr.Slider(value=min(figures.FIRST_LAYER_SHOWN, last), maximum=last, visible=True)
        yield layer, *charts, replace(finished, attention=maps), gr.Button(strings.BY_LAYER, interactive=True)

    def layer(self, finished: Finished | None, layer: Any) -> Any:
        """Draw the attention of another layer; nothing changes while there is none."""
        if finished is None or finished.attention is None or not isinstance(layer, int | float):
            return gr.skip()
        return gr.Plot(figures.attention_by_layer(finished.attention, finished.evidence, int(layer)), visible=True)

    def save_json(self, finished: Finished | None, caller: gr.Request) -> str:
        """Write the comparison as JSON into the page's file cache and return its path."""
        finished = _needed(finished)
        data = comparison_dict(_public(finished.request), finished.results, finished.failed, stored=finished.stored)
        return self._save(json.dumps(data, indent=1, default=str), "comparison.json", caller.session_hash)

    def save_report(self, finished: Finished | None, caller: gr.Request) -> str:
        """Write the HTML report into the page's file cache and return its path."""
        finished = _needed(finished)
        page = render_report(
            _public(finished.request),
            finished.results,
            finished.sprite,
            finished.attention,
            finished.evidence,
            finished.failed,
            stored=finished.stored,
            benchmark=load_benchmark(self.settings.assets),
        )
        return self._save(page, "comparison.html", caller.session_hash)

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
        caller: gr.Request | None = None,
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
                max_new_tokens=min(Request.max_new_tokens, self.settings.max_new_tokens),
            )
            answer: dict[str, Any] = {"request": _public(request), "results": [], "failed": []}
            yield answer
            for event in self.events(request, uuid4().hex, session=caller.session_hash if caller else None):
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

    def store_sprite(self, board: Board, session: str | None) -> None:
        """Write a board's frames where the browser can fetch them, once."""
        if board.sprite is not None and not board.sprite_path:
            board.sprite_path = self.save_frames(board.sprite, session)

    def save_frames(self, sprite: Sprite, session: str | None) -> str:
        """Write frames into the page's file cache and return the path."""
        return self._save(sprite.jpeg, "frames.jpg", session)

    def _save(self, content: str | bytes, name: str, session: str | None) -> str:
        content = content.encode("utf-8") if isinstance(content, str) else content
        path = save_bytes_to_cache(content, name, str(self.cache))
        self.visits.of(session).files.add(Path(path))
        return path

    def outputs(self, board: Board, finished: Finished, session: str | None) -> list[Any]:
        """Return the updates of the comparison's outputs for a run that has ended."""
        self.store_sprite(board, session)
        return self._outputs(board, charts=True, state="idle", finished=finished)

    def _outputs(self, board: Board, *, charts: bool, state: str | None, finished: Finished | None = None) -> list[Any]:
        shown = bool(board.results)
        return [
            board.value(),
            *(self._charts(board) if charts else [gr.skip()] * len(CHARTS)),
            gr.Column(visible=shown) if charts or not shown else gr.skip(),
            gr.skip() if shown else gr.Slider(visible=False),
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


def buttons(state: str | None) -> list[Any]:
    """Return the updates of Run, Stop and Leave for "idle", "waiting" or "running"; None leaves them as they are."""
    if state is None:
        return [gr.skip()] * 3
    return [
        gr.Button(interactive=state == "idle"),
        gr.Button(strings.STOP, interactive=state == "running", visible=state != "waiting"),
        gr.Button(visible=state == "waiting"),
    ]


def waits(shown: Any) -> bool:
    """Whether what the page shows of a run, {"phase"}, says that it waits."""
    return isinstance(shown, dict) and shown.get("phase") == "waiting"


def penalty_of(results: Sequence[Result]) -> float | None:
    """Return the λ that a run's ShaRP used; None when ShaRP gave no answer."""
    return next((result.config.get("penalty") for result in results if result.method == "sharp"), None)


CHARTS = ("speed", "latency", "kept", "attention", "depth", "accuracy")


def _finished(request: Request, board: Board) -> Finished | None:
    if board.sprite is None or not board.results:
        return None
    return Finished(request, tuple(board.results), board.sprite, tuple(board.evidence), failed=board.missing)


def _needed(finished: Finished | None) -> Finished:
    if finished is None:
        raise Error(strings.NO_RUN, print_exception=False)
    return finished


def _public(request: Request) -> dict[str, Any]:
    """Return the request without the server's folders."""
    return {**request.to_dict(), "video": Path(request.video).name}
