"""An engine that is there at once; torch, transformers and the default model come in the background.

The page needs nothing of them to be built and shown. Importing this loads neither.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sharp_demo import strings
from sharp_demo.backbones.families import menu
from sharp_demo.engine.condition import NOT_BUILT, Condition
from sharp_demo.errors import InputError
from sharp_demo.memory import importing
from sharp_demo.records import AttentionMaps, Done, Event, Progress, Request
from sharp_demo.settings import Settings
from sharp_demo.video import Reader, VideoInfo

if TYPE_CHECKING:
    from sharp_demo.engine.runs import Engine

log = logging.getLogger(__name__)

LOOK_S = 0.1  # between two looks at whether a run that waits for the engine was stopped
# Without any of these Linux shows no program an NVIDIA or AMD GPU (/dev/dxg: Windows' GPU inside WSL).
GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")


class AnyEngine(Protocol):
    """What page and server ask of an engine; `engine.runs.Engine` says what each does."""

    @property
    def settings(self) -> Settings: ...
    @property
    def condition(self) -> Condition: ...
    @property
    def default_model(self) -> str: ...
    @property
    def example_model(self) -> str | None: ...
    def models(self) -> list[str]: ...
    def probe(self, path: str) -> VideoInfo: ...
    def stream(self, request: Request, run_id: str = "") -> Iterator[Event]: ...
    def attention(self, request: Request, penalty: float | None = None) -> AttentionMaps: ...
    def stop(self, run_id: str) -> bool: ...
    def stop_all(self) -> None: ...
    def forget(self) -> None: ...
    def get_ready(self) -> None: ...


class BackgroundEngine:
    """Passes everything on to an `Engine` that `get_ready` builds in a thread; whoever comes earlier waits for it.

    Parameters
    ----------
    settings : of the engine.
    """

    example_model = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.condition = Condition()
        self._reader = Reader(settings)
        self._engine: Future[Engine] = Future()
        self._waiting: dict[str, threading.Event] = {}  # runs that wait for the engine, by their ids

    def get_ready(self) -> None:
        """Start a decoder that waits for the first video, and the thread that builds the engine."""
        self._reader.warm()
        threading.Thread(target=self._build, name="engine", daemon=True).start()

    def _build(self) -> None:
        try:
            with importing():
                from sharp_demo.engine.runs import Engine

                engine = Engine(self.settings, self._reader)
        except Exception as error:
            log.exception("the engine cannot be built")
            self.condition.error = self.condition.lost = NOT_BUILT  # health turns red, and the process ends
            self._engine.set_exception(error)
            return
        engine.condition = self.condition
        engine.get_ready()
        self._engine.set_result(engine)
        try:
            engine.load_default()
        except InputError as error:
            log.warning("the default model is not loaded: %s", error)  # whoever asks for it is told the same

    # -- what there is -------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        return menu(self.settings)

    @property
    def default_model(self) -> str:
        """The default model's name, said without the engine where no GPU can have a say in it."""
        settings = self.settings
        if settings.model_name:
            return settings.model_name
        if settings.embedded and (settings.device in ("cpu", "mps") or surely_no_gpu()):
            return next(iter(settings.embedded))
        from sharp_demo.backbones.load import default_model

        return default_model(settings)

    def probe(self, path: str) -> VideoInfo:
        return self._engine.result().probe(path) if self._engine.done() else self._reader.probe(path)

    # -- runs ----------------------------------------------------------------------------------------------------

    def stream(self, request: Request, run_id: str = "") -> Iterator[Event]:
        if not self._engine.done():
            stop = self._waiting[run_id] = threading.Event()
            try:
                yield Progress("load", strings.loading(request.model or self.default_model))
                while not self._engine.done():
                    if stop.wait(LOOK_S):
                        yield Done((), ())
                        return
            finally:
                self._waiting.pop(run_id, None)
        self.condition.refuse_when_lost()
        yield from self._engine.result().stream(request, run_id)

    def attention(self, request: Request, penalty: float | None = None) -> AttentionMaps:
        return self._engine.result().attention(request, penalty)

    def stop(self, run_id: str) -> bool:
        if (stop := self._waiting.get(run_id)) is not None:
            stop.set()
            return True
        return self._engine.done() and self._engine.result().stop(run_id)

    def stop_all(self) -> None:
        for stop in list(self._waiting.values()):
            stop.set()
        if self._engine.done():
            self._engine.result().stop_all()

    def forget(self) -> None:
        if self._engine.done():
            self._engine.result().forget()


def surely_no_gpu() -> bool:
    """Return True where torch cannot find a CUDA device (ROCm's count), as far as that is known without torch."""
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        build = ""
    if build == "cpu" or sys.platform == "darwin":
        return True
    return sys.platform == "linux" and not any(Path(device).exists() for device in GPU_DEVICES)
