"""One model, many methods: a request becomes a stream of plain-data events.

The video is decoded and encoded once; the methods then run one after another on the shared features, so that
their latencies compare like with like. Closing the generator, or `Engine.stop`, ends a run between two tokens.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import math
import platform
import threading
import time
from collections import Counter
from collections.abc import Generator, Hashable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sharp_demo import __version__, strings
from sharp_demo.backbones.features import VideoFeatures, black_features, encode_video, model_inputs
from sharp_demo.backbones.layout import VisualLayout, visual_layout
from sharp_demo.backbones.load import Backbone, default_model, load
from sharp_demo.backbones.processor import clean_question
from sharp_demo.backbones.signals import signals_refusal
from sharp_demo.cost import ModelShape, exact_tflops, flops_matched_retention, overhead_macs, paper_tflops
from sharp_demo.errors import DeviceLostError, DeviceMemoryError, InputError, MethodError, UnsupportedError
from sharp_demo.memory import trim_heaps
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Role, Run
from sharp_demo.pruning.probe import AttentionProbe, attention_per_frame
from sharp_demo.pruning.registry import make_method, method_class
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.sharp.method import ShaRP
from sharp_demo.pruning.sharp.segments import frame_means, segment_frames
from sharp_demo.recent import Recent
from sharp_demo.records import (
    AttentionMaps,
    Decoded,
    Done,
    Encoded,
    Event,
    Latency,
    Layout,
    Memory,
    MethodDone,
    MethodFailed,
    MethodSpec,
    MethodStarted,
    Progress,
    Request,
    Result,
    Stage,
    Started,
    Text,
    Tflops,
    TokenCounts,
)
from sharp_demo.settings import HUB_MODELS, Settings
from sharp_demo.stopwatch import Stopwatch
from sharp_demo.video import Clip, VideoInfo, decode, probe

log = logging.getLogger(__name__)

# A prefill that is quick is timed again and the median counts: one measurement on a busy machine says little.
TIMING_BUDGET_MS = 300.0

FORGET_WAIT_S = 1.0

NO_MEMORY = "The device ran out of memory, with half the frames too: choose fewer frames or a smaller model."
DEVICE_LOST = "The accelerator failed and the server has to start anew; try again in a minute."


class Stop(Protocol):
    """What a run asks between two tokens: a thread's event, or one that a process shares with its parent."""

    def is_set(self) -> bool: ...


@dataclass
class _Loaded:
    """A loaded model and what belongs to it alone."""

    backbone: Backbone
    shape: ModelShape
    bias_cache: BiasCache = field(default_factory=BiasCache)
    features: Recent[tuple[VideoFeatures, float]] = field(default_factory=lambda: Recent(2))
    warmed_lengths: set[int] = field(default_factory=set)


@dataclass
class Condition:
    """What an engine is doing, for health checks: written by the run that holds the model, read by anybody.

    `heard` is when (`time.monotonic`) the last event of a run came; `error` the last message of a failed run;
    `lost` says why the device cannot be used again before the process is started anew.
    """

    model: str = ""
    state: Literal["not loaded", "loading", "ready"] = "not loaded"
    running: bool = False
    heard: float = 0.0
    runs: int = 0
    error: str = ""
    lost: str = ""


@dataclass(frozen=True)
class _Shared:
    """What all methods of one run share."""

    clip: Clip
    features: VideoFeatures
    prompt: dict[str, Tensor]
    layout: Layout
    vision_ms: float
    thin: int  # 1: all decoded frames; 2, 4: every second or fourth, because memory ran out


