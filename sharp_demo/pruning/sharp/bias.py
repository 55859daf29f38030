"""PosC's bias: the last token's scores on a black video, exact and cheap for every question (ShaRP Sec. 4.2).

The black video's rows precede the question and do not depend on it. Their keys and values up to the scoring layer
are computed once and cached; a new question runs only its own rows through those layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import ref

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sharp_demo.backbones.features import black_features
from sharp_demo.backbones.preprocessing import VideoPreprocessor
from sharp_demo.backbones.processor import Processor
from sharp_demo.pruning.attention import last_query_logits, project_keys, segment_masked
from sharp_demo.pruning.layers import AttentionOverride, LayerPass, run_layers
from sharp_demo.pruning.prefill import Prefill, PromptContext
from sharp_demo.recent import Recent


@dataclass(frozen=True, eq=False)
class BlackRows:
    """Prefix and black visual rows (m in all): keys and values of the layers before the scoring one, and its keys.

    Every tensor is [1, kv_heads, m, head_dim].
    """

    cached: tuple[tuple[Tensor, Tensor], ...]
    keys: Tensor


class BiasCache(Recent[BlackRows]):
    """The most recently used `BlackRows`; weights changed in place need a new cache."""

    def __init__(self, capacity: int = 4) -> None:
        super().__init__(capacity)


class _BlackPass(LayerPass):
    """The black video in the rows of the surviving tokens, `injections` [v, d] behind the first layers included.

    In `masked_layers` it is one segment that does not see the text before it.
    """

    def __init__(
        self, prefill: Prefill, hidden: Tensor, injections: Sequence[Tensor], masked_layers: tuple[int, ...]
    ) -> None:
        end = prefill.end
        super().__init__(hidden, (prefill.rotary[0][:1, :end], prefill.rotary[1][:1, :end]))
        self.span = prefill.span([(0, len(prefill.rows))], text_visible=False)
        self.rows, self.injections, self.masked_layers = prefill.rows, injections, masked_layers

    def attention(self, layer: int) -> AttentionOverride | None:
        return partial(segment_masked, span=self.span) if layer in self.masked_layers else None

    def after_layer(self, layer: int) -> None:
        if layer < len(self.injections):
            self.add(self.rows, self.injections[layer])


def bias_key(prefill: Prefill, layer: int, hidden_prefix_layers: tuple[int, ...]) -> Hashable:
    """Everything the black rows depend on; the model counts as what it was when it was first seen."""
    layout, context = prefill.layout, prefill.context
    end = int(layout.index[-1]) + 1
    source = (ref(context.model), preprocessing(context))
    positions = None if context.positions is None else context.positions[..., :end].numpy().tobytes()
    slots = None if len(prefill.slots) == len(layout) else tuple(prefill.slots.tolist())
    grid = (layout.frames, layout.rows, layout.cols)
    backend = prefill.config._attn_implementation
    where = (tuple(prefill.renumbered), prefill.embeddings.dtype, str(prefill.embeddings.device), backend)
    return (*source, layer, hidden_prefix_layers, grid, slots, positions, context.prompt_ids[:end], *where)


def preprocessing(context: PromptContext) -> VideoPreprocessor:
    """The video preprocessing of the processor, ours or transformers'."""
    processor = context.processor
    return processor.video if isinstance(processor, Processor) else context.family.preprocessor.from_official(processor)


@torch.no_grad()  # constants: a caller's autograd graph must not live on in the cache
def black_rows(prefill: Prefill, layer: int, hidden_prefix_layers: tuple[int, ...]) -> BlackRows:
    """Run all text up to the end of the video, and a black video, through the layers before `layer`.

    `hidden_prefix_layers`: layers in which visual tokens do not see the prefix (SegM with `sys_visible=False`).
    The black video is one segment, so SegM changes nothing else about it.
    """
    black = black_features(prefill.context.model, preprocessing(prefill.context), prefill.layout)
    hidden = prefill.embeddings[:1, prefill.order[: prefill.end]]  # a copy
    hidden[0, prefill.rows] = black.features.to(hidden)[prefill.slots]
    rows = _BlackPass(prefill, hidden, [added[prefill.slots] for added in black.injections], hidden_prefix_layers)
    cache = DynamicCache(config=prefill.config)
    run_layers(prefill.layers[:layer], rows, cache, prefill.config)
    block = prefill.layers[layer]
    keys = project_keys(block.self_attn, block.input_layernorm(rows.hidden), rows.rotary)
    return BlackRows(tuple((cache.layers[i].keys, cache.layers[i].values) for i in range(layer)), keys)


def black_logits(prefill: Prefill, layer: int, black: BlackRows) -> Tensor:
    """Last token's logits [heads, n] in `layer` on the black video, by running only the rows after the video.

    Equal to a whole run on the black video with this very prompt.
    """
    end = prefill.end
    rotary = (prefill.rotary[0][:1, end:], prefill.rotary[1][:1, end:])
    rows = LayerPass(prefill.embeddings[:1, prefill.order[end:]], rotary)
    cache = DynamicCache(config=prefill.config)
    for i, (keys, values) in enumerate(black.cached):
        cache.update(keys, values, i)
    run_layers(prefill.layers[:layer], rows, cache, prefill.config)
    block = prefill.layers[layer]
    question_keys = project_keys(block.self_attn, block.input_layernorm(rows.hidden), rotary)
    x_last = block.input_layernorm(rows.hidden[:, -1:])
    last = (rotary[0][:, -1:], rotary[1][:, -1:])
    return last_query_logits(block.self_attn, x_last, last, torch.cat((black.keys, question_keys), 2))[0]


def black_bias(prefill: Prefill, layer: int, hidden_prefix_layers: tuple[int, ...] = ()) -> Tensor:
    """The bias logits [heads, n] of this prompt, through the cache; stages `bias_setup` (cold only) and `bias`."""
    if prefill.context.bias_cache is None:
        prefill.context.bias_cache = BiasCache()
    cache: BiasCache = prefill.context.bias_cache
    key = bias_key(prefill, layer, hidden_prefix_layers)
    black = cache.get(key)
    if black is None:
        prefill.run.bias_cold = True
        with prefill.stage("bias_setup"):
            black = black_rows(prefill, layer, hidden_prefix_layers)
        cache.put(key, black)
    with prefill.stage("bias"):
        return black_logits(prefill, layer, black)
