"""ShaRP: prune after the first decoder layer (Xia et al., arXiv 2512.05385)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from sharp_demo.cost import Prunes, bias_macs, bias_setup_macs, score_macs
from sharp_demo.errors import MethodError
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.method import Method, knob, top_k
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sharp_demo.pruning.layers import AttentionOverride
    from sharp_demo.pruning.prefill import Prefill
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class ShaRPOptions(Method):
    """What ShaRP and its combinations with other methods share: the options, and what the scores cost."""

    paper = "https://arxiv.org/abs/2512.05385"
    year = 2025
    question_aware = True

    segm: bool = knob(True, "SegM: segment-aware causal mask in the layers of segm_layers")
    posc: bool = knob(True, "PosC: subtract the black-video bias from the scores", costs=True)
    regd: bool = knob(True, "RegD: pre-filter, deduplicate and refill the registers")
    penalty: float = knob(0.6, "lambda of Eq. 5, weight of the bias", low=0.0, high=100.0)
    tau_seg: float = knob(0.9, "cosine of frame means below which a segment ends", low=-1.0)
    tau_filter: float = knob(0.7, "cosine to a register above which a token is pre-filtered")
    tau_merge: float = knob(0.8, "cosine to the pivot above which a register is deduplicated")
    tau_cluster: float = knob(0.4, "cosine to its cluster above which a filler joins it")
    beta: float = knob(0.008, "weight of the cluster size in Eq. 6")
    layer: int = knob(1, "tokens are dropped before this decoder layer", low=1, costs=True)
    score_layer: str = knob(
        "lookahead",
        "scores of the layer about to run, or (first) of the one that has run",
        choices=("lookahead", "first"),
        costs=True,
    )
    score_space: str = knob("prob", "post-softmax probabilities or pre-softmax logits", choices=("prob", "logit"))
    score_norm: str = knob("row", "softmax over the whole row or over the visual keys", choices=("row", "visual"))
    sys_visible: bool = knob(True, "SegM lets visual tokens see the text before the video")
    segm_layers: tuple[int, ...] = knob((0,), "layers in which SegM masks")
    regd_features: str = knob(
        "hidden", "what RegD compares: states at the prune, LLM input, or keys", choices=("hidden", "input", "key")
    )
    prefilter_absorb: str = knob("drop", "pre-filtered tokens are dropped or averaged in", choices=("drop", "mean"))
    dedup_absorb: str = knob("mean", "deduplicated registers are averaged in or dropped", choices=("mean", "drop"))
    dedup_reference: str = knob(
        "pivot", "what a register is compared with", choices=("pivot", "predecessor", "running_mean")
    )
    cluster_reference: str = knob("seed", "what a filler is compared with", choices=("seed", "mean"))
    cluster_center: str = knob("mean", "which vector stands for a cluster", choices=("mean", "first", "medoid"))
    strict_budget: bool = knob(True, "refill across segments until exactly K tokens are kept")
    prune_layer0_kv: bool = knob(False, "drop the same tokens from the caches of the layers before the prune")
    trace: bool = knob(False, "record what SegM and RegD did with every token; costs time, changes nothing else")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segm and not any(0 <= layer < self.layer for layer in self.segm_layers):
            named = ", ".join(map(str, self.segm_layers)) or "empty"
            raise MethodError(f"sharp: segm_layers is {named}; SegM needs at least one layer before layer {self.layer}")

    def require(self, processor: Any | None) -> None:
        if self.active and self._debiases and processor is None:
            raise MethodError(
                f"{self.name}: PosC makes a black video and needs the processor: pass it, or set posc=False"
            )

    @property
    def _debiases(self) -> bool:
        return self.posc and self.penalty > 0

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        """Of the last stage, on the tokens that reach it."""
        look_ahead = self.score_layer == "lookahead"
        (layer, _), visual = prunes.stages[-1], prunes.before[len(prunes.stages) - 1]
        macs = {"scores": score_macs(prunes.shape, visual + prunes.text, project_keys=look_ahead)}
        if self._debiases:
            full = layer - (0 if look_ahead else 1)
            macs["bias"] = bias_macs(prunes.shape, visual, prunes.text, prunes.prefix, full_layers=full)
            macs["bias_setup"] = bias_setup_macs(prunes.shape, visual, prunes.prefix, full_layers=full)
        return macs


@dataclass(frozen=True)
class ShaRP(ShaRPOptions):
    """SegM in layer 0, PosC-debiased scores of the last token, RegD on the registers; drops before layer 1.

    1. SegM: cut the video where consecutive frame means of the LLM-input embeddings fall below `tau_seg` (Eq. 3);
       in layer 0 visual tokens of different segments do not see each other (Eq. 4).
    2. PosC: score by the last token's attention minus `penalty` times the same on a black video (Eq. 5).
    3. RegD: inside each segment pre-filter, deduplicate and refill the top-K tokens to exactly K (Eq. 6).

    Readings taken where the paper is silent, with their alternatives as options, are listed in docs/sharp.md. The
    ones that matter most: the scoring layer looks ahead to the layer about to run (layer 0's last query knows
    neither the question nor the segments); segments serve RegD whether or not SegM masks with them; survivors keep
    their original positions and the caches of the layers before the prune stay whole.
    """

    name = "sharp"
    title = "ShaRP"
    summary = "Debiased attention of the last token on segment-masked states, deduplicated; drops before layer 1."
    color = "#3D7FF0"

    @property
    def _scoring_layer(self) -> int:
        return self.layer if self.score_layer == "lookahead" else self.layer - 1

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(self.layer, budget(self.retention, n))]

    def registers(self, n: int, alive: int) -> int:
        """How many tokens to keep of the `alive` ones that are left of n."""
        return budget(self.retention, n)

    def attention(self, layer: int, prefill: Prefill) -> AttentionOverride | None:
        masks = self.segm and layer in self.segm_layers and layer < self.layer
        if not masks and (layer or (not self.regd and not self.segm)):
            return None
        from sharp_demo.pruning.attention import packing_for, segment_masked
        from sharp_demo.pruning.sharp.segments import cut, token_bounds

        with prefill.stage("mask"):
            if layer == 0:
                tokens = prefill.hidden[0, prefill.rows]
                found = cut(tokens, prefill.frames, prefill.layout.frames, self.tau_seg)
                prefill.run.segments, ranges = found.segments, found.ranges
                if self.trace:
                    prefill.run.trace["cosines"] = found.cosines
            else:
                ranges = token_bounds(prefill.frames, prefill.run.segments)
            if not masks:
                return None
            prefill.run.segment_tokens = [b - a for a, b in ranges]
            span = prefill.span(ranges, self.sys_visible)
            packing = packing_for(span, prefill.hidden, prefill.config._attn_implementation)
        return partial(segment_masked, span=span, packing=packing)

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer != self.layer:
            return None
        from sharp_demo.pruning.attention import to_device
        from sharp_demo.pruning.sharp.bias import black_bias
        from sharp_demo.pruning.sharp.regd import RegDOptions, refine
        from sharp_demo.pruning.sharp.trace import trace_regd

        with prefill.stage("scores"):
            lookahead = self.score_layer == "lookahead"
            logits = prefill.logits_of_next_layer(layer) if lookahead else prefill.logits_of_last_layer(layer - 1)
            scores = self._scores(logits, prefill.rows)
            prefill.record_scores("raw", scores)
        if self._debiases:
            hidden_prefix = self.segm_layers if self.segm and not self.sys_visible else ()
            logits = black_bias(prefill, self._scoring_layer, hidden_prefix)
            with prefill.stage("bias"):
                bias = self._scores(logits, prefill.rows)
                scores = scores - self.penalty * bias  # Eq. 5
                prefill.record_scores("bias", bias)
                prefill.record_scores("debiased", scores)
        with prefill.stage("select"):
            registers = top_k(scores, min(self.registers(len(prefill.layout), len(scores)), len(scores)))
        if self.trace:
            prefill.run.trace["registers"] = prefill.slots[registers]
        if not self.regd:
            return Selection(registers, registers.new_full(registers.shape, int(Role.REGISTER)))
        with prefill.stage("pre-filter"):
            segments = len(prefill.run.segments)
            starts = to_device([first for first, _ in prefill.run.segments], torch.long, scores.device)
            segment = torch.searchsorted(starts, prefill.frames, right=True) - 1
            hidden = prefill.hidden[0, prefill.rows]
            features = self._features(prefill, hidden)
        options = RegDOptions(**{option.name: getattr(self, option.name) for option in fields(RegDOptions)})
        if self.trace:
            steps = trace_regd(hidden, features, segment, segments, scores, registers, options)
            prefill.run.trace |= {name: prefill.slots[tokens] for name, tokens in steps.items()}
        return refine(hidden, features, segment, segments, scores, registers, options, prefill.stage)

    def after_prefill(self, prefill: Prefill) -> None:
        if self.prune_layer0_kv:
            for layer in range(self.layer):
                prefill.drop_kv(layer, torch.searchsorted(prefill.orders[layer], prefill.order))

    def _scores(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Turn the last token's logits [heads, n] into one score per visual row [v], averaged over heads."""
        if self.score_space == "logit":
            return logits[:, rows].mean(0)
        if self.score_norm == "visual":
            return logits[:, rows].softmax(-1).mean(0)
        return logits.softmax(-1)[:, rows].mean(0)

    def _features(self, prefill: Prefill, hidden: Tensor) -> Tensor:
        if self.regd_features == "hidden":
            return hidden
        if self.regd_features == "input":
            return prefill.embeddings[0, prefill.order[prefill.rows]]
        from sharp_demo.pruning.attention import project_keys

        block = prefill.layers[self.layer]
        keys = project_keys(block.self_attn, block.input_layernorm(hidden[None]), None)
        return keys[0].transpose(0, 1).flatten(1)
