"""ShaRP behind another method (its paper's Table 3): fewer tokens enter the LLM, and ShaRP chooses among those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any

from sharp_demo.backbones.view import WHOLE, VideoShape, View
from sharp_demo.cost import Prunes
from sharp_demo.pruning.holitom import HoliTom, holitom_layer
from sharp_demo.pruning.method import REINDEX, Method, knob
from sharp_demo.pruning.schedule import Schedule, budget
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.method import ShaRPOptions
from sharp_demo.pruning.tome import ToMe
from sharp_demo.pruning.vidcom2 import VidCom2
from sharp_demo.pruning.visionzip import VisionZip

VISIONZIP_RATIO = 20 / 12.4
"""What VisionZip leaves over what ShaRP leaves of it: Table 3 of the ShaRP paper."""


@dataclass(frozen=True)
class BehindOther(ShaRPOptions, ABC):
    """ShaRP with all its options, on what another method leaves before the LLM.

    ShaRP sees the reduced set only: frame means and segments are those of the tokens that entered (merged ones as
    they are), and the black video has tokens at the same slots and positions. A frame that kept none continues the
    one before it. The black rows are cached per set of slots: a second question about the same video finds them.
    """

    where = "both"

    reindex_positions: bool = knob(True, REINDEX)

    @abstractmethod
    def outer(self) -> Method:
        """What runs before the LLM."""

    @abstractmethod
    def inner(self) -> ShaRP:
        """ShaRP as it runs on what that leaves."""

    @property
    def parts(self) -> tuple[Method, ...]:
        return (*self.outer().parts, self.inner())

    def overhead(self, prunes: Prunes) -> dict[str, int]:
        """ShaRP's, and what the other method's scores add."""
        macs = Counter(super().overhead(prunes))
        if len(prunes.stages) > 1:
            macs.update(self.outer().overhead(replace(prunes, stages=prunes.stages[:1], before=prunes.before[:1])))
        return dict(macs)

    def _sharp(self, kind: type[ShaRP] = ShaRP, **changes: Any) -> ShaRP:
        options = {option.name: getattr(self, option.name) for option in fields(ShaRPOptions)}
        return kind(**{**options, **changes})


@dataclass(frozen=True)
class AtRatio(BehindOther, ABC):
    """`retention` is the final share, ShaRP's; the other method keeps `outer_ratio` times that, at most all."""

    outer_ratio: float = knob(
        VISIONZIP_RATIO,
        "share that the other method leaves, over the final one; at most all are kept",
        low=1.0,
        costs=True,
    )

    @property
    def outer_share(self) -> float:
        return min(1.0, self.retention * self.outer_ratio)

    def inner(self) -> ShaRP:
        return self._sharp()

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        outer = self.outer()
        entered = outer.schedule(layers, n, frames)[0][1] if outer.active else n
        inner = (self.layer, min(entered, budget(self.retention, n)))
        return [(0, entered), inner] if outer.active else [inner]


@dataclass(frozen=True)
class VisionZipShaRP(AtRatio):
    """VisionZip before the LLM, ShaRP before layer 1 on what it left.

    `retention` is the final share, ShaRP's; VisionZip keeps `outer_ratio` times that (20 % for 12.4 %, as in the
    paper's Table 3), all where that would be more. Should VisionZip's rounding per frame leave fewer tokens than
    ShaRP's budget, all of those are kept.
    """

    name = "visionzip+sharp"
    title = "VisionZip + ShaRP"
    summary = "VisionZip before the LLM, then ShaRP before layer 1 on what it left (20 and 12.4 % in the paper)."
    needs_vision = True
    color = "#5546D6"

    dominant: int = knob(54, "VisionZip: how many of every 64 kept tokens are dominant", low=0, high=64)

    def outer(self) -> VisionZip:
        return VisionZip(retention=self.outer_share, dominant=self.dominant, reindex_positions=self.reindex_positions)


@dataclass(frozen=True)
class VidCom2ShaRP(AtRatio):
    """VidCom2 before the LLM, ShaRP before layer 1 on what it left.

    `retention` is the final share, ShaRP's; VidCom2 keeps `outer_ratio` times that, all where that would be more. No
    paper has this combination: the ratio is the one that Table 3 has for VisionZip.
    """

    name = "vidcom2+sharp"
    title = "VidCom2 + ShaRP"
    paper = ""
    summary = "VidCom2 before the LLM, then ShaRP before layer 1 on what it left; ours."
    color = "#F91AF9"

    def outer(self) -> VidCom2:
        return VidCom2(retention=self.outer_share, reindex_positions=self.reindex_positions)


