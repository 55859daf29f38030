"""FLOPs and KV-cache bytes of a prefill: pure arithmetic over the visual tokens that enter each layer.

Two conventions stand side by side. **Paper** TFLOPs are the ones the pruning papers print: visual tokens only, one
multiply-add counted once, attention square and not causal, key/value heads as wide as query heads, an MLP of two
matrices. **Exact** TFLOPs are what the decoder really executes: text tokens too, causal attention, grouped key/value
heads, the three matrices of SwiGLU, one row of logits; one multiply-add counted as two operations, as on a GPU's data
sheet. Neither contains the vision tower, norms, softmax, or token-similarity work, which are shown as time instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sharp_demo.backbones.published import PUBLISHED
from sharp_demo.errors import MethodError
from sharp_demo.pruning.schedule import Schedule, budget, method_schedule, mlp_per_layer, visual_per_layer

TERA = 1e12
FASTV_LAYER = 2  # the cost every FLOPs-matched comparison refers to: FastV with two full layers


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a Qwen2-style decoder that decide its cost."""

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


SHAPES = {name: ModelShape.from_config(model.text) for name, model in PUBLISHED.items()}


@dataclass(frozen=True)
class PaperRow:
    """One row of the ShaRP paper's tables (arXiv 2512.05385v1): what it kept and the TFLOPs it prints."""

    table: int
    config: str
    tokens: int
    method: str
    retention: float
    printed: str


def _table(number: int, config: str, tokens: int, *rows: tuple[str, float, str]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(number, config, tokens, method, retention, printed) for method, retention, printed in rows)


# Table 1 prints retentions, Table 2 token counts of 2880 (those are exact). FrameFusion is not here.
PAPER_ROWS = (
    *_table(
        1, "llava-onevision-7b", 6272, ("vanilla", 1.0, "40.8"),
        ("fastv", 0.25, "11"), ("pdrop", 0.285, "11"), ("feather", 0.25, "11"), ("sharp", 0.282, "11"),
        ("fastv", 0.20, "9.31"), ("pdrop", 0.196, "9.31"), ("feather", 0.20, "9.31"), ("sharp", 0.235, "9.31"),
        ("fastv", 0.15, "7.66"), ("pdrop", 0.115, "7.66"), ("feather", 0.15, "7.66"), ("sharp", 0.188, "7.66"),
        ("fastv", 0.10, "6.03"), ("pdrop", 0.015, "6.03"), ("feather", 0.10, "6.03"), ("sharp", 0.140, "6.03"),
    ),
    *_table(
        2, "qwen2-vl-7b", 2880, ("vanilla", 1.0, "16.7"),
        ("fastv", 576 / 2880, "4.1"), ("pdrop", 662 / 2880, "4.1"), ("feather", 576 / 2880, "4.1"),
        ("sharp", 679 / 2880, "4.1"),
        ("fastv", 288 / 2880, "2.6"), ("pdrop", 78 / 2880, "2.6"), ("feather", 288 / 2880, "2.6"),
        ("sharp", 400 / 2880, "2.6"),
    ),
)  # fmt: skip


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


def overhead_macs(
    method: str,
    shape: ModelShape,
    n: int,
    retention: float,
    text_tokens: int = 40,
    prefix_tokens: int = 0,
    options: Mapping[str, Any] | None = None,
    achieved: Sequence[int] | None = None,
) -> dict[str, int]:
    """Return the multiply-adds a method adds to the forward, by stage: `scores`, `bias`, `bias_setup`.

    `bias_setup` is paid once and cached, the others in every prefill. Selections that read no attention cost nothing.
    `achieved` are the visual tokens that entered each layer, where a run has shown them; else the schedule's.
    """
    if method not in _OVERHEADS:
        return {}
    options = options or {}
    stages = method_schedule(method, retention, n, shape.layers, options)
    before = [n, *(kept for _, kept in stages)]
    if achieved is not None:
        before = [achieved[layer - 1] if layer else n for layer, _ in stages]
    work = _Work(shape, text_tokens, prefix_tokens, options, stages, before)
    return _OVERHEADS[method](work)


@dataclass(frozen=True)
class _Work:
    """What an overhead is counted from; `before` are the visual tokens that each of `stages` chooses among."""

    shape: ModelShape
    text: int
    prefix: int
    options: Mapping[str, Any]
    stages: Schedule
    before: Sequence[int]


