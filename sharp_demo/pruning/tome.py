"""ToMe: patches merge between the layers of the vision tower, and every patch gets its row back behind the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.backbones.view import WHOLE, TowerMerging, VideoShape, View
from sharp_demo.pruning.method import Method, knob

if TYPE_CHECKING:
    from sharp_demo.pruning.outcome import Selection
    from sharp_demo.pruning.prefill import Prefill


@dataclass(frozen=True)
class ToMe(Method):
    """Merge similar patches inside the vision tower; the LLM still gets every token.

    `retention` is the share of patches left behind the tower's last layer. In every layer but the last, between
    attention and MLP, equally many patches at even places merge into the most similar ones at odd places, compared by
    the mean of their keys over heads, without positions. Behind the tower every patch gets the row that stands for
    it, so projector, positions and whatever prunes in the LLM see a whole grid. It spares the encoder and nothing
    else: its prefill is vanilla's.

    Deviations: the paper classifies from what is left, here the grid is whole again. Rows keep their order (the
    original sorts by similarity), and rotary positions of a merged patch are its partner's. The number that merges
    follows from the share; at most half of a layer's patches merge in it. Where features are given that were encoded
    without it, nothing merges and the run's note says so.
    """

    name = "tome"
    title = "ToMe"
    paper = "https://arxiv.org/abs/2210.09461"
    year = 2022
    summary = "Similar patches merge inside the vision tower; every patch gets its row back, the LLM sees all tokens."
    where = "tower"
    color = "#FC2400"

    proportional: bool = knob(True, "a merged patch weighs in attention as many as it stands for")

    @property
    def merging(self) -> TowerMerging | None:
        """What happens in the tower; None at retention 1."""
        return TowerMerging(self.retention, self.proportional) if self.active else None

    def view(self, video: VideoShape) -> View:
        return View(merging=self.merging) if self.active else WHOLE

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        if layer == 0 and prefill.context.merging != self.merging:
            prefill.run.note = "The features were encoded without merging, so nothing merged in the vision tower."
        return None
