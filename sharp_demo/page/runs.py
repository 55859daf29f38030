"""Runs for open pages: check, wait in the queue, stream to a labelled end, stop, leave; the same for every mode."""

from __future__ import annotations

import errno
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import gradio as gr
from gradio.components import Component
from gradio.exceptions import Error
from gradio.processing_utils import save_bytes_to_cache

from sharp_demo import strings
from sharp_demo.errors import InputError, InternalError, SharpError
from sharp_demo.logs import RunLine, tagged
from sharp_demo.page.board import Board
from sharp_demo.page.inputs import Inputs, Values
from sharp_demo.records import AttentionMaps, Done, Event, Request, Result, Text, Timing
from sharp_demo.settings import Settings
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.overlay import Sprite
from sharp_demo.web.server import client_of
from sharp_demo.web.shelf import Shelf
from sharp_demo.web.visits import Visits

if TYPE_CHECKING:
    from sharp_demo.engine.background import AnyEngine

log = logging.getLogger(__name__)

Updates = dict[Any, Any]  # component -> its new value, or the component with what changes
TEXT_INTERVAL_S = 0.1  # a faster stream only keeps the browser busy: on a slow machine it cannot press Stop
KEEP_S = 3600.0  # files and finished runs of a page
KEPT_BYTES = 200_000_000  # of finished runs, about a megabyte each
CHECKS = 2  # uploads that are looked at at once
LISTEN_S = 15.0  # a run is ended when none of its messages was taken for so long

HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
MODEL: dict[str, Any] = {**HIDDEN, "concurrency_id": "model", "concurrency_limit": 1}
PHASE = "(shown) => [{ phase: shown?.phase }]"  # of a status, whose whole value may be megabytes


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


@dataclass(frozen=True)
class Controls:
    """Run, Stop and Leave of one mode."""

    run: gr.Button
    stop: gr.Button
    leave: gr.Button

    @classmethod
    def create(cls, label: str, prefix: str = "", width: int = 80) -> Controls:
        """Create the buttons inside the current row; element ids are `prefix`run and so on."""
        return cls(
            gr.Button(label, variant="primary", min_width=width, elem_id=f"{prefix}run"),
            gr.Button(strings.STOP, variant="stop", interactive=False, min_width=80, elem_id=f"{prefix}stop"),
            gr.Button(strings.LEAVE, visible=False, min_width=80, elem_id=f"{prefix}leave"),
        )

    def all(self) -> list[gr.Button]:
        return [self.run, self.stop, self.leave]

    def when(self, state: str) -> Updates:
        """Return the buttons' updates for "idle", "waiting" or "running"."""
        return {
            self.run: gr.Button(interactive=state == "idle"),
            self.stop: gr.Button(strings.STOP, interactive=state == "running", visible=state != "waiting"),
            self.leave: gr.Button(visible=state == "waiting"),
        }


class Mode(ABC):
    """What one tab asks the engine, and how it shows the board of a run.

    `status` is the component that says how far a run is, `outputs` are all others that a run changes. `keeps`: what
    the run came to is kept for the page, for downloads.
    """

    name: ClassVar[str]
    keeps: ClassVar[bool] = False
    controls: Controls
    status: gr.HTML
    outputs: list[Component]

    @abstractmethod
    def request(self, values: Values) -> Request:
        """Return the checked request of the mode's inputs. Raises InputError."""

    def board(self, request: Request) -> Board:
        """Return the board that a run begins with."""
        return Board.waiting(request)

    def told(self, board: Board) -> dict[str, Any]:
        """Return the value of `status`."""
        return board.status()

    def live(self, board: Board) -> Updates:
        """Return what may change with every event."""
        return {self.status: self.told(board)}

    @abstractmethod
    def results(self, board: Board) -> Updates:
        """Return what changes when a method has ended, when a run begins, and when it is over."""


class Listener:
    """Whether a session still takes the messages of its run.

    A client may ask and never open its stream, which nothing else would notice. `unread` counts its open messages.
    """

    def __init__(self, unread: Callable[[], int]) -> None:
        self.unread = unread
        self.given, self.most_taken, self.heard = 0, -1, time.monotonic()

    def gave(self) -> None:
        self.given += 1

    def gone(self) -> bool:
        """Return True when it took no message for `LISTEN_S`; a slow connection takes them late, but takes them."""
        taken = self.given - self.unread()
        if taken > self.most_taken:
            self.most_taken, self.heard = taken, time.monotonic()
        return time.monotonic() - self.heard > LISTEN_S


