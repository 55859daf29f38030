"""What a pruned prefill came to: which tokens a stage keeps and why, and the record of the whole prefill."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.report import RunReport
from sharp_demo.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sharp_demo.backbones.layout import VisualLayout
    from sharp_demo.pruning.method import Method
else:
    torch = LazyModule("torch")


class Role(IntEnum):
    """Why a kept token was kept."""

    KEPT = 0
    REGISTER = 1  # top-K by (debiased) score
    MERGED = 2  # a register token that absorbed others
    FILLED = 3  # put in to refill the budget
    GRID = 4  # on Feather's uniform grid
    DOMINANT = 5  # top-k by vision-tower attention (VisionZip, HoliTom)
    CONTEXTUAL = 6  # stands for the tokens that were averaged into it (VisionZip)
    STATIC = 7  # stands for its patch in every frame of its segment (HoliTom)

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Selection:
    """What survives one prune stage, in terms of the v visual tokens that were alive before it.

    Attributes
    ----------
    kept : [k] LongTensor, ascending indices into those v tokens.
    role : [k] IntTensor of `Role` values; None leaves the tokens the roles they had (KEPT at first).
    hidden : [k, d] rows to go on with in place of the tokens' own (merging); None leaves them as they are.
    merged_into : [v] LongTensor, for each token that was averaged into another the index of that other, else -1.
    compact : number the positions of what is left 0, 1, 2, ... from here on, also for the tokens to come; the
        default keeps the original positions. Not defined for M-RoPE, where it is refused.
    """

    kept: Tensor
    role: Tensor | None = None
    hidden: Tensor | None = None
    merged_into: Tensor | None = None
    compact: bool = False


@dataclass
class Run:
    """What one pruned prefill did. Every prefill under the same `with` block starts it afresh.

    Attributes
    ----------
    layout : where the N visual tokens sit; None until a prompt with a video was seen.
    kept, role : [k] slots (0..N-1) that survived all stages, ascending, and their `Role` values.
    merged_into : [N] kept slot each token was averaged into (over all stages), -1 for none.
    scores : name -> [N] fp32, the scores the method selected by ("raw", "bias", "debiased").
    layer_scores : name -> [layers] fp32, figures the method judged decoder layers by; NaN where it judged none.
    segments : [first, end) layout frames of each segment; empty without segmentation.
    trace : name -> tensor, what a method tells of its steps when it is asked to (slots where it names tokens).
    segment_tokens : visual tokens of each segment in the layers that are segment-masked; empty without any.
    left_before : [N] first decoder layer that each token did not enter; the number of layers where it stayed.
    visual_per_layer : visual tokens that entered each decoder layer.
    mlp_per_layer : those that entered its MLP: fewer where a method dropped after the attention.
    stages : milliseconds per stage, read after the prefill.
    note : why the last prompt was not pruned, where nothing in it could be.
    """

    method: Method
    device: torch.device
    layout: VisualLayout | None = None
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    role: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int8))
    merged_into: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    left_before: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    scores: dict[str, Tensor] = field(default_factory=dict)
    layer_scores: dict[str, Tensor] = field(default_factory=dict)
    segments: list[tuple[int, int]] = field(default_factory=list)
    trace: dict[str, Tensor] = field(default_factory=dict)
    segment_tokens: list[int] = field(default_factory=list)
    visual_per_layer: list[int] = field(default_factory=list)
    mlp_per_layer: list[int] = field(default_factory=list)
    bias_cold: bool = False
    note: str = ""
    stopwatch: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.device)

    @property
    def stages(self) -> dict[str, float]:
        return self.stopwatch.ms()

    def report(self) -> RunReport:
        """Return what was kept of every frame and what each stage took, for a terminal or a notebook."""
        return RunReport.of(self)

    def begin(self, layout: VisualLayout, layers: int) -> None:
        """Forget the previous prefill; until a stage drops something, every token survives every layer."""
        n = len(layout)
        self.layout = layout
        self.kept = torch.arange(n, device=self.device)
        self.role = torch.full((n,), Role.KEPT, dtype=torch.int8, device=self.device)
        self.merged_into = torch.full((n,), -1, device=self.device)
        self.left_before = torch.full((n,), layers, device=self.device)
        self.scores, self.layer_scores, self.trace = {}, {}, {}
        self.segments, self.segment_tokens = [], []
        self.visual_per_layer, self.mlp_per_layer = [n] * layers, [n] * layers
        self.bias_cold, self.note = False, ""
        self.stopwatch = Stopwatch(self.device)

    def skip(self, reason: str) -> None:
        """Forget the previous prefill: this prompt has nothing to prune."""
        vars(self).update(vars(Run(self.method, self.device, note=f"{reason}, so nothing was pruned.")))