class Engine:
    """Runs requests on one model at a time, one request at a time.

    Parameters
    ----------
    settings : limits, device and model choice of this deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._lock = threading.Lock()
        self._forgetting = False  # `forget` came while a run held the lock
        self._loaded: _Loaded | None = None
        self._clips: Recent[Clip] = Recent(2)
        self._stops: dict[str, threading.Event] = {}
        self.condition = Condition()

    # -- what there is -------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Names for a menu: the configured model, the embedded ones that are there, and the hub allow-list."""
        configured = [self.settings.model] if self.settings.model else []
        return list(dict.fromkeys([*configured, *self.settings.embedded, *HUB_MODELS]))

    @property
    def default_model(self) -> str:
        return default_model(self.settings)

    @property
    def example_model(self) -> str | None:
        """The model that the example clips are asked with; None: the one that is chosen."""
        return None

    def probe(self, path: str) -> VideoInfo:
        """Check a video file without decoding it; raises VideoError."""
        return probe(path, self.settings)

    def stop(self, run_id: str) -> bool:
        """End the run started with this id between two tokens; False when there is none."""
        event = self._stops.get(run_id)
        if event is not None:
            event.set()
        return event is not None

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
            self._clips.clear()
            if self._loaded is not None:
                self._loaded.features.clear()
            trim_heaps()
        self._lock.release()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the model, after whoever holds it now."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._release()

    # -- runs ----------------------------------------------------------------------------------------------------

    def stream(self, request: Request, run_id: str = "") -> Iterator[Event]:
        """Run a request and yield its events; the last one is `Done`.

        Raises InputError (before anything ran) for a bad request, an unusable video or a model that cannot be
        loaded. A method that fails yields `MethodFailed` and the others go on; one that runs out of memory is tried
        once more with half the frames. DeviceLostError: the device needs a new process.
        """
        methods = self._methods(request)
        self._refuse_when_lost()
        stop = threading.Event()
        if run_id:
            self._stops[run_id] = stop
        try:
            if not self._lock.acquire(blocking=False):
                yield Progress("queue", strings.WAIT_OTHER)
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
        """Last token's attention per layer and frame: raw, on a black video, and debiased (paper Figs. 2 and 4).

        Untimed. `penalty` is lambda of Eq. 5; ShaRP's default when None. Raises InputError like `stream`.
        """
        penalty = ShaRP().penalty if penalty is None else penalty
        self._check(request)
        self._refuse_when_lost()
        with self._held(), self._typed_failures():
            return self._attention(request, self._load(request.model or self.default_model), penalty)

    # -- faults --------------------------------------------------------------------------------------------------

    def _watched(self, events: Generator[Event, None, None]) -> Iterator[Event]:
        """Pass on the events of the run that holds the model and keep `condition` up to date."""
        condition = self.condition
        condition.running, condition.heard = True, time.monotonic()
        try:
            with closing(events), self._typed_failures():
                for event in events:
                    condition.heard = time.monotonic()
                    if isinstance(event, MethodFailed) and event.kind != "refused":
                        condition.error = event.message
                    yield event
        finally:
            condition.running = False
            condition.runs += 1

    @contextmanager
    def _typed_failures(self) -> Iterator[None]:
        """Turn what a device does when it has had enough into typed errors, and note it and any other fault."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            self.condition.error = f"{type(error).__name__}; the log has the details"
            if is_out_of_memory(error):
                self.condition.error = NO_MEMORY
                raise DeviceMemoryError(NO_MEMORY) from None  # its traceback would hold on to the tensors
            if is_device_lost(error):
                self.condition.error = self.condition.lost = DEVICE_LOST
                raise DeviceLostError(DEVICE_LOST) from error
            raise

    def _refuse_when_lost(self) -> None:
        if self.condition.lost:
            raise DeviceLostError(self.condition.lost)

    # -- checks --------------------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        limits = self.settings
        clean_question(request.question, limits.max_question_chars)
        for what, value, high in (
            ("frames", request.frames, limits.max_frames),
            ("max_new_tokens", request.max_new_tokens, limits.max_new_tokens),
            ("prefills", request.prefills, 100),
        ):
            if value is not None and (not isinstance(value, int) or not 1 <= value <= high):
                raise InputError(f"{what} is {value}; it must be between 1 and {high}, a whole number.")
        if not 0 < request.retention <= 1:
            raise MethodError(f"retention is {request.retention:g}; it must be above 0 and at most 1.")
        if request.match not in ("tokens", "flops"):
            raise InputError(f"match is {request.match!r}; it must be tokens or flops.")

    def _methods(self, request: Request) -> list[tuple[str, Method]]:
        """Build every method before anything runs, so that a wrong option costs nobody a wait."""
        self._check(request)
        if not request.methods:
            raise MethodError("No method was chosen: pick at least one.")
        labels = unique_labels(request.methods)
        built = []
        for label, spec in zip(labels, request.methods, strict=True):
            options = dict(spec.options)
            if any(option.name == "seed" for option in fields(method_class(spec.name))):
                options.setdefault("seed", request.seed)
            retention = request.retention if spec.retention is None else spec.retention
            built.append((label, make_method(spec.name, retention, options)))
        return built

    # -- stages --------------------------------------------------------------------------------------------------

    def _run(self, request: Request, methods: list[tuple[str, Method]], stop: Stop) -> Generator[Event, None, None]:
        name = request.model or self.default_model
        if self._loaded is None or self._loaded.backbone.name != name:
            self.probe(request.video)  # nobody waits for a model to hear that the file is bad
            yield Progress("load", strings.loading(name))
        loaded = self._load(name)
        yield Started(request, loaded.backbone.info, tuple(label for label, _ in methods))
        if stop.is_set():
            yield Done((), ())
            return
        yield Progress("decode", strings.READING)
        clip = self._decode(request, loaded)
        yield Decoded(clip.frames, clip.timestamps, vars(clip.info), clip.ms)
        if stop.is_set():
            yield Done((), ())
            return
        yield from self._on_device(request, loaded, methods, stop)

    def _on_device(
        self, request: Request, loaded: _Loaded, methods: list[tuple[str, Method]], stop: Stop
    ) -> Iterator[Event]:
        """Everything of a run that computes on the model's device, after the video was decoded."""
        signals = any(one.needs_vision and one.active for _, one in methods)
        shared = yield from self._encode(request, loaded, signals)

        done: list[Result] = []
        failed: list[MethodFailed] = []
        for label, method in methods:
            if stop.is_set():
                break
            last: Event | None = None
            for last in self._run_method(request, loaded, shared, label, method, stop):
                yield last
            if isinstance(last, MethodDone):
                done.append(last.result)
            elif isinstance(last, MethodFailed):
                failed.append(last)
        yield Done(tuple(done), tuple(failed))

    def _encode(self, request: Request, loaded: _Loaded, signals: bool) -> Generator[Event, None, _Shared]:
        """Encode the frames; when they do not fit, every second of them. Returns what the methods share."""
        for thin in (1, 2):
            if thin > 1:
                clip = thinned(self._decode(request, loaded), thin)
                yield Decoded(clip.frames, clip.timestamps, vars(clip.info), clip.ms)
            yield Progress("vision", strings.ENCODING)
            cached = loaded.features.get(self._features_key(request, loaded, thin)) is not None
            try:
                shared = self._share(request, loaded, signals=signals, thin=thin)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("the vision tower ran out of memory: %s", str(error))
            else:
                yield Encoded(shared.layout, shared.layout.tokens, shared.vision_ms, cached)
                return shared
            free_memory()
        raise DeviceMemoryError(NO_MEMORY)

    def _attention(self, request: Request, loaded: _Loaded, penalty: float) -> AttentionMaps:
        shared = self._share(request, loaded)
        model = loaded.backbone.model
        black = black_video(loaded.backbone, shared)
        raw, bias = (
            attention_per_frame(
                probe_attention(model, shared.prompt, features), loaded.shape.layers, shared.layout.frames
            )
            for features in (shared.features, black)
        )
        visual = shared.features.features[: shared.layout.tokens]
        frame = torch.arange(shared.layout.tokens, device=visual.device) // (shared.layout.rows * shared.layout.cols)
        segments = segment_frames(frame_means(visual, frame, shared.layout.frames), ShaRP().tau_seg)
        return AttentionMaps(
            layout=shared.layout,
            penalty=penalty,
            raw=raw.tolist(),
            bias=bias.tolist(),
            debiased=(raw - penalty * bias).tolist(),
            segments=[list(segment) for segment in segments],
        )

    def _load(self, name: str) -> _Loaded:
        if self._loaded is None or self._loaded.backbone.name != name:
            self._loaded = None  # make room before the next one comes
            free_memory()
            self.condition.model, self.condition.state = name, "loading"
            try:
                backbone = load(name, self.settings)
                warm_up(backbone)
                self._loaded = _Loaded(backbone, ModelShape.from_config(backbone.model.config.text_config))
            finally:
                self.condition.state = "not loaded" if self._loaded is None else "ready"
        return self._loaded

    def _frames(self, request: Request, loaded: _Loaded) -> int:
        return request.frames or min(loaded.backbone.default_frames, self.settings.max_frames)

    def _features_key(self, request: Request, loaded: _Loaded, thin: int = 1) -> Hashable:
        return (file_digest(request.video), self._frames(request, loaded), thin)

    def _decode(self, request: Request, loaded: _Loaded) -> Clip:
        frames = self._frames(request, loaded)
        # Checked by the decoder's parent as well; a digest needs a readable file first.
        key = (file_digest(request.video), frames)
        clip = self._clips.get(key)
        if clip is None:
            clip = decode(request.video, frames, self.settings)
            self._clips.put(key, clip)
        return clip

    def _share(self, request: Request, loaded: _Loaded, *, signals: bool = False, thin: int = 1) -> _Shared:
        """Decode and encode once; both are cached by the file's content and the number of frames.

        `thin`: every how many-th of the decoded frames the model sees; more than 1 where memory is short.
        `signals`: a method asks for the tower's attention. What reading it takes is not in `vision_ms`.
        """
        backbone, model = loaded.backbone, loaded.backbone.model
        clip = thinned(self._decode(request, loaded), thin)
        grid = backbone.processor.video.grid(*clip.frames.shape[:3])
        prompt = backbone.processor.prompt(request.question, frames=len(clip.frames), grid=grid)
        key = self._features_key(request, loaded, thin)
        entry = loaded.features.get(key)
        signals = signals and signals_refusal(model) is None
        if entry is None or (signals and entry[0].signals is None):
            watch = Stopwatch(model.device)
            with watch("vision"):
                features = encode_video(model, backbone.processor.video.pixels(clip.frames), signals=signals)
            beside = features.signals.ms if features.signals is not None else 0.0
            entry = (features, watch.ms()["vision"] - beside)
            loaded.features.put(key, entry)
        features, vision_ms = entry
        layout = layout_of(backbone, prompt).record(clip.timestamps)
        return _Shared(clip, features, prompt, layout, vision_ms, thin)

    def _run_method(
        self, request: Request, loaded: _Loaded, shared: _Shared, label: str, method: Method, stop: Stop
    ) -> Iterator[Event]:
        """Run one method; when it runs out of memory, once more with half the frames, which its result then says."""
        if (yield from self._attempt(request, loaded, shared, label, method, stop, shared.thin)):
            return
        free_memory()
        if len(shared.clip.frames) > 1 and not stop.is_set():
            yield Progress("retry", strings.less_frames(label))
            if (yield from self._attempt(request, loaded, shared, label, method, stop, 2 * shared.thin)):
                return
            free_memory()
        yield MethodFailed(label, "out_of_memory", self._memory_message(shared))

    def _attempt(
        self,
        request: Request,
        loaded: _Loaded,
        shared: _Shared,
        label: str,
        method: Method,
        stop: Stop,
        thin: int,
    ) -> Generator[Event, None, bool]:
        """Run one method once, on every `thin`-th frame; return False when it ran out of memory."""
        if self.condition.lost:
            yield MethodFailed(label, "device_lost", DEVICE_LOST)
            return True
        try:
            if thin != shared.thin:
                signals = method.needs_vision and method.active
                shared = self._share(request, loaded, signals=signals, thin=thin)
            method = self._matched(request, loaded, shared, method).fitted(loaded.shape.layers)
            method.check(loaded.shape.layers)
            if method.needs_vision and method.active and (refusal := signals_refusal(loaded.backbone.model)):
                raise UnsupportedError(refusal)
            yield MethodStarted(label, method.name, config_of(method))
            yield from self._answer(request, loaded, shared, label, method, stop)
        except (InputError, UnsupportedError) as error:
            yield MethodFailed(label, "refused", str(error))
        except Exception as error:
            if is_out_of_memory(error):
                log.warning("%s ran out of memory: %s", label, str(error))  # the error itself holds on to tensors
                return False
            log.exception("%s failed", label)
            if is_device_lost(error):
                self.condition.lost = DEVICE_LOST
                yield MethodFailed(label, "device_lost", DEVICE_LOST)
            else:
                yield MethodFailed(label, "internal", f"{label} failed for a reason that is our fault; the log has it.")
        return True

    @staticmethod
    def _memory_message(shared: _Shared) -> str:
        layout = shared.layout
        return (
            f"The device ran out of memory at {layout.frames} x {layout.rows * layout.cols} = {layout.tokens} visual "
            "tokens: use fewer frames."
        )

    def _matched(self, request: Request, loaded: _Loaded, shared: _Shared, method: Method) -> Method:
        if request.match == "tokens" or not method.active:
            return method
        layers, n, frames = loaded.shape.layers, shared.layout.tokens, shared.layout.frames

        def per_layer(retention: float) -> list[int]:
            return replace(method, retention=retention).visual_per_layer(layers, n, frames)

        return replace(
            method, retention=flops_matched_retention(loaded.shape, n, method.retention, per_layer, method.name)
        )

    @torch.inference_mode()
    def _answer(
        self, request: Request, loaded: _Loaded, shared: _Shared, label: str, method: Method, stop: Stop
    ) -> Iterator[Event]:
        backbone, model = loaded.backbone, loaded.backbone.model
        cuda = model.device.type == "cuda"
        inputs = model_inputs(shared.prompt, shared.features)
        length = inputs["input_ids"].shape[1]
        if cuda and length not in loaded.warmed_lengths:
            prefill(model, inputs)  # kernels are chosen and memory is reserved by length
            loaded.warmed_lengths.add(length)
        if cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
        ids: list[int] = []
        status = "done"
        with method(model, backbone.processor, loaded.bias_cache) as run:
            timed: list[Timed] = []
            cache: Any = None
            while len(timed) < request.prefills and sum(one.ms for one in timed) < TIMING_BUDGET_MS:
                if timed:
                    if stop.is_set():
                        break
                    cache = None  # the peak is that of one prefill, not of two caches
                watch = Stopwatch(model.device)
                with watch("prefill"):
                    logits, cache, positions = prefill(model, inputs)
                    probabilities = logits.float().softmax(-1)
                    token = int(probabilities.argmax())
                timed.append(Timed(watch.ms()["prefill"], run.stages, run.bias_cold))
            (first_prob,) = finite(probabilities[token : token + 1])
            kv_bytes = cache_bytes(cache)
            kv_per_layer = [layer.get_seq_length() - (length - shared.layout.tokens) for layer in cache.layers]
            decode_ms, steps = 0.0, 0
            ends = end_tokens(model, backbone.processor.tokenizer)
            while token not in ends:
                ids.append(token)
                yield Text(label, backbone.processor.decode(ids))
                if len(ids) == request.max_new_tokens:
                    break
                if stop.is_set():
                    status = "stopped"
                    break
                positions = positions + 1
                began = time.perf_counter()  # what the receiver of an event does with it is not ours
                token = int(decode_step(model, token, cache, positions).argmax())
                decode_ms += (time.perf_counter() - began) * 1e3
                steps += 1
            peak = torch.cuda.max_memory_allocated(model.device) if cuda else None
            yield MethodDone(
                label,
                Result(
                    method=method.name,
                    label=label,
                    config=config_of(method),
                    status=status,
                    answer=backbone.processor.decode(ids),
                    answer_tokens=len(ids),
                    first_token_prob=first_prob,
                    tokens=token_counts(run, length),
                    visual_per_layer=list(run.visual_per_layer),
                    left_before=run.left_before.tolist(),
                    kv_per_layer=kv_per_layer,
                    layout=shared.layout,
                    **kept_by_frame(run, shared.layout),
                    merged_into=merged_pairs(run),
                    scores={name: finite(values) for name, values in run.scores.items()},
                    segments=[list(segment) for segment in run.segments],
                    latency_ms=latencies(shared, method, timed, decode_ms, steps),
                    tflops=prefill_tflops(loaded.shape, method, run, length, timed[0].cold),
                    memory=Memory(kv_bytes, peak),
                    device=str(model.device),
                    dtype=str(model.dtype).removeprefix("torch."),
                    attention_backend=backbone.info.attention_backend,
                    seed=request.seed,
                    versions=versions(),
                    model=backbone.name,
                    notes=[*thin_notes(shared), *filter(None, [backbone.info.note])],
                    trace={name: values.tolist() for name, values in run.trace.items()},
                ),
            )


