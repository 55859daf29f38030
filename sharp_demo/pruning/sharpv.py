"""SharpV (Qin et al., AAAI 2026, arXiv 2511.08003): adaptive tokens per frame, and visual KV dropped by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import dissimilarity, first_of_each, input_frames
from sharp_demo.pruning.method import REINDEX, Method, knob
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.schedule import Schedule, budget

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

COSINE = "cosine to the input"  # name of the figures by which the memory stage judges layers


@dataclass(frozen=True)
class SharpV(Method):
    """Keep the tokens that change and stand out, more of them in livelier frames; later forget degraded layers.

    **Visual stage**, before the LLM. A token's importance is its dissimilarity to the same place in the previous
    frame (temporal; not in the first frame) plus w times that to the mean of its frame (spatial). A frame keeps the
    share |T| / (2 sqrt(f)) of its f tokens, at least one: the root mean square of its temporal dissimilarities (of
    the spatial ones in the first frame) over their maximum of 2. **Memory stage**, after the prefill: the visual
    keys and values of every layer are dropped in which the states' mean cosine to the video's own features is below
    M. Text stays, and the first answer token cannot depend on this stage.

    There is no official code, and these formulas come from secondary accounts of the paper that agree with each
    other, not from its text. Readings: "threshold" is the share that a frame keeps (as a cut on the importance it
    would keep nearly everything); the frame's mean is of raw tokens; a layer is judged by its input. The paper's
    manual threshold is left out.

    Deviation: the published share adapts to the video and hits no given retention. `ratio="scaled"` multiplies all
    shares by one factor alpha, found by bisection, so that exactly round(retention * N) tokens stay; that is ours.
    With `ratio="adaptive"` the shares are the published ones and `retention` decides nothing, except that 1 switches
    the method off. With fewer tokens than frames, frames may keep none.
    """

    name = "sharpv"
    title = "SharpV"
    paper = "https://arxiv.org/abs/2511.08003"
    year = 2026
    summary = (
        "Change and distinctness of tokens, adaptive per frame, before the LLM; visual KV of degraded layers after."
    )
    where = "both"
    color = "#B63BD1"

    ratio: str = knob(
        "scaled",
        "shares of the frames: the published ones, which ignore retention (adaptive), or times one factor to meet it",
        choices=("scaled", "adaptive"),
    )
    spatial_weight: float = knob(1.0, "w: weight of the spatial dissimilarity, relative to the temporal one", low=0)
    frame_mean: str = knob(
        "raw", "the mean of a frame is of its tokens, or of their directions", choices=("raw", "unit")
    )
    memory_threshold: float = knob(
        0.2, "M: visual keys and values go from layers with a mean cosine below this; -1 keeps all"
    )
    reindex_positions: bool = knob(True, REINDEX)
    memory_states: str = knob(
        "input", "a layer is judged by what enters or what leaves it", choices=("input", "output")
    )

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.ratio == "adaptive"

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, budget(self.retention, n))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer:
            return None
        with prefill.stage("scores"):
            scores, ratios = importance(
                input_frames(self.name, prefill), self.spatial_weight, unit_mean=self.frame_mean == "unit"
            )
        prefill.record_scores("raw", scores.flatten())
        with prefill.stage("select"):
            size = scores.shape[1]
            if self.adaptive:
                counts = adaptive_counts(ratios.tolist(), size)
            else:
                counts = scaled_counts(ratios.tolist(), size, budget(self.retention, scores.numel()))
            return Selection(
                best_of_each_frame(scores, counts), compact=self.reindex_positions and prefill.family.renumbers
            )

    def attention(self, layer: int, prefill: Prefill) -> None:
        """Compare the layer's input with the video's features; the attention itself stays as it is."""
        judged = layer if self.memory_states == "input" else layer - 1
        if judged >= 0:
            self._judge(judged, prefill)

    def after_prefill(self, prefill: Prefill) -> None:
        if self.memory_states == "output":
            self._judge(len(prefill.layers) - 1, prefill)
        with prefill.stage("memory"):
            text = prefill.order[prefill.text]
            for layer, cosine in enumerate(prefill.run.layer_scores[COSINE].tolist()):
                if cosine < self.memory_threshold:
                    prefill.drop_kv(layer, torch.searchsorted(prefill.orders[layer], text))

    @staticmethod
    def _judge(layer: int, prefill: Prefill) -> None:
        with prefill.stage("memory"):
            features = prefill.embeddings[0, prefill.order[prefill.rows]].float()
            states = prefill.hidden[0, prefill.rows].float()
            prefill.record_layer_score(COSINE, layer, F.cosine_similarity(states, features, dim=-1).mean())


def importance(frames: Tensor, weight: float = 1.0, *, unit_mean: bool = False) -> tuple[Tensor, Tensor]:
    """Importance [F, f] of each token of frames [F, f, d], and the share [F] in [0, 1] that each frame keeps."""
    directions = F.normalize(frames, dim=-1)
    spatial = dissimilarity(directions, (directions if unit_mean else frames).mean(1, keepdim=True))
    temporal = dissimilarity(directions[1:], directions[:-1])
    change = torch.cat((spatial[:1], temporal))  # the first frame has nothing before it
    scores = weight * spatial
    scores[0] = spatial[0]
    scores[1:] += temporal
    return scores, change.square().mean(1).sqrt() / 2


def adaptive_counts(ratios: Sequence[float], size: int) -> list[int]:
    """Tokens that each frame of `size` tokens keeps: its share, rounded, at least one."""
    return [min(size, max(1, round(ratio * size))) for ratio in ratios]


def scaled_counts(ratios: Sequence[float], size: int, total: int) -> list[int]:
    """Tokens per frame, `total` together, in proportion to `ratios` as far as a frame of `size` tokens goes.

    One factor alpha scales all ratios; bisection finds the largest that stays within `total`. What rounding leaves
    over goes one by one to the frames nearest to their next token, of equal ones to the earlier. No frame goes below
    one token unless there are fewer tokens than frames.
    """
    least = 1 if total >= len(ratios) else 0

    def counts(alpha: float) -> list[int]:
        return [min(size, max(least, round(alpha * ratio * size))) for ratio in ratios]

    low, high = 0.0, 1 / min((ratio for ratio in ratios if ratio > 0), default=1.0)
    if sum(counts(high)) <= total:
        low = high
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle)) <= total else (low, middle)
    found = counts(low)
    while (rest := total - sum(found)) > 0:
        room = [frame for frame, count in enumerate(found) if count < size]
        room.sort(key=lambda frame: found[frame] - low * ratios[frame] * size)
        for frame in room[:rest]:
            found[frame] += 1
    return found


def best_of_each_frame(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Indices, ascending, of the counts[t] highest of scores [F, f] in each frame t; ties by the lower index."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return first_of_each(order, counts, scores.shape[1])
