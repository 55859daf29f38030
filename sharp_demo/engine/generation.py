"""Greedy answers of a model: a timed prefill, and decoding token by token.

Knows prompts and models and nothing of requests, events or the engine's caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sharp_demo.backbones.compat import with_cache
from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.features import encode_video, model_inputs
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.reserve import reserve
from sharp_demo.pruning.outcome import Run
from sharp_demo.stopwatch import Stopwatch
from sharp_demo.video import Clip

SETUP = "bias_setup"  # the stage that is paid once: a warm cache saves it


class Stop(Protocol):
    """What generation asks between two tokens: a thread's event, or one that a process shares with its parent."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class TimedPrefill:
    """One timed prefill: its milliseconds, its stages, and the device memory it took.

    `cpu_ms`: processor time, on a CPU. `peak_bytes`, `added_bytes`: as in `records.Memory`.
    """

    ms: float
    cpu_ms: float | None
    stages: dict[str, float]
    peak_bytes: int | None
    added_bytes: int | None

    @property
    def setup_ms(self) -> float:
        """What a warm cache would have saved."""
        return self.stages.get(SETUP, 0.0)

    @property
    def warm_ms(self) -> float:
        return self.ms - self.setup_ms


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A prompt's prefill, ready to decode.

    `token` is the most likely first one, of the given `probability`; `positions` are the last prompt token's.
    `kv_bytes` is what the cache holds, `kv_rows` its rows in each layer.
    """

    timed: TimedPrefill
    cache: DynamicCache
    positions: Tensor
    token: int
    probability: float
    kv_bytes: int
    kv_rows: tuple[int, ...]


@dataclass
class Answer:
    """A greedy answer, which `decode` fills in; `ms` and `steps` are of the decoding steps alone."""

    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    ms: float = 0.0
    steps: int = 0

    def decode(self, model: Any, tokenizer: Any, start: Prefilled, most: int, stop: Stop) -> Iterator[list[int]]:
        """Yield the ids so far after each token, until the answer ends, has `most` tokens, or `stop` is set."""
        token, positions, ends = start.token, start.positions, end_tokens(model, tokenizer)
        while token not in ends:
            self.ids.append(token)
            yield self.ids
            if len(self.ids) == most:
                break
            if stop.is_set():
                self.stopped = True
                break
            positions = positions + 1
            began = time.perf_counter()  # the time the receiver of a token takes does not count
            token = int(decode_step(model, token, start.cache, positions).argmax())
            self.ms += (time.perf_counter() - began) * 1e3
            self.steps += 1


def timed_prefill(model: Any, inputs: dict[str, Any], run: Run) -> Prefilled:
    """Prefill once, by the clock, with the method that fills in `run`."""
    device, peak, before = model.device, None, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    watch, clock = Stopwatch(device), processor_clock(device)
    began = clock() if clock else 0.0
    with watch("prefill"):
        logits, cache, positions = prefill(model, inputs)
        probabilities = logits.float().softmax(-1)
        token = int(probabilities.argmax())
    cpu_ms = (clock() - began) * 1e3 if clock else None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return Prefilled(
        timed=TimedPrefill(watch.ms()["prefill"], cpu_ms, run.stages, peak, None if peak is None else peak - before),
        cache=cache,
        positions=positions,
        token=token,
        probability=float(probabilities[token]),
        kv_bytes=cache_bytes(cache),
        kv_rows=tuple(layer.get_seq_length() for layer in cache.layers),
    )


def processor_clock(device: torch.device) -> Callable[[], float] | None:
    """Return the clock of processor time spent on the model, in seconds; None where it does not run on a CPU.

    With one torch thread that is the calling thread's, so that a web server next to it does not count.
    """
    if device.type != "cpu":
        return None
    return time.thread_time if torch.get_num_threads() == 1 else time.process_time


def prefill(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run one prompt; return the next token's logits [vocab], the cache, and the last token's position ids."""
    cache = DynamicCache(config=model.config.get_text_config())
    output = model(**inputs, **with_cache(cache), use_cache=True, logits_to_keep=1)
    positions = inputs.get("position_ids")
    if positions is None:
        last = torch.tensor([[inputs["input_ids"].shape[1] - 1]], device=model.device)
    else:
        last = positions[..., -1:]
    return suppress_placeholders(model, output.logits[0, -1]), cache, last


def decode_step(model: Any, token: int, cache: DynamicCache, positions: Tensor) -> Tensor:
    """Feed one token at the given position ids; return the next logits [vocab]."""
    reserve(cache)
    ids = torch.tensor([[token]], device=model.device)
    output = model(input_ids=ids, position_ids=positions, **with_cache(cache), use_cache=True)
    return suppress_placeholders(model, output.logits[0, -1])


def suppress_placeholders(model: Any, logits: Tensor) -> Tensor:
    """Return logits under which no answer contains visual placeholders; an untrained model would emit them."""
    logits = logits.clone()
    logits[family_of(model.config).placeholder_ids(model.config)] = -torch.inf
    return logits


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the token ids that end an answer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(end) for end in (*listed, tokenizer.eos_token_id) if end is not None}


def cache_bytes(cache: DynamicCache) -> int:
    """Return the bytes of all keys and values in a cache."""
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


@torch.inference_mode()
def answer(backbone: Backbone, clip: Clip | np.ndarray, question: str, max_new_tokens: int = 32) -> str:
    """Return the greedy answer to a question about a clip, or about uint8 RGB frames [T, H, W, 3].

    A method attached to the backbone prunes the prompt. At most `max_new_tokens` tokens are decoded. Raises
    `QuestionError` for an empty or too long question and `ModelError` for more visual tokens than the limit.
    """
    model, processor = backbone.model, backbone.processor
    frames = clip.frames if isinstance(clip, Clip) else clip
    inputs = {name: tensor.to(model.device) for name, tensor in processor(frames, question).items()}
    logits, cache, positions = prefill(model, inputs)
    token, ends, ids = int(logits.argmax()), end_tokens(model, processor.tokenizer), list[int]()
    while token not in ends and len(ids) < max_new_tokens:
        ids.append(token)
        if len(ids) < max_new_tokens:
            positions = positions + 1
            token = int(decode_step(model, token, cache, positions).argmax())
    return processor.decode(ids)


@torch.inference_mode()
def warm_up(backbone: Backbone) -> None:
    """Run one frame's worth of prompt through tower, prefill and decode, so that no method pays for first use."""
    processor, model = backbone.processor, backbone.model
    frames = np.zeros((2, 56, 56, 3), np.uint8)
    prompt = processor.prompt("warm-up", frames=2, grid=processor.video.grid(*frames.shape[:3]))
    features = encode_video(model, processor.video.pixels(frames))
    _, cache, positions = prefill(model, model_inputs(prompt, features))
    decode_step(model, 0, cache, positions + 1)
