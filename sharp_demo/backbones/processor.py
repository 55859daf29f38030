"""Frames and a question to the tensors a model wants, without torchvision.

`VideoPreprocessor` reads the numbers of a checkpoint's preprocessor files and equals transformers' video processors
bit for bit; `Processor` adds the chat template, in which the question is data and never control tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from sharp_demo.backbones.families import FAMILIES, Family, family_of, family_of_type, visual_layout
from sharp_demo.backbones.files import one_line, read_json
from sharp_demo.backbones.qwen2_vl import CLIP_MEAN, CLIP_STD
from sharp_demo.errors import ModelError, QuestionError

TOKENS_PER_FRAME = (
    180  # Qwen2-VL: merged tokens per temporal patch, the setting of ShaRP Table 2 (16 x 180 for 32 frames)
)
BICUBIC = 3
INVISIBLE = "\u200b\u2060\ufeff\u200e\u200f\u061c"  # zero-width space and joiner, byte-order mark, direction marks

# What transformers 5.23's video processor classes assume for keys a checkpoint's file does not have.
COMMON_DEFAULTS: dict[str, Any] = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "rescale_factor": 1 / 255,
    "resample": BICUBIC,
}
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava-onevision": {"size": {"height": 384, "width": 384}},
    "qwen2-vl": {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "cap_pixels_per_frame": False,
        "max_video_tokens": 128_000,
    },
}


@dataclass(frozen=True)
class VideoPreprocessor:
    """The numbers of one checkpoint's video preprocessing, and the preprocessing itself.

    Attributes
    ----------
    family : "llava-onevision" (every frame to `size`) or "qwen2-vl" (aspect kept, cut into patches).
    image_mean, image_std, rescale_factor : per RGB channel, on pixel values times `rescale_factor`.
    size : (height, width) in pixels; None where the size follows the video.
    min_pixels, max_pixels : bounds of one resized frame, in pixels.
    patch_size, temporal_patch_size, merge_size : pixels, frames, and patches along one side of a token.
    cap_pixels_per_frame, max_video_tokens : transformers' optional bound on the whole video.
    tokens_per_frame : bound on the merged tokens of a temporal patch, on top of `max_pixels`; None for no bound.
    """

    family: str
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    size: tuple[int, int] | None = None
    min_pixels: int = 0
    max_pixels: int = 0
    patch_size: int = 1
    temporal_patch_size: int = 1
    merge_size: int = 1
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 128_000
    tokens_per_frame: int | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokens_per_frame: int | None = None) -> VideoPreprocessor:
        """Read a checkpoint folder as transformers does.

        Precedence: `video_processor` in processor_config.json, then video_preprocessor_config.json, then
        preprocessor_config.json; class defaults for missing keys. Raises `ModelError` when there is no such file.
        """
        folder = Path(folder)
        values = read_json(folder / "processor_config.json").get("video_processor")
        for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
            values = values or read_json(folder / name)
        if not values:
            raise ModelError(f"{folder} has no preprocessor_config.json or video_preprocessor_config.json")
        return cls.from_values(_family_of_folder(folder).name, values, tokens_per_frame)

    @classmethod
    def from_official(cls, processor: Any, tokens_per_frame: int | None = None) -> VideoPreprocessor:
        """Take the numbers from a transformers processor, or from its `video_processor`."""
        official = getattr(processor, "video_processor", processor)
        for family in FAMILIES:
            if type(official).__name__ == family.video_processor:
                return cls.from_values(family.name, official.to_dict(), tokens_per_frame)
        known = ", ".join(family.video_processor for family in FAMILIES)
        raise ModelError(f"{type(official).__name__} is not a supported video processor; supported are {known}")

    @classmethod
    def from_values(
        cls, family: str, values: Mapping[str, Any], tokens_per_frame: int | None = None
    ) -> VideoPreprocessor:
        """Build from the keys of a preprocessor file. Raises `ModelError` for a step this code does not do."""
        merged = COMMON_DEFAULTS | CLASS_DEFAULTS[family] | {k: v for k, v in values.items() if v is not None}
        if merged["resample"] != BICUBIC:
            raise ModelError(f"preprocessor: resample={merged['resample']} is not supported, only {BICUBIC} (bicubic)")
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not merged.get(step, True):
                raise ModelError(f"preprocessor: {step}=false is not supported")
        if merged.get("do_center_crop"):
            raise ModelError("preprocessor: do_center_crop=true is not supported")
        size = dict(merged["size"])
        common = cls(
            family=family,
            image_mean=tuple(merged["image_mean"]),
            image_std=tuple(merged["image_std"]),
            rescale_factor=merged["rescale_factor"],
        )
        if "patch_size" not in CLASS_DEFAULTS[family]:
            if not {"height", "width"} <= size.keys():
                raise ModelError(f"preprocessor: size needs height and width, not {sorted(size)}")
            return replace(common, size=(size["height"], size["width"]))
        lowest = merged.get("min_pixels", size.get("shortest_edge", size.get("min_pixels")))
        highest = merged.get("max_pixels", size.get("longest_edge", size.get("max_pixels")))
        if lowest is None or highest is None:
            raise ModelError(f"preprocessor: size needs shortest_edge and longest_edge, not {sorted(size)}")
        copied = ("patch_size", "temporal_patch_size", "merge_size", "cap_pixels_per_frame", "max_video_tokens")
        return replace(
            common,
            min_pixels=lowest,
            max_pixels=highest,
            tokens_per_frame=tokens_per_frame,
            **{key: merged[key] for key in copied},
        )

    @property
    def cell(self) -> int:
        """Pixels along one side of a merged token."""
        return self.patch_size * self.merge_size

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels to which `frames` frames of the given size are resized.

        With `tokens_per_frame` it is the largest size, by the checkpoint's own rule, whose frame has at most that
        many tokens: 640 x 360 becomes 504 x 280, 18 x 10 = 180 tokens per temporal patch.
        """
        if self.size is not None:
            return self.size
        bound = self.max_pixels
        if self.cap_pixels_per_frame:
            total = int(self.max_video_tokens * self.cell**2 * 0.9)
            bound = max(min(bound, total * self.temporal_patch_size // frames), int(self.min_pixels * 1.05))
        best = self._fit(height, width, bound)
        limit = self.tokens_per_frame
        if limit is None or self._tokens(best) <= limit:
            return best
        # Both sides are rounded down to whole tokens, so the bound that fills the limit lies above the limit itself.
        sizes = (self._fit(height, width, cells * self.cell**2) for cells in range(2 * limit, 0, -1))
        fitting = next((size for size in sizes if self._tokens(size) <= limit), None)
        if fitting is None:
            raise ModelError(f"a {width} x {height} frame does not fit into {limit} tokens")
        return fitting

    def grid(self, frames: int, height: int, width: int) -> list[list[int]] | None:
        """`video_grid_thw` of such a video, [[t, h, w]] in patches; None for LLaVA-OneVision."""
        if self.size is not None:
            return None
        high, wide = self.resized(frames, height, width)
        return [[-(-frames // self.temporal_patch_size), high // self.patch_size, wide // self.patch_size]]

    def pixels(self, frames: np.ndarray) -> dict[str, Tensor]:
        """Preprocess uint8 frames [T, H, W, 3].

        Returns `pixel_values_videos`, float32: [1, T, 3, h, w] for LLaVA-OneVision; for Qwen2-VL one row per patch,
        [t * h * w, 3 * temporal_patch_size * patch_size ** 2], with `video_grid_thw`, LongTensor [1, 3].
        """
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
        size = self.resized(len(x), *x.shape[2:])
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        return self.from_resized(x)

    def from_resized(self, x: Tensor) -> dict[str, Tensor]:
        """Normalise and arrange uint8 frames [T, 3, h, w] that already have the model's size; returns as `pixels`."""
        mean = torch.tensor(self.image_mean)[:, None, None] * (1.0 / self.rescale_factor)
        std = torch.tensor(self.image_std)[:, None, None] * (1.0 / self.rescale_factor)
        x = x.float().sub_(mean).div_(std)
        if self.size is not None:
            return {"pixel_values_videos": x[None]}
        patches, grid = self._patchify(x)
        return {"pixel_values_videos": patches, "video_grid_thw": grid}

    def _tokens(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] // self.cell**2

    def _fit(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        try:
            return smart_resize(height, width, self.cell, min(self.min_pixels, max_pixels), max_pixels)
        except ValueError as error:
            raise ModelError(f"a {width} x {height} video cannot be resized for this model: {error}") from None

    def _patchify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # One row per patch, and the patches of one merged token side by side: the order the vision tower merges in.
        step, side, merge = self.temporal_patch_size, self.patch_size, self.merge_size
        missing = -len(x) % step
        x = torch.cat((x, x[-1:].expand(missing, -1, -1, -1)))
        t, h, w = len(x) // step, x.shape[2] // side, x.shape[3] // side
        x = x.view(t, step, 3, h // merge, merge, side, w // merge, merge, side)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [t, h/m, w/m, m, m, rgb, step, side, side]
        return x.reshape(t * h * w, 3 * step * side * side), torch.tensor([[t, h, w]])


@dataclass(frozen=True)
class Processor:
    """Frames and a question to model inputs, and generated ids back to text.

    Attributes
    ----------
    tokenizer, config : of the checkpoint.
    video : its preprocessing.
    chat_template : its Jinja chat template.
    max_question_chars, max_visual_tokens : limits; a request beyond them is refused with the numbers.
    """

    tokenizer: Any
    video: VideoPreprocessor
    config: Any
    chat_template: str
    max_question_chars: int = 500
    max_visual_tokens: int = 12_800

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        tokens_per_frame: int | None = TOKENS_PER_FRAME,
        max_question_chars: int = 500,
        max_visual_tokens: int = 12_800,
    ) -> Processor:
        """Read a local checkpoint folder; no code from the checkpoint is run. Raises `ModelError`."""
        folder = Path(folder)
        family = _family_of_folder(folder)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{folder}: the {family.name} config or tokenizer cannot be read: {one_line(error)}"
            ) from None
        video = VideoPreprocessor.from_pretrained(folder, tokens_per_frame)
        template = _chat_template(folder, tokenizer)
        return cls(tokenizer, video, config, template, max_question_chars, max_visual_tokens)

    def __call__(self, frames: np.ndarray, question: str) -> dict[str, Tensor]:
        """Everything `model.generate(**inputs)` needs for uint8 frames [T, H, W, 3] and a question, batch 1.

        Raises `QuestionError` and `ModelError` as `prompt` does, before any frame is touched.
        """
        grid = self.video.grid(*frames.shape[:3])
        inputs = self.prompt(question, frames=len(frames), grid=grid)
        return inputs | self.video.pixels(frames)

    def prompt(
        self, question: str, *, frames: int, grid: Tensor | Sequence[Sequence[int]] | None = None
    ) -> dict[str, Tensor]:
        """The same without pixels.

        Parameters
        ----------
        question : a person's text; control tokens in it are read as plain text.
        frames : number of sampled frames.
        grid : `video_grid_thw` [1, 3], for Qwen2-VL.

        Returns
        -------
        input_ids, attention_mask [1, n]; for Qwen2-VL also video_grid_thw [1, 3], mm_token_type_ids [1, n] and
        position_ids [4, 1, n] by `Family.positions`.

        Raises
        ------
        QuestionError : empty or too long. ModelError : more visual tokens than `max_visual_tokens`.
        """
        family = family_of(self.config)
        video_grid_thw = None if grid is None else torch.as_tensor(grid)
        shape = None if video_grid_thw is None else video_grid_thw.tolist()
        placeholders = family.placeholders(self.config, frames, shape)
        visual = placeholders - family.newlines
        if visual > self.max_visual_tokens:
            raise ModelError(
                f"{frames} frames need {visual} visual tokens, over the limit of {self.max_visual_tokens}: use fewer"
            )
        ids = self._expand(self._template_ids(clean_question(question, self.max_question_chars)), placeholders)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        visual_layout(self.config, ids, video_grid_thw)  # refuses a template that put the placeholders anywhere else
        return inputs | family.prompt_inputs(self.config, ids, video_grid_thw)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Generated ids to text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _template_ids(self, question: str) -> list[int]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )

    def _expand(self, ids: list[int], placeholders: int) -> Tensor:
        video = family_of(self.config).visual_token_id(self.config)
        if ids.count(video) != 1:
            raise ModelError(f"the chat template wrote {ids.count(video)} video placeholders for one video")
        at = ids.index(video)
        return torch.tensor([ids[:at] + [video] * placeholders + ids[at + 1 :]])


def clean_question(question: str, limit: int = 500) -> str:
    """A question as plain readable text: control characters become spaces, invisible and bidi marks go.

    Raises `QuestionError` when nothing is left, or more than `limit` characters.
    """
    kept = []
    for char in question:
        category = unicodedata.category(char)
        bidi = unicodedata.bidirectional(char) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        if bidi or category == "Cs" or char in INVISIBLE:
            continue
        kept.append(" " if category == "Cc" and char != "\n" else char)
    text = "".join(kept).strip()
    if not text:
        raise QuestionError("the question is empty")
    if len(text) > limit:
        raise QuestionError(f"the question has {len(text)} characters; the limit is {limit}")
    return text


def _family_of_folder(folder: Path) -> Family:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a checkpoint folder: it has no config.json")
    return family_of_type(read_json(folder / "config.json").get("model_type"))


def _chat_template(folder: Path, tokenizer: Any) -> str:
    # transformers' precedence: the processor's files, then the tokenizer's own template.
    legacy = read_json(folder / "chat_template.json").get("chat_template")
    raw = folder / "chat_template.jinja"
    template = legacy or (raw.read_text("utf-8") if raw.is_file() else tokenizer.chat_template)
    if not isinstance(template, str):
        raise ModelError(
            f"{folder} has no chat template (chat_template.json, chat_template.jinja or tokenizer_config.json)"
        )
    return template
