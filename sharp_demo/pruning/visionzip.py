"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): tokens the vision tower looks at, and averages of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import input_frames
from sharp_demo.pruning.method import REINDEX, Method, knob
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.schedule import Schedule, budget, framewise_budget

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")


def dominant_tokens(received: Tensor, count: int) -> Tensor:
    """Indices [F, count] of the tokens of each frame that receive most attention, ascending; ties: lower index.

    received : [F, P].
    """
    return torch.sort(received, descending=True, stable=True).indices[:, :count].sort().values


def spread(rest: int, count: int) -> Tensor:
    """Return the places [count] of the contextual targets among `rest` tokens: every (rest // count)-th, from 0."""
    return torch.arange(count) * (rest // max(1, count))


def assign(keys: Tensor, targets: Tensor) -> Tensor:
    """For each of R tokens the target [F, R] (0..c-1) whose key is most similar by cosine; ties: lower index.

    keys : [F, R, head_dim]. targets : [c] places among the R tokens. A target belongs to itself.
    """
    unit = F.normalize(keys.float(), dim=-1)
    nearest = (unit @ unit[:, targets].transpose(1, 2)).argmax(-1)  # argmax takes the first of equals
    nearest[:, targets] = torch.arange(len(targets), device=keys.device)
    return nearest


def contextual_tokens(hidden: Tensor, targets: Tensor, nearest: Tensor) -> Tensor:
    """Each target plus the mean of the tokens assigned to it, [F, c, d] in fp32; a target alone stays as it is.

    hidden : [F, R, d]. targets : [c]. nearest : [F, R] as `assign` gives it.
    """
    hidden = hidden.float()
    own = hidden[:, targets]
    members = F.one_hot(nearest, len(targets)).to(hidden)  # [F, R, c]
    members[:, targets] = 0
    sums, sizes = members.transpose(1, 2) @ hidden, members.sum(1)
    return own + sums / sizes.clamp(min=1)[..., None]


@dataclass(frozen=True)
class VisionZip(Method):
    """Frame by frame keep the tokens that the vision tower attends to most, and average the others into a few.

    Of the k = round(retention * P) tokens that a frame of P keeps, 54 in 64 are *dominant*: they receive most
    attention in the tower layer that feeds the projector (mean over heads and queries; no tower here has a class
    token). Of the rest every step-th is a *contextual* target; each other token goes to the target whose key (mean
    over heads, no rotation) is most similar, and a target becomes itself plus the mean of its tokens. That is a sum
    of two vectors, not a mean of all, as in the official code. The language model sees a shorter ordinary sequence:
    positions are renumbered, except with M-RoPE, where survivors keep their own.

    Deviations: the survivors of a frame stay in the layout's order, the official code puts contextual tokens after
    dominant ones. The video form, per frame and after the projector's pooling, follows HoliTom's port, which its
    authors offer for that; there is none for models that merge frames into temporal patches, where the same is
    done per temporal patch on means over each merge group, after the merger.
    """

    name = "visionzip"
    title = "VisionZip"
    paper = "https://arxiv.org/abs/2412.04467"
    year = 2025
    summary = "Attention inside the vision tower, frame by frame, the rest averaged by its keys; drops before the LLM."
    where = "before"
    color = "#B5A100"
    needs_vision = True

    dominant: int = knob(54, "how many of every 64 kept tokens are dominant; the rest are contextual", low=0, high=64)
    reindex_positions: bool = knob(True, REINDEX)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, framewise_budget(self.retention, n, frames))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        return self._select(prefill) if layer == 0 else None

    def _select(self, prefill: Prefill) -> Selection:
        hidden = input_frames(self.name, prefill).flatten(0, 1)
        layout, signals = prefill.layout, prefill.signals
        frames, per_frame = layout.frames, layout.rows * layout.cols
        prefill.record_scores("raw", signals.received)
        k = budget(self.retention, per_frame)
        dominant_count = k * self.dominant // 64
        contextual_count = k - dominant_count
        with prefill.stage("select"):
            received = signals.received.view(frames, per_frame)
            dominant = dominant_tokens(received, dominant_count)
            taken = torch.zeros_like(received, dtype=torch.bool).scatter_(1, dominant, True)
            rest = (~taken).nonzero()[:, 1].view(frames, -1)  # [F, R], ascending
            targets = spread(rest.shape[1], contextual_count).to(rest.device)
        first = torch.arange(frames, device=rest.device)[:, None] * per_frame
        dominant, rest = dominant + first, rest + first  # slots from here on
        compact = self.reindex_positions and prefill.family.renumbers
        if contextual_count == 0:
            kept = dominant.flatten()
            return Selection(kept, torch.full_like(kept, int(Role.DOMINANT)), compact=compact)
        with prefill.stage("merge"):
            nearest = assign(signals.keys[rest], targets)
            contextual = contextual_tokens(hidden[rest], targets, nearest)
            merged_into = torch.full((len(layout),), -1, device=rest.device)
            merged_into[rest] = rest[:, targets].gather(1, nearest)
            merged_into[rest[:, targets]] = -1
            kept, order = torch.cat((dominant, rest[:, targets]), 1).flatten().sort()
            rows = torch.cat((hidden[dominant], contextual), 1).flatten(0, 1)[order]
            roles = torch.tensor([Role.DOMINANT] * dominant_count + [Role.CONTEXTUAL] * contextual_count)
            role = roles.to(rest.device).repeat(frames)[order]
        return Selection(kept, role, rows, merged_into, compact=compact)