def _row_per_stage(work: _Work) -> dict[str, int]:
    return {
        "scores": sum(score_macs(work.shape, v + work.text) for v, _ in zip(work.before, work.stages, strict=False))
    }


def _projected_row_per_stage(work: _Work) -> dict[str, int]:
    pairs = zip(work.before, work.stages, strict=False)
    return {"scores": sum(score_macs(work.shape, v, project_keys=True) for v, _ in pairs)}


def _next_layers_row_per_stage(work: _Work) -> dict[str, int]:
    pairs = zip(work.before, work.stages, strict=False)
    return {"scores": sum(score_macs(work.shape, v + work.text, project_keys=True) for v, _ in pairs)}


def _sharp_overhead(work: _Work, score_layer: str = "lookahead") -> dict[str, int]:
    """Of the last stage, on the tokens that reach it; `score_layer` is the method's default."""
    look_ahead = work.options.get("score_layer", score_layer) == "lookahead"
    (layer, _), visual = work.stages[-1], work.before[len(work.stages) - 1]
    macs = {"scores": score_macs(work.shape, visual + work.text, project_keys=look_ahead)}
    if work.options.get("posc", True) and work.options.get("penalty", 1) > 0:
        full_layers = layer - (0 if look_ahead else 1)
        macs["bias"] = bias_macs(work.shape, visual, work.text, work.prefix, full_layers=full_layers)
        macs["bias_setup"] = bias_setup_macs(work.shape, visual, work.prefix, full_layers=full_layers)
    return macs


def _inner_row(work: _Work) -> dict[str, int]:
    inner = [v for v, (layer, _) in zip(work.before, work.stages, strict=False) if layer]
    return {"scores": sum(score_macs(work.shape, v + work.text) for v in inner)}


_OVERHEADS: Mapping[str, Callable[[_Work], dict[str, int]]] = {
    "fastv": _row_per_stage,
    "feather": _projected_row_per_stage,
    "framefusion": _row_per_stage,
    "pdrop": _next_layers_row_per_stage,
    "sharp": _sharp_overhead,
    "holitom": _inner_row,
    "visionzip+sharp": _sharp_overhead,
    "holitom+sharp": partial(_sharp_overhead, score_layer="first"),
}


def kv_bytes(shape: ModelShape, tokens_per_layer: Sequence[int], bytes_per_value: int = 2) -> int:
    """Return the bytes of keys and values cached for `tokens_per_layer` tokens (text included) in each layer."""
    return 2 * shape.key_width * bytes_per_value * sum(tokens_per_layer)


def flops_matched_retention(
    shape: ModelShape, n: int, retention: float, per_layer: Callable[[float], Sequence[int]], method: str = ""
) -> float:
    """Return the retention m / n at which a method costs what FastV (K=2) costs at `retention`, in paper TFLOPs.

    Parameters
    ----------
    n : visual tokens before pruning. per_layer : retention -> visual tokens that enter each layer; it must not
    decrease with retention. method : its name, which tells where in a layer it drops (`schedule.INSIDE`). Of the two
    token counts around the target the nearer in cost is taken.

    Raises
    ------
    MethodError : the method costs more than that even when it keeps a single token.
    """
    target = paper_tflops(
        shape, visual_per_layer(shape.layers, n, [(min(FASTV_LAYER, shape.layers), budget(retention, n))])
    )

    def cost(kept: int) -> float:
        counts = per_layer(kept / n)
        return paper_tflops(shape, counts, mlp_per_layer(counts, method))

    low, high = 1, n
    if cost(low) > target * (1 + 1e-9):
        raise MethodError(
            f"this method cannot cost as little as FastV at retention {retention:g} ({target:.3g} paper TFLOPs): "
            f"with one token kept it still costs {cost(low):.3g}; ask for a higher retention or match=tokens"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return min((low, high), key=lambda kept: abs(cost(kept) - target)) / n


def paper_flops_matched(row: PaperRow) -> float | None:
    """Return the retention that costs what FastV costs in the paper's row of the same TFLOPs; None for vanilla's."""
    fastv = [other for other in PAPER_ROWS if (other.table, other.printed) == (row.table, row.printed)]
    retention = next((other.retention for other in fastv if other.method == "fastv"), None)
    if retention is None:
        return None
    shape, n = SHAPES[row.config], row.tokens

    def per_layer(share: float) -> list[int]:
        return visual_per_layer(shape.layers, n, method_schedule(row.method, share, n, shape.layers))

    return flops_matched_retention(shape, n, retention, per_layer, row.method)