# -- pieces, each a function of its arguments --------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Return True when an allocation failed, on whatever device."""
    said = str(error)
    failed = isinstance(error, RuntimeError) and (
        "CUDA error: out of memory" in said or "can't allocate memory" in said
    )
    return failed or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_device_lost(error: BaseException) -> bool:
    """Return True for errors (failed assertions, bad addresses) after which CUDA fails until the process ends."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def thinned(clip: Clip, thin: int) -> Clip:
    """The clip with every `thin`-th of its frames."""
    return clip if thin == 1 else replace(clip, frames=clip.frames[::thin], timestamps=clip.timestamps[::thin])


def thin_notes(shared: _Shared) -> list[str]:
    """What a result must say when the model did not see all frames."""
    return [f"Memory ran out: this answer saw only {len(shared.clip.frames)} frames."] if shared.thin > 1 else []


def free_memory() -> None:
    """Return unused memory to the device and the system. Call it outside of `except`, whose traceback holds tensors."""
    gc.collect()
    trim_heaps()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prefill(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run one prompt; return the next token's logits [vocab], the cache, and the last token's position ids."""
    cache = DynamicCache(config=model.config.get_text_config())
    output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    positions = inputs.get("position_ids")
    if positions is None:
        last = torch.tensor([[inputs["input_ids"].shape[1] - 1]], device=model.device)
    else:
        last = positions[..., -1:]
    return suppress_placeholders(model, output.logits[0, -1]), cache, last


