"""Which tokens survived, laid over the frames: masks for the page and still pictures for the report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sharp_demo import strings
from sharp_demo.records import Layout, Result

DROPPED = 0
ROLES = ("dropped", "kept", "register", "filled", "merged", "grid")
SPRITE_SIDE = 320  # longest side of one frame in the sprite, pixels
DIM = 0.28  # brightness of a dropped patch
MERGED_TINT = np.array((0, 14, 40), np.float32)  # added to a patch that was merged into another


@dataclass(frozen=True)
class Sprite:
    """All frames of a clip in one JPEG, row-major, `per_row` in a row; `width` x `height` pixels each."""

    jpeg: bytes
    count: int
    per_row: int
    width: int
    height: int

    def frames(self) -> np.ndarray:
        """Return the frames again, uint8 [count, height, width, 3]."""
        sheet = np.asarray(Image.open(io.BytesIO(self.jpeg)).convert("RGB"))
        cells = (divmod(i, self.per_row) for i in range(self.count))
        return np.stack(
            [sheet[r * self.height : (r + 1) * self.height, c * self.width : (c + 1) * self.width] for r, c in cells]
        )


def make_sprite(frames: np.ndarray, side: int = SPRITE_SIDE, quality: int = 82) -> Sprite:
    """Pack frames, uint8 [T, H, W, 3], into one JPEG with their longest side at most `side` pixels."""
    count, height, width = frames.shape[:3]
    scale = min(1.0, side / max(height, width))
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    per_row = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (per_row * cell_w, math.ceil(count / per_row) * cell_h))
    for i, frame in enumerate(frames):
        row, col = divmod(i, per_row)
        sheet.paste(
            Image.fromarray(frame).resize((cell_w, cell_h), Image.Resampling.BILINEAR), (col * cell_w, row * cell_h)
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=quality)
    return Sprite(buffer.getvalue(), count, per_row, cell_w, cell_h)


def role_mask(result: Result) -> tuple[np.ndarray, list[str]]:
    """Return the fate of every slot as uint8 codes [frames, rows * cols] and the role names they index.

    Code 0 is "dropped"; the names start with `ROLES` and are extended by roles this table does not know.
    """
    names = list(ROLES)
    mask = np.full((result.layout.frames, result.layout.rows * result.layout.cols), DROPPED, dtype=np.uint8)
    for frame, (indices, roles) in enumerate(zip(result.kept, result.role, strict=True)):
        for index, role in zip(indices, roles, strict=True):
            if role not in names:
                names.append(role)
            mask[frame, index] = names.index(role)
    return mask, names


def kept_per_frame(result: Result) -> list[int]:
    """Return how many tokens survived in each layout frame."""
    return [len(indices) for indices in result.kept]


def kept_share(result: Result) -> list[float]:
    """Return the share of tokens that survived in each layout frame, 0 to 1."""
    per_frame = result.layout.rows * result.layout.cols
    return [count / per_frame for count in kept_per_frame(result)]


def scores_by_frame(values: Sequence[float | None], layout: Layout) -> np.ndarray:
    """Sum one score per slot over each frame; None (never scored) counts nothing; float64 [frames]."""
    return np.nansum(np.asarray(values, dtype=np.float64).reshape(layout.frames, -1), axis=1)


def colour_range(values: Sequence[float | None]) -> tuple[float, float]:
    """Return the two ends of a colour scale over scores: their 2nd and 99.5th percentile.

    A few sink tokens hold most of the attention, and debiased are far below zero: a scale from end to end would
    paint all others alike.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).all():
        return 0.0, 0.0
    low, high = (float(end) for end in np.nanquantile(array, (0.02, 0.995)))
    return (low, high) if high > low else (float(np.nanmin(array)), float(np.nanmax(array)))


