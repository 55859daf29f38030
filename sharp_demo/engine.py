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
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sharp_demo import __version__
from sharp_demo.backbones.features import VideoFeatures, black_features, encode_video, model_inputs
from sharp_demo.backbones.layout import VisualLayout, visual_layout
from sharp_demo.backbones.load import Backbone, default_model, load
from sharp_demo.backbones.processor import clean_question
from sharp_demo.cost import ModelShape, exact_tflops, flops_matched_retention, overhead_macs, paper_tflops
from sharp_demo.errors import InputError, MethodError, UnsupportedError
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.probe import AttentionProbe, attention_per_frame
from sharp_demo.pruning.registry import make_method, method_class
from sharp_demo.pruning.runtime import Role, Run
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.sharp.method import ShaRP
from sharp_demo.pruning.sharp.segments import frame_means, segment_frames, token_bounds
from sharp_demo.pruning.stopwatch import Stopwatch
from sharp_demo.records import (
    AttentionMaps,
    Decoded,
    Done,
    Encoded,
    Event,
    Layout,
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
)
from sharp_demo.settings import HUB_MODELS, Settings
from sharp_demo.video import Clip, VideoInfo, decode, probe

log = logging.getLogger(__name__)

V = TypeVar("V")

# A prefill that is quick is timed again and the median counts: one measurement on a busy machine says little.
MAX_TIMED_PREFILLS = 5
TIMING_BUDGET_MS = 300.0