def decode_step(model: Any, token: int, cache: DynamicCache, positions: Tensor) -> Tensor:
    """Feed one token at the given position ids; return the next logits [vocab]."""
    ids = torch.tensor([[token]], device=model.device)
    output = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    return suppress_placeholders(model, output.logits[0, -1])


def prefill_tflops(shape: ModelShape, method: Method, run: Run, length: int, cold: bool) -> Tflops:
    """TFLOPs of one prefill that `run` describes, in both conventions of `cost`; `cold`: it made the bias's cache."""
    assert run.layout is not None
    n, prefix = len(run.layout), int(run.layout.index[0])
    text = length - n
    achieved = run.visual_per_layer
    extra: Counter[str] = Counter()  # of all parts together
    options: dict[str, Any] = {}  # of the part that masks segments, if there is one
    for part in method.fitted(shape.layers).parts:
        own = config_of(part)
        if part.active:
            extra.update(overhead_macs(part.name, shape, n, part.retention, text, prefix, own, achieved))
        if "segm_layers" in own:
            options = own
    if not cold:
        extra.pop("bias_setup", None)
    masked = [layer for layer in options.get("segm_layers", ()) if options["segm"] and layer < options["layer"]]
    return Tflops(
        paper=paper_tflops(shape, achieved, run.mlp_per_layer),
        exact=exact_tflops(
            shape,
            achieved,
            text,
            mlp_per_layer=run.mlp_per_layer,
            prefix_tokens=prefix,
            segments=run.segment_tokens,
            masked_layers=masked,
            prefix_visible=options.get("sys_visible", True),
            extra_macs=sum(extra.values()),
        ),
    )


