"""Where the last token looks and what methods keep, over time: the paper's Figures 2 and 4, averaged over clips.

Attention is post-softmax, mean over heads, of the last prompt token to the visual tokens, without pruning; bias is
the same on a black video with the same prompt; debiased is raw - lambda * bias (ShaRP Eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lab.accuracy.asking import Asked, Film
from lab.accuracy.evaluate import Plan, choose_clips, one_thread, setup_of
from lab.accuracy.variants import Subject, Variant, variant
from lab.stats import ClipBootstrap, third_of_frames
from lab.world.records import SyntheticClip
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.probe import AttentionProbe
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.bias import BiasCache

RETENTION = 0.1
WATCHED = (
    variant("fastv"),
    variant("fastv", layer=1),
    variant("feather"),
    variant("sharp"),
    variant("sharp", "ShaRP without PosC", posc=False),
    variant("sharp", "ShaRP without RegD", regd=False),
    variant("sharp", "ShaRP, score_layer=first", score_layer="first"),
    variant("sharp", "ShaRP, score_layer=first, PosC alone", segm=False, regd=False, score_layer="first"),
    variant("random"),
)
CURVES = ("raw", "bias", "debiased")


@dataclass
class Sums:
    """What was seen, one entry per question; every array is per layer (L) and, where said, per frame (F)."""

    clip: list[int] = field(default_factory=list)
    curves: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CURVES})  # [L, F]
    top_late: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CURVES})  # [L]
    evidence: list[np.ndarray] = field(default_factory=list)  # [L] share of the visual attention on evidence tokens
    kept: dict[str, list[np.ndarray]] = field(default_factory=lambda: {one.name: [] for one in WATCHED})  # [F]


def phenomena(
    backbone: Backbone, plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Look at the plan's clips; a JSON-ready document. The plan's variants and retentions do not matter here."""
    clips, sums, cache = choose_clips(backbone, plan), Sums(), BiasCache()
    with one_thread(backbone):
        for done, clip in enumerate(clips):
            progress(done, len(clips))
            film = Film(backbone, clip.frames, cache)
            layout = look(film, clip, sums)
    progress(len(clips), len(clips))
    return summary(backbone, plan, sums, layout)


def look(film: Film, clip: SyntheticClip, sums: Sums) -> VisualLayout:
    """Add every question of a clip to the sums."""
    dark = None
    for question in clip.questions:
        asked, subject = Asked(film, question.text), Subject(clip, question)
        dark = dark or film.black(asked.layout)
        raw, bias = attention(asked), attention(Asked(dark, question.text))
        sums.clip.append(clip.seed)
        for name, scores in zip(CURVES, (raw, bias, raw - ShaRP().penalty * bias), strict=True):
            sums.curves[name].append(scores.reshape(len(scores), asked.layout.frames, -1).sum(-1))
            sums.top_late[name].append(late_of_top(scores, RETENTION, asked.layout.frames))
        found = list(subject.evidence(asked.layout))
        sums.evidence.append(raw[:, found].sum(1) / raw.sum(1) if found else np.full(len(raw), np.nan))
        for one in WATCHED:
            sums.kept[one.name].append(kept_by_frame(asked, subject, one))
    return asked.layout


def attention(asked: Asked) -> np.ndarray:
    """Last token's attention to every visual token in every layer, [layers, N]."""
    _, _, run = asked.prefill(AttentionProbe())
    return np.stack([run.scores[f"layer {layer}"].cpu().numpy() for layer in range(len(asked.lm.layers))])


def late_of_top(scores: np.ndarray, share: float, frames: int) -> np.ndarray:
    """Of the `share` highest scores [layers, N] of each layer, how many lie in the last third of the clip; [layers]."""
    n = scores.shape[1]
    top = np.argsort(-scores, axis=1, kind="stable")[:, : max(1, round(share * n))]
    return (third_of_frames(frames)[top // (n // frames)] == 2).mean(1)


def kept_by_frame(asked: Asked, subject: Subject, one: Variant) -> np.ndarray:
    """Share of the kept tokens in each layout frame, [F]."""
    method = replace(one.build(RETENTION), **subject.knowledge(one, asked.layout))
    _, _, run = asked.prefill(method)
    per_frame = asked.layout.rows * asked.layout.cols
    return np.bincount(run.kept.cpu().numpy() // per_frame, minlength=asked.layout.frames) / len(run.kept)


def summary(backbone: Backbone, plan: Plan, sums: Sums, layout: VisualLayout) -> dict[str, Any]:
    """Means over the questions, with intervals by clip for the shares of the last third."""
    bootstrap = ClipBootstrap(np.array(sums.clip), seed=plan.seed)
    third = third_of_frames(layout.frames)
    frames_in = np.stack([third == i for i in range(3)])  # [3, F]

    def late(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
        low, high = bootstrap.mean_interval(np.asarray(values))
        return {"mean": _round(np.mean(values)), "ci95": [_round(low), _round(high)]}

    curves = {name: np.stack(per_question) for name, per_question in sums.curves.items()}  # [Q, L, F]
    layers = []
    for layer in range(curves["raw"].shape[1]):
        entry: dict[str, Any] = {"layer": layer, "visual_attention": _round(curves["raw"][:, layer].sum(1).mean())}
        for name in CURVES:
            per_frame = curves[name][:, layer]
            entry[name] = {
                "by_frame": [_round(value) for value in per_frame.mean(0)],
                "late_of_top": late([late[layer] for late in sums.top_late[name]]),
            }
            if name != "debiased":  # it may be negative: shares of it mean nothing
                entry[name]["late_share"] = late(per_frame[:, third == 2].sum(1) / per_frame.sum(1))
        found = np.array([shares[layer] for shares in sums.evidence])
        entry["evidence_share"] = _round(np.nanmean(found)) if not np.isnan(found).all() else None
        layers.append(entry)
    kept = []
    for one in WATCHED:
        by_frame = np.stack(sums.kept[one.name])
        kept.append(
            {
                "method": one.name,
                "label": one.label,
                "by_frame": [_round(value) for value in by_frame.mean(0)],
                "by_third": [_round(by_frame[:, mask].sum(1).mean()) for mask in frames_in],
                "late": late(by_frame[:, third == 2].sum(1)),
            }
        )
    return {
        "setup": {**setup_of(backbone, plan), "penalty": ShaRP().penalty, "kept_at": RETENTION},
        "questions": len(sums.clip),
        "clips": bootstrap.clips,
        "frames": layout.frames,
        "chance_by_third": [_round(mask.mean()) for mask in frames_in],
        "layers": layers,
        "kept": kept,
    }


def _round(value: Any) -> float:
    return round(float(value), 6)
