"""One clip, many questions, many methods: each computes only what the others have not.

Rows before the question do not depend on it, and until its first prune a method computes what others compute. So
selections that never look at the question run the video once per clip, and a draft of the answer along with each
question; for the others each layer before the prune runs once per question and attention override. Answers are those of
the plain path; tests compare both.

That takes 3.4 times less processor time than the engine's prefill and decode step on shared features (40 questions of
the first embedded model, one thread, what `evaluate` asks by default, the same 5,320 verdicts); without drafts of the
answers it takes 2.2 times as long (7 questions). `pytest -m full tests/lab/accuracy/test_asking.py` measures the first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lab.world.records import Question
from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.features import VideoFeatures, black_video, encode_video
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.signals import signals_refusal
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.engine.generation import end_tokens, suppress_placeholders
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.attention import Rotary
from sharp_demo.pruning.layers import AttentionOverride, CacheNote, LayerPass, RenumberedPass, run_layers
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.prefill import Prefill, PromptContext
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.vanilla import Vanilla

SLACK_TOKENS = 4  # a reply may be spelled with a few more tokens than the tokenizer spells the answer with

Cached = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each layer


@dataclass
class _State:
    """All rows behind some layer, with its keys and values; what followed, by the next layer's override."""

    hidden: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None
    after: dict[Hashable, _State] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a selection that never looks at the question made of the video's rows."""

    cached: Cached
    renumbered: tuple[tuple[int, int], ...]
    run: Run


class Film:
    """A video with its features, ready to be asked about.

    Parameters
    ----------
    frames : uint8 [T, H, W, 3]. bias_cache : black-video biases of this model, shared by all its films.
    """

    def __init__(self, backbone: Backbone, frames: np.ndarray, bias_cache: BiasCache) -> None:
        video = backbone.processor.video
        self.backbone, self.bias_cache = backbone, bias_cache
        self.frames, self.grid = len(frames), video.grid(*frames.shape[:3])
        signals = signals_refusal(backbone.model) is None
        self.features: VideoFeatures = encode_video(backbone.model, video.pixels(frames), signals=signals)
        self.pictures, self._merged = frames, dict[TowerMerging, Film]()
        self.start: _State | None = None  # the rows that precede the question
        self.seen: dict[Method, _Seen] = {}

    def prompt(self, question: str) -> dict[str, Tensor]:
        """The prompt of a question about this film."""
        return self.backbone.processor.prompt(question, frames=self.frames, grid=self.grid)

    def merged(self, merging: TowerMerging) -> Film:
        """The same film as the vision tower sees it with patches merging inside."""
        if merging not in self._merged:
            other = copy(self)
            pixels = self.backbone.processor.video.pixels(self.pictures)
            other.features = encode_video(self.backbone.model, pixels, merging=merging)
            other.start, other.seen = None, {}
            self._merged[merging] = other
        return self._merged[merging]

    def black(self, layout: VisualLayout) -> Film:
        """A black film of the same layout; text with the video's placeholders is kept."""
        other = copy(self)
        other.features = black_video(self.backbone.model, self.backbone.processor.video, layout, self.features)
        other.start, other.seen = None, {}
        return other


class _Overridden(LayerPass):
    """Rows on their way through one layer, with the override a method asked for."""

    def __init__(self, hidden: Tensor, rotary: Rotary, override: AttentionOverride | None) -> None:
        super().__init__(hidden, rotary)
        self.override = override

    def attention(self, layer: int) -> AttentionOverride | None:
        return self.override