def suppress_placeholders(model: Any, logits: Tensor) -> Tensor:
    """Answers never contain visual placeholders; an untrained model would emit them."""
    logits = logits.clone()
    logits[[model.config.video_token_id, model.config.image_token_id]] = -torch.inf
    return logits


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Token ids that end an answer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(end) for end in (*listed, tokenizer.eos_token_id) if end is not None}


@torch.inference_mode()
def warm_up(backbone: Backbone) -> None:
    """Run one frame's worth of prompt through tower, prefill and decode, so that no method pays for first use."""
    import numpy as np

    processor, model = backbone.processor, backbone.model
    frames = np.zeros((2, 56, 56, 3), np.uint8)
    prompt = processor.prompt("warm-up", frames=2, grid=processor.video.grid(*frames.shape[:3]))
    features = encode_video(model, processor.video.pixels(frames))
    _, cache, positions = prefill(model, model_inputs(prompt, features))
    decode_step(model, 0, cache, positions + 1)


def layout_of(backbone: Backbone, prompt: dict[str, Tensor]) -> VisualLayout:
    """Where a prompt's visual tokens sit."""
    return visual_layout(backbone.model.config, prompt["input_ids"], prompt.get("video_grid_thw"))


def black_video(backbone: Backbone, shared: _Shared) -> VideoFeatures:
    """The features of a black video of the same layout, in the clip's place (LLaVA-OneVision's newline kept)."""
    black = black_features(backbone.model, backbone.processor.video, layout_of(backbone, shared.prompt))
    rest = shared.features.features[len(black) :]
    return replace(shared.features, features=torch.cat((black.to(rest), rest)))


