"""Hugging Face ZeroGPU: a GPU that is lent for one call at a time.

Two processes serve a Space on that hardware. The main one has no GPU: torch pretends to have one, so that a model can
be placed on it before the web server starts. A call of a function decorated with `spaces.GPU` runs in a forked worker,
which has the weights on a real GPU until the call ends. Arguments and results cross by pickle, and every second counts
against the visitor's daily quota. So here:

- the checkpoint is placed when the engine is built, and no other one can be chosen but the embedded ones;
- the video is decoded, and a bad request refused, before a GPU is asked for; the call gets frames and yields events,
  plain data both ways;
- the seconds asked for follow from the request, because a shorter call waits less;
- the embedded models stay on the main process's CPU, and examples are asked with them: they cost no quota;
- a worker whose GPU fails for good ends itself after its last event, so that no other visitor gets it. The main process
  has no part in that GPU and goes on.

Only `app.py` uses this module, and `spaces` is imported when an engine is built, nowhere else.
Source: https://huggingface.co/docs/hub/spaces-zerogpu and the package `spaces` 0.51.
"""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gradio.exceptions import Error

from sharp_demo.backbones.load import default_model, load
from sharp_demo.cost import exact_tflops
from sharp_demo.engine.condition import DEVICE_LOST
from sharp_demo.engine.faults import typed_failures
from sharp_demo.engine.generation import Stop, warm_up
from sharp_demo.engine.requests import methods_of, unique_labels
from sharp_demo.engine.runs import Engine
from sharp_demo.engine.stages import Loaded
from sharp_demo.errors import EXIT_DEVICE_LOST, DeviceError, DeviceLostError, ModelError
from sharp_demo.pruning.method import Method
from sharp_demo.records import AttentionMaps, Done, Event, MethodFailed, Progress, Request
from sharp_demo.settings import Settings
from sharp_demo.video import Clip

log = logging.getLogger(__name__)

METHODS = ("vanilla", "sharp")  # four columns would take a third of an anonymous visitor's two minutes a day
DEVICE = "cuda"
REASON = "lent by ZeroGPU for each run"

# Guesses on the safe side for half an RTX PRO 6000, to be replaced once they are measured there. The call is not
# charged for what it does not use, but it is cut off after what it asked for.
START_S = 8.0  # a fresh worker: CUDA, the first kernels
COPY_BYTES_PER_S = 2e9  # weights to the GPU
FRAME_S = 0.05  # the vision tower, a frame
TFLOPS_PER_S = 40.0  # prefill
TOKEN_S = 0.05  # one decoding step
MAX_S = 120