class Runs:
    """Runs of one engine. A page's session names its run and its `Visit`.

    `waiting` : how many requests wait in the queue. `unread` : how many messages a session has not taken yet.
    """

    def __init__(
        self,
        engine: AnyEngine,
        settings: Settings,
        cache: Path,
        examples: Path,
        waiting: Callable[[], int] = lambda: 0,
        unread: Callable[[str], int] = lambda session: 0,
    ) -> None:
        self.engine, self.settings, self.cache = engine, settings, cache
        self.inputs = Inputs(engine, settings, (cache, examples))
        self.visits, self.waiting, self.unread = Visits(), waiting, unread
        self.finished: Shelf[Finished] = Shelf(KEPT_BYTES, KEEP_S)
        self.checks = threading.BoundedSemaphore(CHECKS)  # a child process each, outside the queue

    def wire(self, mode: Mode) -> None:
        """Connect a mode's buttons to its inputs and outputs."""

        def begin(caller: gr.Request, **values: Any) -> Iterator[Updates]:
            self.visits.of(caller.session_hash).client = self.client_of(caller)
            yield from self.begin(mode, values, caller.session_hash)

        def stream(caller: gr.Request, **values: Any) -> Iterator[Updates]:
            yield from self.run(mode, values, caller.session_hash)

        def refused(shown: Any, caller: gr.Request) -> Updates:
            return self.refused(mode, shown, caller.session_hash)

        def stop(caller: gr.Request) -> gr.Button:
            return self.stop(caller.session_hash)

        def leave(caller: gr.Request) -> Updates:
            return self.leave(mode, caller.session_hash)

        controls, values = mode.controls, self.inputs.of(mode.name)
        ends = [mode.status, *controls.all()]
        begun = controls.run.click(begin, None, ends, inputs_kwargs=values, queue=False, **HIDDEN)
        running = begun.success(stream, None, [*ends, *mode.outputs], inputs_kwargs=values, **MODEL)
        running.failure(refused, mode.status, ends, queue=False, js=PHASE, **HIDDEN)
        controls.stop.click(stop, None, controls.stop, queue=False, **HIDDEN)
        controls.leave.click(leave, None, ends, queue=False, cancels=[running], **HIDDEN)

    def client_of(self, caller: gr.Request) -> str:
        """Return the address that a request came from."""
        return client_of(caller.request.scope, self.settings.proxies) if caller.request else ""

    def forget(self, session: str | None) -> None:
        """Delete what a page uploaded and what was made for it, from memory and disk."""
        for path in self.visits.forget(session):
            # Nothing outside the cache: the examples' own files stay.
            if path.resolve().is_relative_to(self.cache.resolve()) and path.is_file():
                path.unlink(missing_ok=True)
        self.finished.drop(session or "")
        self.engine.forget()

    # -- what the buttons do -------------------------------------------------------------------------------------

    def begin(self, mode: Mode, values: Values, session: str | None) -> Iterator[Updates]:
        """Check the inputs, clear the last run's end at once and wait; runs outside the queue."""
        try:
            request = mode.request(values)
        except InputError as error:
            yield self._ended(mode, Board(phase="error", message=strings.sentence(str(error))))
            raise Error(strings.sentence(str(error)), print_exception=False) from None
        visit = self.visits.of(session)
        if not visit.press():
            raise Error(strings.PRESSED_TWICE, visible=False, print_exception=False)
        visit.files.add(Path(request.video))
        board = Board.waiting(request, strings.queued(self.waiting() + bool(self.engine.condition.running)))
        board.query = self.inputs.query(values, mode.name)
        yield {mode.status: mode.told(board), **mode.controls.when("waiting")}

    def run(self, mode: Mode, values: Values, session: str | None) -> Iterator[Updates]:
        """Stream one run to its labelled end."""
        visit = self.visits.of(session)
        visit.begin()
        problem, timing = None, False
        try:
            request = mode.request(values)
            board = mode.board(request)
            board.start()
            self.finished.drop(session or "")
            yield {**mode.live(board), **mode.results(board), **mode.controls.when("running")}
            try:
                for event in self.events(request, session or "", session, board):
                    changed = board.apply(event)
                    if isinstance(event, Done):
                        continue  # what follows the loop shows it
                    if isinstance(event, Timing) and timing:
                        yield {mode.status: gr.skip()}  # nothing is drawn while the clock runs
                        continue
                    timing = isinstance(event, Timing)
                    self.store_sprite(board, session)
                    yield {**mode.live(board), **(mode.results(board) if changed else {})}
            except Exception as error:
                problem = problem_of(error)
                board.fail(problem)
            if not board.over:
                board.close()
        finally:
            visit.end()
        if mode.keeps:
            self.keep(board, session)
        yield {**mode.live(board), **mode.results(board), **mode.controls.when("idle")}
        if problem is not None:
            raise Error(problem, print_exception=False)

    def refused(self, mode: Mode, shown: Any, session: str | None) -> Updates:
        """Say that a run never began: the queue was full, or the request no longer good. `shown`: {"phase"}."""
        if not isinstance(shown, dict) or shown.get("phase") != "waiting":
            return {mode.status: gr.skip()}
        self.visits.of(session).end()
        waiting = self.waiting()
        message = strings.queue_full(waiting) if waiting >= self.settings.queue_size else strings.REFUSED
        return self._ended(mode, Board(phase="error", message=message))

    def stop(self, session: str | None) -> gr.Button:
        """Ask this page's own run to stop, also one that is only starting; the run goes on to its labelled end."""
        visit = self.visits.of(session)
        visit.stopping = visit.running
        self.engine.stop(session or "")
        return gr.Button(strings.STOPPING if visit.running else strings.STOP, interactive=False)

    def leave(self, mode: Mode, session: str | None) -> Updates:
        """Say that the run was left; Gradio has taken it out of the queue."""
        self.visits.of(session).waiting = False
        return self._ended(mode, Board(phase="stopped", message=strings.LEFT))

    def _ended(self, mode: Mode, board: Board) -> Updates:
        return {mode.status: mode.told(board), **mode.controls.when("idle")}

    def keep(self, board: Board, session: str | None) -> None:
        """Keep what a run came to for its page, if it came to anything that can be shown."""
        if session and board.request is not None and board.sprite is not None and board.results:
            results, evidence = tuple(board.results), tuple(board.evidence)
            finished = Finished(
                board.request, results, board.sprite, evidence, failed=board.missing, stored=board.stored
            )
            self.finished.put(session, self.visits.of(session).client, finished)

    # -- events and files ----------------------------------------------------------------------------------------

    def events(self, request: Request, run_id: str, session: str | None, board: Board | None = None) -> Iterator[Event]:
        """Yield the engine's events, text thinned out (`board` gets all of it), and log how the run went.

        The wall clock ends the run like Stop does, and so does a session that has not listened for `LISTEN_S`. Raises
        SharpError, with a message for the visitor, and nothing else.
        """
        deadline = time.monotonic() + self.settings.run_timeout_s
        listener = Listener(lambda: self.unread(session or run_id))
        told, unheard = 0.0, False
        visit = self.visits.of(run_id if board is not None else None)  # the API has no Stop
        number = uuid4().hex[:8]
        line = RunLine(number, request)
        # Closed with this generator: a page that went away ends its run at the next token.
        stream = self.engine.stream(request, run_id)
        try:
            for event in tagged(stream, number):
                line.take(event)
                late = time.monotonic() > deadline
                unheard = listener.gone() or unheard
                if late or unheard:
                    line.outcome = "timed out" if late else "left"
                if late or unheard or visit.stopping:
                    self.engine.stop(run_id)
                if isinstance(event, Text) and time.monotonic() - told < TEXT_INTERVAL_S:
                    if board is not None:
                        board.apply(event)
                    continue
                told = time.monotonic()
                listener.gave()
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

    def store_sprite(self, board: Board, session: str | None) -> None:
        """Write a board's frames where the browser can fetch them, once."""
        if board.sprite is not None and not board.sprite_path:
            board.sprite_path = self.save(board.sprite.jpeg, "frames.jpg", session)

    def save(self, content: str | bytes, name: str, session: str | None) -> str:
        """Write a file that is made for a page into the page's file cache and return its path."""
        content = content.encode("utf-8") if isinstance(content, str) else content
        path = save_bytes_to_cache(content, name, str(self.cache))
        self.visits.of(session).files.add(Path(path))
        return path


def problem_of(error: Exception) -> str:
    """Return what to tell the visitor; what is not meant for visitors goes to the log."""
    if isinstance(error, SharpError):
        return strings.sentence(str(error))
    log.exception("failed")
    return strings.NO_DISK if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else strings.INTERNAL


def public(request: Request) -> Mapping[str, Any]:
    """Return the request without the server's folders."""
    return {**request.to_dict(), "video": Path(request.video).name}