@torch.inference_mode()
def probe_attention(model: Any, prompt: dict[str, Tensor], features: VideoFeatures) -> dict[str, Tensor]:
    """Attention of the last prompt token to every visual token, by layer, without pruning."""
    with AttentionProbe()(model) as run:
        prefill(model, model_inputs(prompt, features))
    return run.scores


def file_digest(path: str) -> str:
    """SHA-256 of a file's content; the path itself where it cannot be read (the decoder then says why)."""
    try:
        if Path(path).is_file():  # opening a pipe would wait for its other end
            with Path(path).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        pass
    return path


def unique_labels(specs: tuple[MethodSpec, ...]) -> list[str]:
    """Column titles; a repeated one gets the first number that is free."""
    labels: list[str] = []
    for spec in specs:
        numbered = (f"{spec.title} {number}" for number in count(2))
        labels.append(next(label for label in chain((spec.title,), numbered) if label not in labels))
    return labels


def config_of(method: Method) -> dict[str, Any]:
    """Every hyperparameter in force, JSON-ready."""
    values = {option.name: getattr(method, option.name) for option in fields(method)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def token_counts(run: Run, length: int) -> TokenCounts:
    """Count the tokens of the prompt, of its video, and those kept."""
    assert run.layout is not None
    visual, kept = len(run.layout), len(run.kept)
    return TokenCounts(
        prompt=length,
        visual=visual,
        kept=kept,
        retention=kept / visual,
        layer_mean=sum(run.visual_per_layer) / len(run.visual_per_layer) / visual,
    )


def kept_by_frame(run: Run, layout: Layout) -> dict[str, Any]:
    """`kept` and `role` of a Result: per frame the row-major indices of its kept tokens, and why each was kept."""
    per_frame = layout.rows * layout.cols
    kept: list[list[int]] = [[] for _ in range(layout.frames)]
    role: list[list[str]] = [[] for _ in range(layout.frames)]
    for slot, why in zip(run.kept.tolist(), run.role.tolist(), strict=True):
        kept[slot // per_frame].append(slot % per_frame)
        role[slot // per_frame].append(Role(why).label)
    return {"kept": kept, "role": role}


def merged_pairs(run: Run) -> list[list[int]]:
    """[from_slot, to_slot] of every token that was averaged into another."""
    slots = (run.merged_into >= 0).nonzero().squeeze(1)
    return torch.stack((slots, run.merged_into[slots]), 1).tolist()


def finite(scores: Tensor) -> list[float | None]:
    """Scores as JSON can hold them; None where the token was gone before (NaN) or half precision overflowed."""
    return [value if math.isfinite(value) else None for value in scores.tolist()]


@dataclass(frozen=True)
class Timed:
    """One timed prefill: all of it, its stages, and whether it had to make the black-video bias first."""

    ms: float
    stages: dict[str, float]
    cold: bool

    @property
    def warm_ms(self) -> float:
        return self.ms - self.stages.get("bias_setup", 0.0)


def latencies(shared: _Shared, method: Method, timed: list[Timed], decode_ms: float, steps: int) -> Latency:
    """Return what one method took.

    Of several timed prefills the (lower) median one counts, stages and all. `decode_video` and `vision` were measured
    once for all methods; the stage `vision_scores`, reading the tower's attention, is paid by the methods that choose
    by it.
    """
    median = sorted(timed, key=lambda one: one.warm_ms)[(len(timed) - 1) // 2]
    setup, prefill_ms = timed[0].stages.get("bias_setup", 0.0), median.warm_ms
    inner = {name: ms for name, ms in median.stages.items() if name != "bias_setup"}
    signals = shared.features.signals
    reading = signals.ms if signals is not None and method.needs_vision and method.active else 0.0
    stages = {
        "decode_video": Stage(shared.clip.ms, shared=True),
        "vision": Stage(shared.vision_ms, shared=True),
        **({"vision_scores": Stage(reading, shared=False)} if reading else {}),
        **({"bias_setup": Stage(setup, shared=False)} if setup else {}),
        **{name: Stage(ms, shared=False, part_of="prefill") for name, ms in inner.items()},
        "forward": Stage(prefill_ms - sum(inner.values()), shared=False, part_of="prefill"),
        "decode": Stage(decode_ms, shared=False),
    }
    first_token = shared.clip.ms + shared.vision_ms + reading + setup + prefill_ms
    return Latency(
        decode_video=shared.clip.ms,
        vision=shared.vision_ms,
        bias_setup=setup,
        prefill=prefill_ms,
        prefill_runs=len(timed),
        first_token=first_token,
        decode=decode_ms,
        decode_per_token=decode_ms / steps if steps else None,
        total=first_token + decode_ms,
        stages=stages,
    )


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all keys and values in a cache."""
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def versions() -> dict[str, str]:
    """What the figures were made with."""
    return {
        "sharp_demo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