@dataclass(frozen=True)
class ToMeShaRP(ShaRPOptions):
    """ToMe in the vision tower, ShaRP in the LLM on the tokens of all patches.

    `retention` is ShaRP's; ToMe leaves the `patches` share of a frame's patches behind the tower's last layer. No
    paper has this combination. The black video of ShaRP's bias is encoded without merging.
    """

    name = "tome+sharp"
    title = "ToMe + ShaRP"
    paper = ""
    summary = "ToMe spares the vision tower, ShaRP the LLM, before layer 1; ours."
    where = "both"
    color = "#009C00"

    patches: float = knob(0.5, "ToMe: share of patches left behind the tower, in (0, 1]", low=0.01, high=1.0)

    @property
    def parts(self) -> tuple[Method, ...]:
        inner = ShaRP(**{option.name: getattr(self, option.name) for option in fields(ShaRPOptions)})
        return (ToMe(retention=self.patches), inner)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return self.parts[1].schedule(layers, n, frames)

    def view(self, video: VideoShape) -> View:
        return self.parts[0].view(video) if self.active else WHOLE


@dataclass(frozen=True)
class ShareOfReached(ShaRP):
    """ShaRP whose `retention` is a share of the tokens that reach its layer."""

    def registers(self, n: int, alive: int) -> int:
        return budget(self.retention, alive)


@dataclass(frozen=True)
class HoliTomShaRP(BehindOther):
    """HoliTom before the LLM, and ShaRP in the place of HoliTom's inner stage.

    `retention` is the share after HoliTom's outer stage, as for HoliTom itself; ShaRP drops the `drop` share of
    that before the same layer, 18 of 28. Readings, since the paper says no more than "we replace its inner-LLM
    pruning stage": scores are those of the layer before, as in HoliTom (`score_layer`); SegM masks in that layer
    only, which moves the states that RegD compares and not those scores; segments are cut on the tokens that enter
    the LLM, where a static token belongs to the first frame of its segment.
    """

    name = "holitom+sharp"
    title = "HoliTom + ShaRP"
    summary = (
        "HoliTom's outer stage before the LLM (the share is what it leaves); ShaRP halves that before layer 18 of 28."
    )
    needs_vision = True
    adaptive = True
    color = "#126A80"

    layer: int = knob(0, "ShaRP drops before this decoder layer; 0: 18 of 28, scaled", low=0, costs=True)
    score_layer: str = knob(
        "first",
        "scores of the layer about to run (lookahead), or (first) of the one that has run",
        choices=("lookahead", "first"),
        costs=True,
    )
    segm_layers: tuple[int, ...] = knob((), "layers in which SegM masks; empty: the one before the drop")
    drop: float = knob(0.5, "share that ShaRP drops of what HoliTom left", low=0.0, high=0.99, costs=True)
    outer_tau: float = knob(0.8, "HoliTom: cosine to the next frame above which a patch is static", low=-1.0, high=1.0)
    outer_beta: float = knob(0.6, "HoliTom: weight of a centre against the mean of its members", low=0.0, high=1.0)
    seed: int = knob(0, "HoliTom: seed of the jitter that breaks ties of density", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.layer:  # else not known before the model is
            self.inner()

    def fitted(self, layers: int) -> HoliTomShaRP:
        return replace(self, layer=self.layer or holitom_layer(layers))

    def outer(self) -> HoliTom:
        return HoliTom(
            retention=self.retention,
            tau=self.outer_tau,
            beta=self.outer_beta,
            drop=0.0,
            seed=self.seed,
            reindex_positions=self.reindex_positions,
        )

    def inner(self) -> ShaRP:
        layer = self.layer or holitom_layer(28)
        masked = self.segm_layers or (layer - 1,)
        return self._sharp(ShareOfReached, retention=1 - self.drop, layer=layer, segm_layers=masked)

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        """HoliTom's outer stage, and ShaRP as the inner one, which counts as all budgets do."""
        ((_, outer),) = self.outer().schedule(layers, n, frames)
        inner = (self.layer or holitom_layer(layers), budget(1 - self.drop, outer))
        return [(0, outer), inner] if self.drop > 0 else [(0, outer)]
