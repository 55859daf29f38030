"""What the modes share: buttons, a status line with a progress bar, a table, and running a request to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.errors import InputError
from sharp_demo.page.callbacks import Callbacks, buttons, problem_of, waits
from sharp_demo.page.tokens import static_html
from sharp_demo.records import (
    Decoded,
    Done,
    Encoded,
    Event,
    MethodDone,
    MethodFailed,
    MethodStarted,
    ModelInfo,
    Progress,
    Request,
    Result,
    Started,
)
from sharp_demo.views.overlay import Sprite, make_sprite

METHODS_INPUT = 3  # the place of the methods among the page's inputs; see `Callbacks.request_of`
HERE = Path(__file__).parent.parent
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
PHASE = "(shown) => [{ phase: shown?.phase }]"  # of a board or a status, whose whole value may be megabytes
MODEL: dict[str, Any] = {**HIDDEN, "concurrency_id": "model", "concurrency_limit": 1}


# -- components --------------------------------------------------------------------------------------------------


WORDS = {"walk": strings.WALK, "table": {"table": strings.TABLE}}  # of the components whose scripts say something


def component(name: str, value: Any = None, **kwargs: Any) -> gr.HTML:
    """Return the component whose static markup, script and style are `name`.html, .js and .css beside this file."""
    markup, script, css = ((HERE / kind / f"{name}.{kind}").read_text("utf-8") for kind in ("html", "js", "css"))
    return static_html(value, markup=markup, script=script, css=css, words=WORDS.get(name), **kwargs)


def status_line(message: str, **kwargs: Any) -> gr.HTML:
    """One line on how far a run is, with a bar; value: `Status.value()`."""
    return component("status", Status(message=message).value(), elem_classes="mode-part", **kwargs)


def data_table(value: Any = None, **kwargs: Any) -> gr.HTML:
    """A table of plain text: {"caption", "head": [text], "rows": [[cell]]}.

    A cell is text or {"text", "kind", "title", "color", "note"}; kinds: same, differs, open, number, on, off.
    """
    return component("table", value, elem_classes="mode-part", **kwargs)


@dataclass
class Status:
    """How a mode's run is going; `phase` as in `Board`."""

    phase: str = "idle"
    message: str = ""
    done: int = 0
    of: int = 0
    query: str = ""  # the settings, for the page's address

    def value(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Controls:
    """Run, Stop and Leave of one mode."""

    run: gr.Button
    stop: gr.Button
    leave: gr.Button

    @classmethod
    def create(cls, mode: str, label: str) -> Controls:
        """Create the buttons, side by side; element ids are `mode`-run and so on."""
        with gr.Row(elem_classes="mode-buttons"):
            run = gr.Button(label, variant="primary", min_width=120, elem_id=f"{mode}-run")
            stop = gr.Button(strings.STOP, variant="stop", interactive=False, min_width=80, elem_id=f"{mode}-stop")
            leave = gr.Button(strings.LEAVE, visible=False, min_width=80, elem_id=f"{mode}-leave")
        return cls(run, stop, leave)

    def all(self) -> list[gr.Button]:
        return [self.run, self.stop, self.leave]


# -- running -----------------------------------------------------------------------------------------------------


class View(Protocol):
    """What a mode shows of one run: it takes in events and gives the updates of the mode's outputs."""

    status: Status

    def apply(self, event: Event) -> bool:
        """Take in one event; True when an output other than the status changed."""

    def stop(self, message: str) -> None:
        """End the run as stopped, for this reason."""

    def outputs(self) -> list[Any]:
        """Return the updates of the mode's outputs, in order."""

    def idle(self) -> list[Any]:
        """Return as many updates that leave everything as it is."""


@dataclass
class Collected:
    """The part of a view that all modes share: model, frames and results, and the status they make."""

    total: int
    status: Status = field(default_factory=Status)
    model: ModelInfo | None = None
    sprite: Sprite | None = None
    sampled: int = 0
    results: list[Result] = field(default_factory=list)
    failed: list[MethodFailed] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def apply(self, event: Event) -> bool:
        status = self.status
        status.of = self.total
        match event:
            case Started(model=model):
                self.model = model
                status.phase, status.message = "running", strings.STARTING
            case Progress(message=message):
                status.phase, status.message = "running", message
            case Decoded(frames=frames, info=info, ms=ms):
                self.sprite, self.sampled = make_sprite(frames), len(frames)
                status.message = strings.decoded(len(frames), ms, info.get("decoder", ""))
            case Encoded(tokens=tokens, ms=ms, cached=cached):
                status.message = strings.encoded(tokens, ms, cached)
            case MethodStarted(label=label):
                status.message = strings.step(len(self.results) + len(self.failed) + 1, self.total, label)
            case MethodDone(result=result):
                self.results.append(result)
                status.done = len(self.results) + len(self.failed)
                return True
            case MethodFailed():
                self.failed.append(event)
                status.done = len(self.results) + len(self.failed)
                return True
            case Done():
                self._close()
                return True
        return False

    @property
    def baseline(self) -> Result | None:
        """Vanilla's result, unless it was stopped while it was answering."""
        return next((one for one in self.results if one.method == "vanilla" and one.status == "done"), None)

    def stop(self, message: str) -> None:
        """End the run as stopped, for this reason."""
        self.status.phase, self.status.message = "stopped", message

    def missing(self, label: str) -> dict[str, str]:
        """Return the cell of a setting that has no whole answer: it failed, was stopped, was not run, or is to come."""
        failure = next((one for one in self.failed if one.label == label), None)
        if failure is not None:
            return {"text": strings.FAILED, "kind": "open", "title": failure.message}
        text = "…"
        if any(result.label == label for result in self.results):
            text = strings.STOPPED
        elif self.status.phase in ("stopped", "error"):
            text = strings.NOT_RUN_CELL
        return {"text": text, "kind": "open", "title": ""}

    def _close(self) -> None:
        seconds = time.monotonic() - self.began
        done = sum(result.status == "done" for result in self.results)
        missing = self.total - done - len(self.failed)
        self.status.phase = "stopped" if missing else "error" if self.failed and not done else "done"
        self.status.message = strings.ended(
            done, self.total, len(self.failed), seconds, self.model, stopped=missing > 0
        )
        if self.failed:
            self.status.message += " " + self.failed[0].message


def stream(callbacks: Callbacks, request: Request, view: View, caller: gr.Request) -> Iterator[list[Any]]:
    """Run a request and yield [status, *outputs, run, stop, leave] until its labelled end."""
    visit = callbacks.visits.of(caller.session_hash)
    visit.begin()
    problem = None
    try:
        view.status.phase, view.status.message = "running", strings.STARTING
        yield [view.status.value(), *view.outputs(), *buttons("running")]
        for event in callbacks.events(request, caller.session_hash, view):
            changed = view.apply(event)
            yield [view.status.value(), *(view.outputs() if changed else view.idle()), *buttons(None)]
    except Exception as error:
        problem = problem_of(error)
        view.status.phase, view.status.message = "error", problem
    finally:
        visit.end()
    yield [view.status.value(), *view.outputs(), *buttons("idle")]
    if problem is not None:
        raise Error(problem, print_exception=False)


def wire(
    callbacks: Callbacks,
    controls: Controls,
    status: gr.HTML,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    request_of: Callable[[Sequence[Any]], Request],
    query: Callable[[Sequence[Any]], str],
    run: Callable[[Request, gr.Request], Iterator[list[Any]]],
) -> None:
    """Connect a mode's buttons: check at once, wait in the model's queue, run, stop, leave the queue.

    `query` gives the settings of a run as the page's address holds them.
    """

    def begin(caller: gr.Request, *values: Any) -> Iterator[list[Any]]:
        try:
            request = request_of(values)
        except InputError as error:
            yield [Status("error", str(error)).value(), *buttons("idle")]
            raise Error(str(error), print_exception=False) from None
        callbacks.visits.of(caller.session_hash).files.add(Path(request.video))
        status = Status("waiting", callbacks.queued(), query=query(values))
        yield [status.value(), *buttons("waiting")]

    def go(caller: gr.Request, *values: Any) -> Iterator[list[Any]]:
        yield from run(request_of(values), caller)

    def leave() -> list[Any]:
        return [Status("stopped", strings.LEFT).value(), *buttons("idle")]

    def refused(current: Any) -> list[Any]:
        if not waits(current):
            return [gr.skip(), *buttons(None)]
        return [Status("error", callbacks.refusal()).value(), *buttons("idle")]

    shown = [status, *controls.all()]
    begun = controls.run.click(begin, inputs, shown, queue=False, **HIDDEN)
    running = begun.success(go, inputs, [status, *outputs, *controls.all()], **MODEL)
    running.failure(refused, status, shown, queue=False, js=PHASE, **HIDDEN)
    controls.stop.click(callbacks.stop, None, controls.stop, queue=False, **HIDDEN)
    controls.leave.click(leave, None, shown, queue=False, cancels=[running], **HIDDEN)