class Asked:
    """A film and a question, to be run with one method after another."""

    def __init__(self, film: Film, question: str) -> None:
        backbone, prompt = film.backbone, film.prompt(question)
        self.film, self.model = film, backbone.model
        self.tokenizer, self.decode = backbone.processor.tokenizer, backbone.processor.decode
        family = family_of(self.model.config)
        if film.features.injections:
            raise UnsupportedError(f"shared asking adds nothing behind layers, which {family.title} needs")
        self.lm = family.text_model(self.model)
        self.layout = visual_layout(self.model.config, prompt["input_ids"], prompt.get("video_grid_thw"))
        ids = prompt["input_ids"].to(self.model.device)
        hidden = self.lm.embed_tokens(ids)
        hidden[ids == family.visual_token_id(self.model.config)] = film.features.features.to(hidden)
        positions = prompt.get("position_ids")
        rows = torch.arange(ids.shape[1])[None] if positions is None else positions
        self.positions = family.rotary_positions(rows).to(hidden.device)
        self.rotary: Rotary = self.lm.rotary_emb(hidden, self.positions)
        prefix = tuple(prompt["input_ids"][0].tolist())
        signals = film.features.signals
        self.context = PromptContext(self.model, backbone.processor, film.bias_cache, prefix, positions, signals)
        self.context.merging = film.features.merging
        self.ends = end_tokens(self.model, self.tokenizer)
        self._start = _State(hidden)
        self._drafted: dict[tuple[int, ...], Asked] = {}

    @torch.inference_mode()
    def prefill(self, method: Method) -> tuple[Tensor, DynamicCache, Run]:
        """Run the prompt with a method; the next token's logits [vocab], the cache, and what was kept."""
        method = self._checked(method)
        hidden, cache, run = self._blind(method) if _is_blind(method) else self._rows(method, self._start, None)
        return self._logits(hidden[:, -1:])[0], cache, run

    def is_right(self, method: Method, question: Question) -> tuple[bool, Run]:
        """Whether the method's greedy reply is the question's answer, by `Question.correct`, and what it kept.

        The answer is offered as a draft: as long as the greedy choice agrees with it, it is the greedy reply.
        """
        draft = self.tokenizer(question.answer, add_special_tokens=False).input_ids
        chosen, run = self._choices(method, draft)
        agreed = next((i for i, token in enumerate(draft) if chosen[i] != token), len(draft))
        if chosen[agreed] in self.ends:
            return question.correct(self.decode(draft[:agreed])), run
        so_far = self.decode([*draft[:agreed], chosen[agreed]])
        if not _plain(question.answer).startswith(_plain(so_far)):
            return False, run
        return question.correct(self.reply(method, len(draft) + SLACK_TOKENS)), run

    def reply(self, method: Method, max_new_tokens: int) -> str:
        """The greedy reply, token by token."""
        logits, cache, _ = self.prefill(method)
        ids: list[int] = []
        token = int(logits.argmax())
        while token not in self.ends and len(ids) < max_new_tokens:
            ids.append(token)
            token = int(self._feed([token], cache, step=len(ids) - 1)[-1].argmax())
        return self.decode(ids)

    # -- pieces --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _choices(self, method: Method, draft: Sequence[int]) -> tuple[list[int], Run]:
        """The greedy choice behind the prompt and behind each token of a draft, and what was kept.

        Only the first choice where that is not the draft's first token already.
        """
        method = self._checked(method)
        if _is_blind(method):  # it selects the same whatever follows the video, so the draft can come with the question
            hidden, _, run = self._followed_by(draft)._blind(method)
            return self._logits(hidden[:, -1 - len(draft) :]).argmax(-1).tolist(), run
        logits, cache, run = self.prefill(method)
        chosen = [int(logits.argmax())]
        if chosen[0] == draft[0]:
            chosen += self._feed(draft, cache, step=0).argmax(-1).tolist()
        return chosen, run

    def _checked(self, method: Method) -> Method:
        method = method.fitted(len(self.lm.layers))
        method.check(len(self.lm.layers))
        return method if method.active else Vanilla()

    def _followed_by(self, draft: Sequence[int]) -> Asked:
        """The same prompt with a draft of the answer behind it."""
        key = tuple(draft)
        if key not in self._drafted:
            other = copy(self)
            other._drafted = {}  # not this one's, which would hold itself
            hidden, offsets = self._embed(draft, step=0)
            other._start = _State(torch.cat((self._start.hidden, hidden), 1))
            other.positions = torch.cat((self.positions, self.positions[..., -1:] + offsets), -1)
            other.rotary = self.lm.rotary_emb(hidden, other.positions)
            self._drafted[key] = other
        return self._drafted[key]

    def _blind(self, method: Method) -> tuple[Tensor, DynamicCache, Run]:
        """The rows after the video, on what a selection that never looks at them kept of the video."""
        end, layers = int(self.layout.index[-1]) + 1, self.lm.layers
        if method not in self.film.seen:
            if self.film.start is None:
                self.film.start = _State(self._start.hidden[:, :end])
            _, cache, run = self._rows(method, self.film.start, end)
            kept = tuple((layer.keys, layer.values) for layer in cache.layers)
            self.film.seen[method] = _Seen(kept, CacheNote.of(cache).renumbered, run)
        seen = self.film.seen[method]
        cache, state = DynamicCache(config=self.lm.config), self._start
        CacheNote(seen.renumbered).put(cache)
        # The first layers on everything are shared with the other methods, unless those are all there are.
        first = self._shared_layers(method) % len(layers)
        for layer in range(first):
            state = self._step(state, layer, None, slice(None))
            cache.update(state.keys, state.values, layer)
        for layer in range(first, len(layers)):
            cache.update(*seen.cached[layer], layer)
        question = RenumberedPass(self.lm, state.hidden[:, end:], self.positions[..., end:], seen.renumbered)
        run_layers(layers[first:], question, cache, self.lm.config, first=first)
        return question.hidden, cache, seen.run

    def _rows(self, method: Method, state: _State, end: int | None) -> tuple[Tensor, DynamicCache, Run]:
        """The prompt's rows up to `end`, whose embeddings are `state`, with a method."""
        part = slice(end)
        run, cache = self._begin(method)
        rows = Prefill(self.lm, state.hidden, _cut(self.rotary, part), cache, run, self.context)
        shared = self._shared_layers(method)
        for layer in range(shared):
            rows.before_layer(layer)
            if len(rows.rows) < len(self.layout):
                raise UnsupportedError(f"{method.name} dropped tokens before the first stage of its schedule")
            state = self._step(state, layer, rows.attention(layer), part)
            cache.update(state.keys, state.values, layer)
            rows.hidden = state.hidden
        run_layers(self.lm.layers[shared:], rows, cache, self.lm.config, first=shared)
        rows.finish()
        CacheNote(tuple(rows.renumbered)).put(cache)
        return rows.hidden, cache, run

    def _begin(self, method: Method) -> tuple[Run, DynamicCache]:
        run = Run(method, self.model.device)
        run.begin(self.layout, len(self.lm.layers))
        return run, DynamicCache(config=self.lm.config)

    def _shared_layers(self, method: Method) -> int:
        """Layers that run on every visual token, so that their states can be shared."""
        if _overrides(method, "after_attention"):
            return 0  # it may drop inside a layer
        layers = len(self.lm.layers)
        return min((layer for layer, _ in method.schedule(layers, len(self.layout))), default=layers)

    def _step(self, state: _State, layer: int, override: AttentionOverride | None, part: slice) -> _State:
        key = _key(override)
        if key not in state.after:
            cache = DynamicCache(config=self.lm.config)
            rows = _Overridden(state.hidden, _cut(self.rotary, part), override)
            run_layers([self.lm.layers[layer]], rows, cache, self.lm.config, first=layer)
            state.after[key] = _State(rows.hidden, cache.layers[layer].keys, cache.layers[layer].values)
        return state.after[key]

    @torch.inference_mode()
    def _feed(self, tokens: Sequence[int], cache: DynamicCache, step: int) -> Tensor:
        """Append tokens that stand `step` behind the prompt's end; the logits after each, [m, vocab]."""
        hidden, offsets = self._embed(tokens, step)
        rows = RenumberedPass(self.lm, hidden, self.positions[..., -1:] + offsets, CacheNote.of(cache).renumbered)
        run_layers(self.lm.layers, rows, cache, self.lm.config)
        return self._logits(rows.hidden)

    def _embed(self, tokens: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Embeddings [1, m, d] of tokens that stand `step` behind the prompt's end, and how far behind its last row."""
        ids = torch.tensor([list(tokens)], device=self.model.device)
        return self.lm.embed_tokens(ids), torch.arange(1 + step, 1 + step + len(tokens), device=self.model.device)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [m, vocab] of the last layer's rows [1, m, d]."""
        logits: Any = self.model.lm_head(self.lm.norm(hidden))[0]
        return suppress_placeholders(self.model, logits.T).T


def _overrides(method: Method, hook: str) -> bool:
    """Whether any part of a method has a hook of its own."""
    return any(getattr(type(part), hook) is not getattr(Method, hook) for part in method.parts)


def _is_blind(method: Method) -> bool:
    """Whether the video's rows can be run without the question; what trims the cache must see all rows first."""
    return not any(part.question_aware for part in method.parts) and not _overrides(method, "after_prefill")


def _key(override: AttentionOverride | None) -> Hashable:
    """What an override computes; two that cannot be told to be the same are different."""
    if isinstance(override, partial) and not override.args:
        return (override.func, tuple(sorted(override.keywords.items())))
    return override


def _cut(rotary: Rotary, part: slice) -> Rotary:
    return rotary[0][:, part], rotary[1][:, part]


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
