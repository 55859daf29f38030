"""FLOPs and KV-cache bytes of a prefill: pure arithmetic over the visual tokens that enter each layer.

Two conventions stand side by side. **Paper** TFLOPs are the ones the pruning papers print: visual tokens only, one
multiply-add counted once, attention square and not causal, key/value heads as wide as query heads, an MLP of two
matrices. **Exact** TFLOPs are what the decoder really executes: text tokens too, causal attention, grouped key/value
heads, the three matrices of SwiGLU, one row of logits; one multiply-add counted as two operations, as on a GPU's data
sheet. Neither contains norms or softmax, nor the vision tower, which is counted apart (`tower_tflops`). Scoring adds
what a class states (`overhead`): rows of attention, and the matrix products of a selection by similarity. What is
compared token by token, or for merging alone, is shown as time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharp_demo.backbones.families import published
from sharp_demo.backbones.view import TowerMerging, TowerShape

TERA = 1e12


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a decoder with gated MLPs that decide its cost."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def from_config(cls, text_config: Any) -> ModelShape:
        """Read the shape off a text config: a transformers object, or its dict as in config.json."""
        text = text_config if isinstance(text_config, Mapping) else text_config.to_dict()
        heads = text["num_attention_heads"]
        return cls(
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=heads,
            kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            vocab=text["vocab_size"],
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim


def shape_named(name: str) -> ModelShape:
    """Return the shape of a published configuration; `ModelError` lists the names."""
    return ModelShape.from_config(published(name).text)


def paper_tflops(
    shape: ModelShape, visual_per_layer: Sequence[int], mlp_per_layer: Sequence[int] | None = None
) -> float:
    """Return the papers' TFLOPs: sum over layers of 4nd^2 + 2n^2 d + 2ndm, n = visual tokens in that layer.

    `mlp_per_layer` are the tokens of the last term where a method drops between attention and MLP.
    Source: the convention of FastV, PyramidDrop, Feather, HoliTom and ShaRP (arXiv 2512.05385, Tables 1, 2).
    """
    d, m = shape.hidden, shape.intermediate
    attention = sum(4 * n * d**2 + 2 * n**2 * d for n in visual_per_layer)
    return (attention + sum(2 * n * d * m for n in mlp_per_layer or visual_per_layer)) / TERA


def tower_tflops(tower: TowerShape, frames: int, merging: TowerMerging | None = None) -> tuple[float, float]:
    """Return the vision tower's TFLOPs for `frames` layout frames: as the papers count; exact, with projector."""
    return frames * tower.paper_macs(merging) / TERA, 2 * frames * tower.macs(merging) / TERA


def _causal_pairs(n: int) -> int:
    return n * (n + 1) // 2


def _layer_macs(shape: ModelShape, rows: int, pairs: int, mlp_rows: int | None = None) -> int:
    """Multiply-adds of one decoder layer: `rows` tokens computed, `pairs` (query, key) pairs attended.

    `mlp_rows` of the tokens reach the MLP; None: all.
    """
    projections = rows * (2 * shape.query_width + 2 * shape.key_width)
    mlp = (rows if mlp_rows is None else mlp_rows) * 3 * shape.intermediate
    return shape.hidden * (projections + mlp) + 2 * pairs * shape.query_width


def segment_masked_pairs(segments: Sequence[int], prefix: int, suffix: int, *, prefix_visible: bool = True) -> int:
    """Return the (query, key) pairs of a causal layer whose visual tokens see only the prefix and their own segment.

    Parameters
    ----------
    segments : visual tokens per segment. prefix, suffix : text tokens before and after the video. The text after
    the video sees everything. prefix_visible : may visual tokens look at the text before the video?
    """
    visual = sum(segments)
    inside = sum(_causal_pairs(s) + s * prefix * prefix_visible for s in segments)
    return _causal_pairs(prefix) + inside + suffix * (prefix + visual) + _causal_pairs(suffix)


