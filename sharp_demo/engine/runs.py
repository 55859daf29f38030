"""Runs requests: one model at a time, one request at a time.

The video is decoded and encoded once; the methods then answer one after another on the shared features, and when all
have answered their prefills are timed in rounds, so that their latencies compare like with like. Closing the
generator, or `Engine.stop`, ends a run between two tokens or two timed prefills.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import torch

from sharp_demo import strings
from sharp_demo.backbones.families import menu
from sharp_demo.backbones.load import default_model, is_available, load
from sharp_demo.engine.answering import Answered, run_job
from sharp_demo.engine.attention import attention_maps
from sharp_demo.engine.condition import Condition
from sharp_demo.engine.faults import free_memory, typed_failures
from sharp_demo.engine.generation import Stop, warm_up
from sharp_demo.engine.job import Job, reads_tower
from sharp_demo.engine.requests import check_request, methods_of
from sharp_demo.engine.rounds import time_answers
from sharp_demo.engine.stages import Loaded, Stages
from sharp_demo.memory import trim_heaps
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.sharp.method import ShaRP
from sharp_demo.records import (
    AttentionMaps,
    Decoded,
    Done,
    Event,
    MethodFailed,
    Progress,
    Request,
    Started,
)
from sharp_demo.settings import Settings
from sharp_demo.video import Reader, VideoInfo

FORGET_WAIT_S = 1.0


class Engine:
    """Runs requests on one model at a time, one request at a time.

    Parameters
    ----------
    settings : limits, device and model choice of this deployment.
    reader : of videos; None: a new one.
    """

    def __init__(self, settings: Settings, reader: Reader | None = None) -> None:
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._lock = threading.Lock()
        self._forgetting = False  # `forget` came while a run held the lock
        self._loaded: Loaded | None = None
        self._stages = Stages(settings, reader or Reader(settings))
        self._ready = False
        self._stops: dict[str, threading.Event] = {}
        self.condition = Condition()

    # -- what there is -------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Return names for a menu: the configured model, the embedded ones that are there, and those of the hub."""
        return menu(self.settings)

    @property
    def default_model(self) -> str:
        return default_model(self.settings)

    @property
    def example_model(self) -> str | None:
        """The model that the example clips are asked with; None: the one that is chosen."""
        return None

    def probe(self, path: str) -> VideoInfo:
        """Check a video file without decoding it; raises VideoError."""
        try:
            return self._stages.reader.probe(path)
        finally:
            if not self.condition.running:
                self._prepare()

    def get_ready(self) -> None:
        """From now on keep a decoder waiting for the next video, as a server should; started while nothing runs."""
        self._ready = True
        self._prepare()

    def load_default(self) -> None:
        """Load the default model while nobody waits for it, unless it would have to be downloaded."""
        with self._held(), typed_failures(self.condition):
            name = self.default_model
            if self._loaded is None and is_available(name, self.settings):
                self._load(name)

    def _prepare(self) -> None:
        if self._ready:
            self._stages.reader.warm()

    # -- runs ----------------------------------------------------------------------------------------------------

    def stream(self, request: Request, run_id: str = "") -> Iterator[Event]:
        """Run a request and yield its events; the last one is `Done`.

        Raises InputError (before anything ran) for a bad request, an unusable video or a model that cannot be
        loaded. A method that fails yields `MethodFailed` and the others go on; one that runs out of memory is tried
        once more with half the frames. DeviceLostError: the device needs a new process.
        """
        check_request(request, self.settings)
        methods = methods_of(request)
        self.condition.refuse_when_lost()
        stop = threading.Event()
        if run_id:
            self._stops[run_id] = stop
        try:
            if not self._lock.acquire(blocking=False):
                loading = self.condition.state == "loading" and not self.condition.running
                yield Progress("queue", strings.loading(self.condition.model) if loading else strings.WAIT_OTHER)
                while not self._lock.acquire(timeout=0.1):
                    if stop.is_set():
                        yield Done((), ())
                        return
            try:
                yield from self._watched(self._run(request, methods, stop))
            finally:
                self._release()
        finally:
            if run_id:
                self._stops.pop(run_id, None)

    def attention(self, request: Request, penalty: float | None = None) -> AttentionMaps:
        """Return the last token's attention per layer and frame: raw, on a black video, and debiased.

        Untimed. `penalty` is lambda of Eq. 5; ShaRP's default when None. Raises InputError like `stream`.
        """
        penalty = ShaRP().penalty if penalty is None else penalty
        check_request(request, self.settings)
        self.condition.refuse_when_lost()
        with self._held(), typed_failures(self.condition):
            return self._attention(request, self._load(request.model or self.default_model), penalty)

    def stop(self, run_id: str) -> bool:
        """End the run started with this id between two tokens; return False when there is none."""
        event = self._stops.get(run_id)
        if event is not None:
            event.set()
        return event is not None

    def stop_all(self) -> None:
        """End every run that has an id between two tokens: the process is about to end."""
        for event in list(self._stops.values()):
            event.set()

    def forget(self) -> None:
        """Drop the frames and features of recent videos, for a kiosk between two visitors.

        Waits for no run: while one goes on, they are dropped when it ends.
        """
        self._forgetting = True
        # Not 0: a run that looked before the line above may hold the lock for another moment.
        if self._lock.acquire(timeout=FORGET_WAIT_S):
            self._release()

    def _release(self) -> None:
        """Give the model back, and first drop what `forget` asked to drop."""
        if self._forgetting:
            self._forgetting = False
            self._stages.clips.clear()
            if self._loaded is not None:
                self._loaded.features.clear()
                self._loaded.views.clear()
            trim_heaps()
        self._prepare()
        self._lock.release()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the model, after whoever holds it now."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._release()

    def _watched(self, events: Generator[Event, None, None]) -> Iterator[Event]:
        """Pass on the events of the run that holds the model and keep `condition` up to date."""
        condition = self.condition
        condition.running, condition.heard = True, time.monotonic()
        try:
            with closing(events), typed_failures(condition):
                for event in events:
                    condition.heard = time.monotonic()
                    if isinstance(event, MethodFailed) and event.kind != "refused":
                        condition.error = event.message
                    yield event
        finally:
            condition.running = False
            condition.runs += 1

    # -- what a run does -----------------------------------------------------------------------------------------

    def _run(self, request: Request, methods: list[tuple[str, Method]], stop: Stop) -> Generator[Event, None, None]:
        name = request.model or self.default_model
        if self._loaded is None or self._loaded.backbone.name != name:
            self.probe(request.video)  # a bad file is refused before anybody waits for a model
            self._stages.reader.warm()  # meanwhile another decoder starts, which the video is read with at once
            yield Progress("load", strings.loading(name))
        loaded = self._load(name)
        yield Started(request, loaded.backbone.info, tuple(label for label, _ in methods))
        if stop.is_set():
            yield Done((), ())
            return
        yield Progress("decode", strings.READING)
        clip = self._stages.decode(request, loaded)
        yield Decoded(clip.frames, clip.timestamps, vars(clip.info), clip.ms)
        if stop.is_set():
            yield Done((), ())
            return
        yield from self._on_device(request, loaded, methods, stop)

    def _load(self, name: str) -> Loaded:
        if self._loaded is None or self._loaded.backbone.name != name:
            self._loaded = None  # make room before the next one comes
            free_memory()
            self.condition.model, self.condition.state = name, "loading"
            try:
                backbone = load(name, self.settings)
                warm_up(backbone)
                self._loaded = Loaded.of(backbone)
            finally:
                self.condition.state = "not loaded" if self._loaded is None else "ready"
        return self._loaded

    def _on_device(
        self, request: Request, loaded: Loaded, methods: list[tuple[str, Method]], stop: Stop
    ) -> Iterator[Event]:
        """Do what computes on the model's device, after the video was decoded."""
        signals = any(reads_tower(method) for _, method in methods)
        shared = yield from self._stages.encode(request, loaded, signals=signals)
        answered: list[Answered] = []
        failed: list[MethodFailed] = []
        for label, method in methods:
            if stop.is_set():
                break
            job = Job(request, loaded, self._stages, self.condition, stop, shared, label, method)
            outcome = yield from run_job(job)
            if isinstance(outcome, Answered):
                answered.append(outcome)
            else:
                failed.append(outcome)
        results = yield from time_answers(answered, self._timing_s(request), stop)
        yield Done(results, tuple(failed))

    def _timing_s(self, request: Request) -> float:
        return self.settings.timing_s if request.timing_s is None else request.timing_s

    def _attention(self, request: Request, loaded: Loaded, penalty: float) -> AttentionMaps:
        return attention_maps(loaded, self._stages.share(request, loaded), penalty)
