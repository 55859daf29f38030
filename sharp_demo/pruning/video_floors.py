"""Floors that act before the video is encoded: fewer frames, and smaller ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharp_demo.backbones.view import WHOLE, VideoShape, View
from sharp_demo.lazy import LazyModule
from sharp_demo.pruning.frames import input_frames, require_whole
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.schedule import Schedule
from sharp_demo.pruning.vanilla import Vanilla

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F

    from sharp_demo.pruning.prefill import Prefill
else:
    torch, F = LazyModule("torch"), LazyModule("torch.nn.functional")

MAX_STRETCH = 1.25
"""How much wider or narrower a smaller frame may be than the original."""


def smaller_grid(rows: int, cols: int, limit: int) -> tuple[int, int]:
    """Return the largest grid of at most `limit` cells within rows x cols whose aspect is near theirs.

    Of equally large ones the nearest in aspect; where none is within `MAX_STRETCH`, the nearest of those that fit.
    """

    def stretch(grid: tuple[int, int]) -> float:
        return abs(math.log(grid[1] * rows / (grid[0] * cols)))

    fitting = [(h, w) for h in range(1, rows + 1) for w in range(1, cols + 1) if h * w <= max(1, limit)]
    near = [grid for grid in fitting if stretch(grid) <= math.log(MAX_STRETCH)]
    if not near:
        return min(fitting, key=lambda grid: (stretch(grid), -grid[0] * grid[1]))
    return min(near, key=lambda grid: (-grid[0] * grid[1], stretch(grid)))


@dataclass(frozen=True)
class FewerFrames(Method):
    """Show the model fewer frames, evenly spaced: the middles of equal parts of the video.

    As many whole layout frames as the share gives, one at least. The vision tower sees no others, and positions are
    those of an ordinary shorter video. Attached to a prompt whose video was encoded whole it drops the other frames
    before the LLM, which spares the tower nothing; where positions have three axes they then stay as they were.
    """

    name = "fewer_frames"
    title = "Fewer frames"
    summary = "Floor: fewer frames, evenly spaced; the vision tower is spared too."
    where = "before"
    floor = True
    color = "#9000FC"
    reindex_positions = True  # those of a shorter video

    def frames_of(self, frames: int) -> int:
        """Return how many of the layout frames are shown."""
        return max(1, round(self.retention * frames))

    def view(self, video: VideoShape) -> View:
        shown = self.frames_of(video.frames)
        return View(frames=shown) if shown < video.frames else WHOLE

    def behind(self, view: View) -> Method:
        return Vanilla() if view != WHOLE else self

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, self.frames_of(frames) * (n // frames))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        from sharp_demo.pruning.attention import to_device

        layout = prefill.layout
        shown = View(frames=self.frames_of(layout.frames)).sampled(layout.frames, 1)
        if layer or len(shown) == layout.frames:
            return None
        size = layout.rows * layout.cols
        require_whole(self.name, prefill)
        kept = [frame * size + token for frame in shown for token in range(size)]  # on the host: nothing waits
        device = prefill.rows.device
        return Selection(to_device(kept, torch.long, device), compact=prefill.family.renumbers)


@dataclass(frozen=True)
class SmallerFrames(Method):
    """Show the model smaller frames: the largest grid of tokens within the budget that keeps the aspect, about.

    Where the vision tower takes frames of any size it is given smaller ones. Where its size is fixed, and where a
    prompt's video was encoded whole, the tokens of every frame are pooled by area before the LLM: that spares the
    tower nothing. A pooled token stands at the middle of what it covers. Pooling is ours; a checkpoint's own pools
    the patches, here its tokens are pooled again.
    """

    name = "smaller_frames"
    title = "Smaller frames"
    summary = "Floor: smaller frames; where the vision tower takes any size it is spared too."
    where = "before"
    floor = True
    adaptive = True  # whole rows and columns
    color = "#FC24A8"
    reindex_positions = True  # those of a video with smaller frames

    def cells(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the rows and columns that a frame is shown with."""
        return smaller_grid(rows, cols, int(self.retention * rows * cols + 1e-9))

    def view(self, video: VideoShape) -> View:
        cells = self.cells(video.rows, video.cols)
        return View(cells=cells) if video.resizable and cells != (video.rows, video.cols) else WHOLE

    def behind(self, view: View) -> Method:
        return Vanilla() if view != WHOLE else self

    def schedule(self, layers: int, n: int, frames: int = 1) -> Schedule:
        return [(0, frames * max(1, int(self.retention * (n // frames) + 1e-9)))]

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        from sharp_demo.pruning.attention import to_device

        layout = prefill.layout
        high, wide = self.cells(layout.rows, layout.cols)
        if layer or (high, wide) == (layout.rows, layout.cols):
            return None
        tokens = input_frames(self.name, prefill).unflatten(1, (layout.rows, layout.cols))
        pooled = F.adaptive_avg_pool2d(tokens.permute(0, 3, 1, 2), (high, wide)).permute(0, 2, 3, 1).flatten(0, 2)
        middles = [
            (2 * row + 1) * layout.rows // (2 * high) * layout.cols + (2 * col + 1) * layout.cols // (2 * wide)
            for row in range(high)
            for col in range(wide)
        ]
        device, size = tokens.device, layout.rows * layout.cols
        offsets = torch.arange(layout.frames, device=device)[:, None] * size
        centre = to_device(middles, torch.long, device)
        kept = (offsets + centre).flatten()
        slots = torch.arange(size, device=device)
        cell = slots // layout.cols * high // layout.rows * wide + slots % layout.cols * wide // layout.cols
        into = (offsets + centre[cell]).flatten()
        into[kept] = -1
        role = torch.full_like(kept, Role.MERGED)
        return Selection(kept, role, pooled, into, compact=prefill.family.renumbers)