class Recent(Generic[V]):
    """The `capacity` most recently used values."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        self._values[key] = value
        while len(self._values) > self.capacity:
            self._values.popitem(last=False)


@dataclass
class _Loaded:
    """A loaded model and what belongs to it alone."""

    backbone: Backbone
    shape: ModelShape
    bias_cache: BiasCache = field(default_factory=BiasCache)
    features: Recent[tuple[VideoFeatures, float]] = field(default_factory=lambda: Recent(2))
    warmed_lengths: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Shared:
    """What all methods of one run share."""

    clip: Clip
    features: VideoFeatures
    prompt: dict[str, Tensor]
    layout: Layout
    vision_ms: float


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
        self._loaded: _Loaded | None = None
        self._clips: Recent[Clip] = Recent(2)
        self._stops: dict[str, threading.Event] = {}

    # -- what there is -------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Names for a menu: the configured model, the embedded ones that are there, and the hub allow-list."""
        configured = [self.settings.model] if self.settings.model else []
        return list(dict.fromkeys([*configured, *self.settings.embedded, *HUB_MODELS]))

    @property
    def default_model(self) -> str:
        return default_model(self.settings)

    def probe(self, path: str) -> VideoInfo:
        """Check a video file without decoding it; raises VideoError."""
        return probe(path, self.settings)

    def stop(self, run_id: str) -> bool:
        """End the run started with this id between two tokens; False when there is none."""
        event = self._stops.get(run_id)
        if event is not None:
            event.set()
        return event is not None

    # -- runs ----------------------------------------------------------------------------------------------------

    def stream(self, request: Request, run_id: str = "") -> Iterator[Event]:
        """Run a request and yield its events; the last one is `Done`.

        Raises InputError (before anything ran) for a bad request, an unusable video or a model that cannot be
        loaded. A method that fails yields `MethodFailed` and the others go on.
        """
        methods = self._methods(request)
        stop = threading.Event()
        if run_id:
            self._stops[run_id] = stop
        try:
            if not self._lock.acquire(blocking=False):
                yield Progress("queue", "Waiting for another run to finish")
                while not self._lock.acquire(timeout=0.1):
                    if stop.is_set():
                        yield Done((), ())
                        return
            try:
                yield from self._run(request, methods, stop)
            finally:
                self._lock.release()
        finally:
            if run_id:
                self._stops.pop(run_id, None)

    def attention(self, request: Request, penalty: float | None = None) -> AttentionMaps:
        """Last token's attention per layer and frame: raw, on a black video, and debiased (paper Figs. 2 and 4).

        Untimed. `penalty` is lambda of Eq. 5; ShaRP's default when None. Raises InputError like `stream`.
        """
        penalty = ShaRP().penalty if penalty is None else penalty
        self._check(request)
        with self._lock:
            loaded = self._load(request.model or self.default_model)
            shared = self._share(request, loaded)
            model = loaded.backbone.model
            layers = loaded.shape.layers
            black = black_video(loaded.backbone, shared)
            raw, bias = (
                attention_per_frame(probe_attention(model, shared.prompt, features), layers, shared.layout.frames)
                for features in (shared.features, black)
            )
            visual = shared.features.features[: shared.layout.tokens]
            frame = torch.arange(shared.layout.tokens, device=visual.device) // (
                shared.layout.rows * shared.layout.cols
            )
            segments = segment_frames(frame_means(visual, frame, shared.layout.frames), ShaRP().tau_seg)
            return AttentionMaps(
                layout=shared.layout,
                penalty=penalty,
                raw=raw.tolist(),
                bias=bias.tolist(),
                debiased=(raw - penalty * bias).tolist(),
                segments=[list(segment) for segment in segments],
            )

    # -- checks --------------------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        limits = self.settings
        clean_question(request.question, limits.max_question_chars)
        for what, value, high in (
            ("frames", request.frames, limits.max_frames),
            ("max_new_tokens", request.max_new_tokens, limits.max_new_tokens),
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
            built.append((label, make_method(spec.name, request.retention, options)))
        return built

    # -- stages --------------------------------------------------------------------------------------------------

    def _run(self, request: Request, methods: list[tuple[str, Method]], stop: threading.Event) -> Iterator[Event]:
        name = request.model or self.default_model
        if self._loaded is None or self._loaded.backbone.name != name:
            self.probe(request.video)  # nobody waits for a model to hear that the file is bad
            yield Progress("load", f"Loading {name}")
        loaded = self._load(name)
        yield Started(request, loaded.backbone.info, tuple(label for label, _ in methods))
        yield Progress("decode", "Reading the video")
        clip = self._decode(request, loaded)
        yield Decoded(clip.frames, clip.timestamps, vars(clip.info), clip.ms)
        yield Progress("vision", "Encoding the frames")
        cached = loaded.features.get(self._features_key(request, loaded)) is not None
        shared = self._share(request, loaded)
        yield Encoded(shared.layout, shared.layout.tokens, shared.vision_ms, cached)

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

    def _load(self, name: str) -> _Loaded:
        if self._loaded is None or self._loaded.backbone.name != name:
            self._loaded = None  # make room before the next one comes
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            backbone = load(name, self.settings)
            self._loaded = _Loaded(backbone, ModelShape.from_config(backbone.model.config.text_config))
            warm_up(backbone)
        return self._loaded

    def _frames(self, request: Request, loaded: _Loaded) -> int:
        return request.frames or min(loaded.backbone.default_frames, self.settings.max_frames)

    def _features_key(self, request: Request, loaded: _Loaded) -> Hashable:
        return (file_digest(request.video), self._frames(request, loaded))

    def _decode(self, request: Request, loaded: _Loaded) -> Clip:
        frames = self._frames(request, loaded)
        # Checked by the decoder's parent as well; a digest needs a readable file first.
        key = (file_digest(request.video), frames)
        clip = self._clips.get(key)
        if clip is None:
            clip = decode(request.video, frames, self.settings)
            self._clips.put(key, clip)
        return clip

    def _share(self, request: Request, loaded: _Loaded) -> _Shared:
        """Decode and encode once; both are cached by the file's content and the number of frames."""
        backbone, model = loaded.backbone, loaded.backbone.model
        clip = self._decode(request, loaded)
        grid = backbone.processor.video.grid(*clip.frames.shape[:3])
        prompt = backbone.processor.prompt(request.question, frames=len(clip.frames), grid=grid)
        key = self._features_key(request, loaded)
        entry = loaded.features.get(key)
        if entry is None:
            watch = Stopwatch(model.device)
            with watch("vision"):
                features = encode_video(model, backbone.processor.video.pixels(clip.frames))
            entry = (features, watch.ms()["vision"])
            loaded.features.put(key, entry)
        features, vision_ms = entry
        layout = layout_of(backbone, prompt).record(clip.timestamps)
        return _Shared(clip, features, prompt, layout, vision_ms)

    def _run_method(
        self, request: Request, loaded: _Loaded, shared: _Shared, label: str, method: Method, stop: threading.Event
    ) -> Iterator[Event]:
        try:
            method = self._matched(request, loaded, shared, method)
            method.check(loaded.shape.layers)
            yield MethodStarted(label, method.name, config_of(method))
            yield from self._answer(request, loaded, shared, label, method, stop)
        except (InputError, UnsupportedError) as error:
            yield MethodFailed(label, "refused", str(error))
        except torch.OutOfMemoryError:
            log.exception("%s ran out of memory", label)
            yield MethodFailed(label, "out_of_memory", self._memory_message(shared))
        except Exception:
            log.exception("%s failed", label)
            yield MethodFailed(label, "internal", f"{label} failed for a reason that is our fault; the log has it.")

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
        layers, n = loaded.shape.layers, shared.layout.tokens

        def per_layer(retention: float) -> list[int]:
            return replace(method, retention=retention).visual_per_layer(layers, n)

        return replace(method, retention=flops_matched_retention(loaded.shape, n, request.retention, per_layer))

    @torch.inference_mode()
    def _answer(
        self, request: Request, loaded: _Loaded, shared: _Shared, label: str, method: Method, stop: threading.Event
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
            while len(timed) < MAX_TIMED_PREFILLS and sum(one.ms for one in timed) < TIMING_BUDGET_MS:
                watch = Stopwatch(model.device)
                with watch("prefill"):
                    logits, cache, positions = prefill(model, inputs)
                    probabilities = logits.float().softmax(-1)
                    token = int(probabilities.argmax())
                timed.append(Timed(watch.ms()["prefill"], run.stages, run.bias_cold))
            (first_prob,) = finite(probabilities[token : token + 1])
            kv_bytes = cache_bytes(cache)
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
                    layout=shared.layout,
                    **kept_by_frame(run, shared.layout),
                    merged_into=merged_pairs(run),
                    scores={name: finite(values) for name, values in run.scores.items()},
                    segments=[list(segment) for segment in run.segments],
                    latency_ms=latencies(shared, timed, decode_ms, steps),
                    tflops=prefill_tflops(loaded.shape, method, run, length, timed[0].cold),
                    memory={"kv_bytes": kv_bytes, "peak_bytes": peak},
                    device=str(model.device),
                    dtype=str(model.dtype).removeprefix("torch."),
                    attention_backend=backbone.info.attention_backend,
                    seed=request.seed,
                    versions=versions(),
                    model=backbone.name,
                    notes=[backbone.info.note] if backbone.info.note else [],
                ),
            )