def exact_tflops(
    shape: ModelShape,
    visual_per_layer: Sequence[int],
    text_tokens: int = 40,
    *,
    mlp_per_layer: Sequence[int] | None = None,
    prefix_tokens: int = 0,
    segments: Sequence[int] = (),
    masked_layers: Sequence[int] = (0,),
    prefix_visible: bool = True,
    extra_macs: int = 0,
) -> float:
    """Return the TFLOPs the decoder executes in a prefill (2 x multiply-adds), with one row of logits.

    Parameters
    ----------
    visual_per_layer : visual tokens that enter each layer.
    mlp_per_layer : those that enter its MLP, where a method drops between attention and MLP.
    text_tokens, prefix_tokens : all text tokens of the prompt, and how many of them stand before the video.
    segments : visual tokens per segment where the `masked_layers` are segment-masked; empty for plain causal
    attention. prefix_visible : as in `segment_masked_pairs`.
    extra_macs : what a method adds: `score_macs`, `bias_macs`, `bias_setup_macs`.
    """
    macs = shape.hidden * shape.vocab + extra_macs
    for layer, (visual, inner) in enumerate(zip(visual_per_layer, mlp_per_layer or visual_per_layer, strict=True)):
        rows = visual + text_tokens
        pairs = _causal_pairs(rows)
        if segments and layer in masked_layers:
            suffix = text_tokens - prefix_tokens
            pairs = segment_masked_pairs(segments, prefix_tokens, suffix, prefix_visible=prefix_visible)
        macs += _layer_macs(shape, rows, pairs, inner + text_tokens)
    return 2 * macs / TERA


def score_macs(shape: ModelShape, keys: int, *, project_keys: bool = False) -> int:
    """Return the multiply-adds of scoring `keys` tokens with the last query.

    `project_keys`: the keys are not in the cache yet (look-ahead scoring) or not in this form (scores without RoPE),
    so they are projected for the score alone.
    """
    projected = keys * shape.hidden * shape.key_width if project_keys else 0
    return shape.hidden * shape.query_width + keys * shape.query_width + projected


def bias_setup_macs(shape: ModelShape, visual: int, prefix_tokens: int = 0, *, full_layers: int = 1) -> int:
    """Return the multiply-adds of caching the black video's keys: `full_layers` layers, then one key projection.

    ShaRP pays this once per (model, layout, prompt prefix). `full_layers` is 1 for look-ahead scores, 0 for scores
    of the first layer.
    """
    rows = visual + prefix_tokens
    return full_layers * _layer_macs(shape, rows, _causal_pairs(rows)) + rows * shape.hidden * shape.key_width


def bias_macs(
    shape: ModelShape, visual: int, text_tokens: int = 40, prefix_tokens: int = 0, *, full_layers: int = 1
) -> int:
    """Return the multiply-adds of one question's bias with the black video cached: its rows after the video only."""
    suffix, before = text_tokens - prefix_tokens, prefix_tokens + visual
    rows = full_layers * _layer_macs(shape, suffix, suffix * before + _causal_pairs(suffix))
    keys = suffix * shape.hidden * shape.key_width
    return rows + keys + score_macs(shape, before + suffix)


@dataclass(frozen=True)
class Prunes:
    """What the cost of scoring is counted from: a method's stages in one prompt.

    Attributes
    ----------
    shape : the decoder. text, prefix : all text tokens of the prompt, and those before the video.
    stages : (layer, kept) of each stage. before : visual tokens that each stage chooses among.
    frames : layout frames of the video.
    """

    shape: ModelShape
    text: int
    prefix: int
    stages: Sequence[tuple[int, int]]
    before: Sequence[int]
    frames: int = 1

    def rows(self, *, project_keys: bool = False, with_text: bool = True, inside: bool = False) -> int:
        """Return the multiply-adds of one row of scores for each stage; `inside`: only of those after layer 0.

        `project_keys` as in `score_macs`; without `with_text` the visual keys alone are scored.
        """
        text = self.text if with_text else 0
        scored = [v for v, (layer, _) in zip(self.before, self.stages, strict=False) if layer or not inside]
        return sum(score_macs(self.shape, v + text, project_keys=project_keys) for v in scored)


def kv_bytes(shape: ModelShape, tokens_per_layer: Sequence[int], bytes_per_value: int = 2) -> int:
    """Return the bytes of keys and values cached for `tokens_per_layer` tokens (text included) in each layer."""
    return 2 * shape.key_width * bytes_per_value * sum(tokens_per_layer)