class ZeroGPUEngine(Engine):
    """The engine on ZeroGPU: one placed checkpoint on the lent GPU, the embedded models on the CPU.

    Build it in the main thread before the web server starts. Where no checkpoint can be placed (no hub, nothing
    cached), only the embedded models are served.
    """

    def __init__(self, settings: Settings) -> None:
        spaces = importlib.import_module("spaces")  # patches torch: before anything touches CUDA
        chosen = {} if "methods" in settings.model_fields_set else {"methods": METHODS}
        super().__init__(settings.model_copy(update={**chosen, "device": "cpu", "dtype": "float32"}))
        self._placed = self._place(settings)
        # Made before the first fork, so that the worker sees it.
        self._stopping = multiprocessing.get_context("fork").Event()
        self._warmed_in = 0
        self._gpu_stream = spaces.GPU(self._stream_in_worker, duration=self._stream_seconds)
        self._gpu_attention = spaces.GPU(self._attention_in_worker, duration=self._attention_seconds)

    def models(self) -> list[str]:
        placed = [self._placed.backbone.name] if self._placed else []
        return list(dict.fromkeys([*placed, *self.settings.embedded]))

    @property
    def default_model(self) -> str:
        return self.models()[0]

    @property
    def example_model(self) -> str | None:
        return next(iter(self.settings.embedded), None)

    # -- the main process ----------------------------------------------------------------------------------------

    @staticmethod
    def _place(settings: Settings) -> Loaded | None:
        # Loaded on the CPU and then moved: what torch reports of the GPU out here is not the GPU a call will get.
        dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
        attention = "eager" if settings.attention == "eager" else "sdpa"  # flash-attn: no wheel for every GPU lent
        name = default_model(settings)
        if name in settings.embedded:
            return None
        try:
            on_cpu = settings.model_copy(update={"device": "cpu", "dtype": dtype, "attention": attention})
            backbone = load(name, on_cpu)
        except ModelError as error:
            log.error("%s; serving the embedded models only, on the CPU", error)
            return None
        backbone.model.to(DEVICE)
        backbone = replace(backbone, info=replace(backbone.info, device=DEVICE, device_reason=REASON))
        return Loaded.of(backbone)

    def _load(self, name: str) -> Loaded:
        if self._placed is not None and name == self._placed.backbone.name:
            return self._placed
        if name not in self.settings.embedded:
            raise ModelError(f"{name} is not served on this hardware; choose from {', '.join(self.models())}")
        return super()._load(name)

    def _on_device(
        self, request: Request, loaded: Loaded, methods: list[tuple[str, Method]], stop: Stop
    ) -> Iterator[Event]:
        if loaded is not self._placed:
            yield from super()._on_device(request, loaded, methods, stop)
            return
        clip = self._stages.decode(request, loaded)
        self._prompt_length(request, clip)
        yield Progress("gpu", "Waiting for a GPU")
        if stop.is_set():
            yield Done((), ())
            return
        self._stopping.clear()
        events, over = self._gpu_stream(request, clip), False
        try:
            for event in events:
                over = isinstance(event, Done)
                # A thread's event is not seen in the worker; this one is, at its next token.
                if stop.is_set():
                    self._stopping.set()
                yield event
        except Error as error:
            if not over:  # a worker that has said everything may end as it likes
                raise DeviceError(str(error.message)) from None
        finally:
            events.close()

    def _attention(self, request: Request, loaded: Loaded, penalty: float) -> AttentionMaps:
        if loaded is not self._placed:
            return super()._attention(request, loaded, penalty)
        clip = self._stages.decode(request, loaded)
        self._prompt_length(request, clip)
        try:
            return self._gpu_attention(request, clip, penalty)
        except Error as error:
            raise DeviceError(str(error.message)) from None

    def _prompt_length(self, request: Request, clip: Clip) -> int:
        """Tokens of the prompt; raises what is wrong with it before a GPU is asked for."""
        assert self._placed is not None
        processor = self._placed.backbone.processor
        grid = processor.video.grid(*clip.frames.shape[:3])
        prompt = processor.prompt(request.question, frames=len(clip.frames), grid=grid, times=clip.timestamps)
        return int(prompt["input_ids"].shape[1])

    def _stream_seconds(self, request: Request, clip: Clip) -> int:
        """Seconds of GPU time to ask for: every method as slow as vanilla, every answer as long as allowed.

        The budget of the timing rounds, and one round more: a long one is not cut short.
        """
        count, timing = len(request.methods), self._timing_s(request)
        rounds = 1 if timing else 0
        return self._seconds(request, clip, prefills=count * (1 + rounds), methods=count, timing_s=timing)

    def _attention_seconds(self, request: Request, clip: Clip, penalty: float) -> int:
        """Seconds of GPU time to ask for: the clip and the black video, one prefill each."""
        return self._seconds(request, clip, prefills=2, methods=0, timing_s=0.0)

    def _seconds(self, request: Request, clip: Clip, *, prefills: int, methods: int, timing_s: float) -> int:
        assert self._placed is not None
        model, shape = self._placed.backbone.model, self._placed.shape
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        tflops = exact_tflops(shape, [self._prompt_length(request, clip)] * shape.layers, 0)
        answers = methods * request.max_new_tokens
        return gpu_seconds(weights, len(clip.frames), prefills * tflops, answers, timing_s)

    # -- the worker, which has the GPU ---------------------------------------------------------------------------

    def _stream_in_worker(self, request: Request, clip: Clip) -> Iterator[Event]:
        with self._leaving_when_lost():
            try:
                with typed_failures(self.condition):
                    loaded = self._receive(request, clip)
                    yield from super()._on_device(request, loaded, methods_of(request), self._stopping)
            except DeviceLostError:
                failed = tuple(MethodFailed(one, "device_lost", DEVICE_LOST) for one in unique_labels(request.methods))
                yield from failed
                yield Done((), failed)

    def _attention_in_worker(self, request: Request, clip: Clip, penalty: float) -> AttentionMaps:
        with self._leaving_when_lost(), typed_failures(self.condition):
            return super()._attention(request, self._receive(request, clip), penalty)

    @contextmanager
    def _leaving_when_lost(self) -> Iterator[None]:
        """End this worker at the end of a call in which its device was lost: an idle worker would be lent again."""
        try:
            yield
        finally:
            if self.condition.lost:
                log.critical("the worker leaves: %s", self.condition.lost)
                os._exit(EXIT_DEVICE_LOST)

    def _receive(self, request: Request, clip: Clip) -> Loaded:
        assert self._placed is not None
        self._stages.keep(request, self._placed, clip)
        if self._warmed_in != os.getpid():
            warm_up(self._placed.backbone)
            self._warmed_in = os.getpid()
        return self._placed


def gpu_seconds(weight_bytes: float, frames: int, prefill_tflops: float, answer_tokens: int, timing_s: float) -> int:
    """Whole seconds of one call, at most what one may ask for; prefills and answer tokens of all its methods."""
    once = START_S + weight_bytes / COPY_BYTES_PER_S + frames * FRAME_S + prefill_tflops / TFLOPS_PER_S
    return min(MAX_S, math.ceil(once + answer_tokens * TOKEN_S + timing_s))
