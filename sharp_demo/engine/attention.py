"""The last prompt token's attention over the video: raw, on a black video, and debiased (paper Figs. 2 and 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sharp_demo.backbones.features import VideoFeatures, black_video, model_inputs
from sharp_demo.engine.generation import prefill
from sharp_demo.engine.stages import Loaded, Shared, layout_of
from sharp_demo.pruning.probe import AttentionProbe, attention_per_frame
from sharp_demo.pruning.sharp.method import ShaRP
from sharp_demo.pruning.sharp.segments import frame_means, segment_frames
from sharp_demo.records import AttentionMaps


def attention_maps(loaded: Loaded, shared: Shared, penalty: float) -> AttentionMaps:
    """Measure both videos; `penalty` is lambda of Eq. 5."""
    backbone, layout = loaded.backbone, shared.layout
    black = black_video(backbone.model, backbone.processor.video, layout_of(backbone, shared.prompt), shared.features)
    raw, bias = (
        attention_per_frame(
            probe_attention(backbone.model, shared.prompt, features), loaded.shape.layers, layout.frames
        )
        for features in (shared.features, black)
    )
    visual = shared.features.features[: layout.tokens]
    frame = torch.arange(layout.tokens, device=visual.device) // (layout.rows * layout.cols)
    segments = segment_frames(frame_means(visual, frame, layout.frames), ShaRP().tau_seg)
    return AttentionMaps(
        layout=layout,
        penalty=penalty,
        raw=raw.tolist(),
        bias=bias.tolist(),
        debiased=(raw - penalty * bias).tolist(),
        segments=[list(segment) for segment in segments],
    )


@torch.inference_mode()
def probe_attention(model: Any, prompt: dict[str, Tensor], features: VideoFeatures) -> dict[str, Tensor]:
    """Return the last prompt token's attention to every visual token, by layer, without pruning."""
    with AttentionProbe()(model) as run:
        prefill(model, model_inputs(prompt, features))
    return run.scores