# -- pieces, each a function of its arguments --------------------------------------------------------------------


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


def prefill_tflops(shape: ModelShape, method: Method, run: Run, length: int, cold: bool) -> dict[str, float]:
    """TFLOPs of one prefill that `run` describes, in both conventions of `cost`; `cold`: it made the bias's cache."""
    assert run.layout is not None
    n, prefix = len(run.layout), int(run.layout.index[0])
    text = length - n
    options, achieved, extra = config_of(method), run.visual_per_layer, {}
    if method.active:
        extra = overhead_macs(method.name, shape, n, method.retention, text, prefix, options, achieved)
    if not cold:
        extra.pop("bias_setup", None)
    masked = [layer for layer in options.get("segm_layers", ()) if options["segm"] and layer < options["layer"]]
    bounds = token_bounds(run.layout.frame, run.segments) if masked and run.segments else []
    return {
        "paper": paper_tflops(shape, achieved),
        "exact": exact_tflops(
            shape,
            achieved,
            text,
            prefix_tokens=prefix,
            segments=[b - a for a, b in bounds],
            masked_layers=masked,
            prefix_visible=options.get("sys_visible", True),
            extra_macs=sum(extra.values()),
        ),
    }


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


def token_counts(run: Run, length: int) -> dict[str, float]:
    """Prompt and visual tokens, tokens kept after the last prune, and the mean share over the layers."""
    assert run.layout is not None
    visual, kept = len(run.layout), len(run.kept)
    return {
        "prompt": length,
        "visual": visual,
        "kept": kept,
        "retention": kept / visual,
        "layer_mean": sum(run.visual_per_layer) / len(run.visual_per_layer) / visual,
    }


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


def latencies(shared: _Shared, timed: list[Timed], decode_ms: float, steps: int) -> dict[str, Any]:
    """Milliseconds of one method, as if it had run alone.

    `prefill` is the LLM's, with everything the method adds to it but without `bias_setup`, which a warm cache
    saves; `first_token` and `total` contain it. Of several timed prefills the (lower) median one counts, stages
    and all; `prefill_runs` says how many there were. `decode_video` and `vision` were measured once for all methods.
    """
    median = sorted(timed, key=lambda one: one.warm_ms)[(len(timed) - 1) // 2]
    setup, prefill_ms = timed[0].stages.get("bias_setup", 0.0), median.warm_ms
    inner = {name: ms for name, ms in median.stages.items() if name != "bias_setup"}
    stages = {
        "decode_video": Stage(shared.clip.ms, shared=True),
        "vision": Stage(shared.vision_ms, shared=True),
        **({"bias_setup": Stage(setup, shared=False)} if setup else {}),
        **{name: Stage(ms, shared=False, part_of="prefill") for name, ms in inner.items()},
        "forward": Stage(prefill_ms - sum(inner.values()), shared=False, part_of="prefill"),
        "decode": Stage(decode_ms, shared=False),
    }
    first_token = shared.clip.ms + shared.vision_ms + setup + prefill_ms
    return {
        "decode_video": shared.clip.ms,
        "vision": shared.vision_ms,
        "bias_setup": setup,
        "prefill": prefill_ms,
        "prefill_runs": len(timed),
        "first_token": first_token,
        "decode": decode_ms,
        "decode_per_token": decode_ms / steps if steps else None,
        "total": first_token + decode_ms,
        "stages": stages,
    }


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
