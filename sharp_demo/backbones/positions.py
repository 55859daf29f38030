"""Multimodal rotary positions of Qwen2-VL, by the rule its released weights were trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sharp_demo.backbones.layout import visual_layout


def released_positions(config: Any, input_ids: Tensor, video_grid_thw: Tensor) -> Tensor:
    """Positions of a prompt with one video, for prefill and for every later turn of the same conversation.

    Parameters
    ----------
    config : `model.config` of a Qwen2-VL checkpoint.
    input_ids : LongTensor [n] or [1, n]; the whole sequence, earlier turns and answers included.
    video_grid_thw : LongTensor [1, 3].

    Returns
    -------
    LongTensor [4, 1, n]: rows are the plain sequence index (the causal mask is built from it), then time, height
    and width. `generate` adds one to every row for each new token, which is right in all four because the text
    after the video has equal time, height and width.

    The text after the video starts at max(all positions) + 1, as in the code released with the weights
    (transformers up to 4.5x); transformers 5.23 leaves the time axis out of that maximum.
    """
    layout = visual_layout(config, input_ids, video_grid_thw)
    start, visual, length = int(layout.index[0]), len(layout), layout.length
    device = layout.index.device
    video = torch.stack((layout.frame, layout.row, layout.col)) + start
    after = start + max(layout.frames, layout.rows, layout.cols)
    suffix = torch.arange(after, after + length - start - visual, device=device).expand(3, -1)
    prefix = torch.arange(start, device=device).expand(3, -1)
    rotary = torch.cat((prefix, video, suffix), dim=1)
    return torch.cat((torch.arange(length, device=device)[None], rotary))[:, None]


def grid_from_positions(config: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Read `video_grid_thw` [1, 3] back from the positions [3 or 4, 1, n] of a prompt with one video.

    `generate` runs the vision tower itself and keeps the grid from the language model; the positions still hold it.
    Positions that are not multimodal give a grid that does not match the placeholders, which `visual_layout` refuses.
    """
    visual = position_ids[-3:, 0, (input_ids.reshape(-1) == config.video_token_id).to(position_ids.device)]
    merge = config.vision_config.spatial_merge_size
    extent = visual.amax(1) - visual.amin(1) + 1
    return (extent.cpu() * torch.tensor([1, merge, merge]))[None]