def encode(values: np.ndarray) -> str:
    """Return an array's values as base64 text, row-major, little-endian."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def frame_of_clip(layout: Layout, sampled: int) -> list[int]:
    """Return, for each layout frame, the index of the sampled frame that stands for it (the first it covers)."""
    return [min(frame * layout.frames_per_token, sampled - 1) for frame in range(layout.frames)]


def nearest_frames(layout: Layout, other: Layout) -> list[int]:
    """Return, for each frame of a layout, the frame of another layout of the same clip that is nearest in time."""
    if layout.frames == other.frames:
        return list(range(layout.frames))  # also where a short clip repeats frames, and so times
    times = np.asarray(other.timestamps)
    return [int(np.abs(times - time).argmin()) for time in layout.timestamps]


def fullest_layout(results: Sequence[Result]) -> Layout:
    """Return the layout with the most frames; a method for which memory was short saw fewer than the others."""
    return max((result.layout for result in results), key=lambda layout: layout.frames)


def mark_of(role: str) -> str:
    """Return the mark of a role, its first letter where it has none; tokens that are just kept or dropped get none."""
    return "" if role in ROLES[:2] else strings.THEATRE["marks"].get(role, role[:1].upper())


def absorbed_mask(result: Result) -> np.ndarray:
    """Return which slots were merged into another token, bool [frames, rows * cols]."""
    mask = np.zeros(result.layout.tokens, bool)
    mask[[source for source, _ in result.merged_into]] = True
    return mask.reshape(result.layout.frames, -1)


def draw_overlay(frame: np.ndarray, kept: np.ndarray, absorbed: np.ndarray | None = None) -> np.ndarray:
    """Dim and hatch the dropped patches of one frame; those merged into others bluish and hatched the other way.

    Parameters
    ----------
    frame : uint8 [H, W, 3].
    kept, absorbed : bool [rows, cols]; the grid spans the whole frame: the processors resize without cropping.
    """
    height, width = frame.shape[:2]
    rows, cols = kept.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    cell = y * rows // height, x * cols // width
    dropped = ~kept[cell]
    merged = dropped & absorbed[cell] if absorbed is not None else np.zeros_like(dropped)
    hatch = np.where(merged, (x - y) % 8 < 2, (x + y) % 8 < 2) & dropped
    out = frame.astype(np.float32)
    out[dropped] *= DIM
    out[merged] += MERGED_TINT
    out[hatch] += 42
    return np.clip(out, 0, 255).astype(np.uint8)


def draw_marks(picture: Image.Image, marks: np.ndarray) -> None:
    """Draw the marks of one frame's tokens, text [rows, cols], into the corners of their cells."""
    pen = ImageDraw.Draw(picture)
    rows, cols = marks.shape
    side = 0.34 * min(picture.width / cols, picture.height / rows)
    for (row, col), mark in np.ndenumerate(marks):
        if mark:
            left, top = col * picture.width / cols + 1, row * picture.height / rows + 1
            _draw_mark(pen, mark, left, top, max(side, 5.0))


def _draw_mark(pen: ImageDraw.ImageDraw, mark: str, left: float, top: float, side: float) -> None:
    """Draw one mark white on black: the usual shapes as shapes, because the font at hand may lack them."""
    right, bottom, middle, centre = left + side, top + side, left + side / 2, top + side / 2
    outlines = {
        "▲": [(middle, top), (right, bottom), (left, bottom)],
        "◆": [(middle, top), (right, centre), (middle, bottom), (left, centre)],
    }
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill="black")
    if mark in "●○":
        pen.ellipse((left, top, right, bottom), fill="white" if mark == "●" else None, outline="white")
    elif mark in "■□":
        pen.rectangle((left, top, right, bottom), fill="white" if mark == "■" else None, outline="white")
    elif mark in outlines:
        pen.polygon(outlines[mark], fill="white")
    elif mark == "+":
        pen.line((left, centre, right, centre), fill="white", width=2)
        pen.line((middle, top, middle, bottom), fill="white", width=2)
    else:
        pen.text((middle, centre), mark, fill="white", anchor="mm", font_size=side + 2)


def filmstrip(frames: np.ndarray, result: Result, width: int = 160, gap: int = 3, whole: Layout | None = None) -> bytes:
    """Draw all layout frames of one result side by side as the page does: dropped, merged, and why kept; JPEG.

    `frames` are the sampled frames, uint8 [T, H, W, 3]; `whole` is the layout that covers all of them, where it is not
    the result's own.
    """
    layout = result.layout
    whole = whole or layout
    shown = frame_of_clip(whole, len(frames))
    mask, names = role_mask(result)
    absorbed = absorbed_mask(result)
    marks = np.array([mark_of(name) for name in names])
    height = max(1, round(frames.shape[1] * width / frames.shape[2]))
    per_row = min(layout.frames, 8)
    sheet = Image.new("RGB", (per_row * (width + gap), math.ceil(layout.frames / per_row) * (height + gap)), "white")
    grid = layout.rows, layout.cols
    for position, place in enumerate(nearest_frames(layout, whole)):
        picture = np.asarray(Image.fromarray(frames[shown[place]]).resize((width, height), Image.Resampling.BILINEAR))
        fates = mask[position].reshape(grid)
        drawn = Image.fromarray(draw_overlay(picture, fates != DROPPED, absorbed[position].reshape(grid)))
        draw_marks(drawn, marks[fates])
        row, col = divmod(position, per_row)
        sheet.paste(drawn, (col * (width + gap), row * (height + gap)))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
