"""Frames and a question to the tensors a model wants: the chat template, in which the question is data."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from sharp_demo.backbones.families import family_of, family_of_type
from sharp_demo.backbones.family import Family, Times
from sharp_demo.backbones.files import one_line, read_json
from sharp_demo.backbones.preprocessing import TOKENS_PER_FRAME, Grid, VideoPreprocessor
from sharp_demo.errors import ModelError, QuestionError

INVISIBLE = "\u200b\u2060\ufeff\u200e\u200f\u061c"  # zero-width space and joiner, byte-order mark, direction marks


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

    tokenizer: PreTrainedTokenizerBase
    video: VideoPreprocessor
    config: PreTrainedConfig
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
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is not a checkpoint folder: it has no config.json")
        family = family_of_type(read_json(folder / "config.json").get("model_type"))
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{folder}: the {family.name} config or tokenizer cannot be read: {one_line(error)}"
            ) from None
        video = family.preprocessor.from_folder(folder, tokens_per_frame)
        template = family.chat_template if family.writes_template else _chat_template(folder, tokenizer)
        return cls(tokenizer, video, config, template, max_question_chars, max_visual_tokens)

    @property
    def family(self) -> Family:
        """The checkpoint's family."""
        return family_of(self.config)

    def __call__(self, frames: np.ndarray, question: str, times: Times | None = None) -> dict[str, Tensor]:
        """Everything `model.generate(**inputs)` needs for uint8 frames [T, H, W, 3] and a question, batch 1.

        `times` as for `prompt`.

        Raises `QuestionError` and `ModelError` as `prompt` does, before any frame is touched.
        """
        grid = self.video.grid(*frames.shape[:3])
        inputs = self.prompt(question, frames=len(frames), grid=grid, times=times)
        return inputs | self.video.pixels(frames)

    def prompt(
        self, question: str, *, frames: int, grid: Tensor | Grid | None = None, times: Times | None = None
    ) -> dict[str, Tensor]:
        """The same without pixels.

        Parameters
        ----------
        question : a person's text; control tokens in it are read as plain text.
        frames : number of sampled frames.
        grid : what `video.grid` says of the frames, [1, 3].
        times : seconds of the frames, for families that tell the model of them.

        Returns
        -------
        input_ids, attention_mask [1, n], and what the family adds (`Family.prompt_inputs`).

        Raises
        ------
        QuestionError : empty or too long. ModelError : more visual tokens than `max_visual_tokens`.
        """
        family = self.family
        video_grid_thw = None if grid is None else torch.as_tensor(grid)
        shape = None if video_grid_thw is None else video_grid_thw.tolist()
        visual = family.placeholders(self.config, frames, shape) - family.newlines
        if visual > self.max_visual_tokens:
            raise ModelError(
                f"{frames} frames need {visual} visual tokens, over the limit of {self.max_visual_tokens}: use fewer"
            )
        before, behind = family.message_text(frames, times)
        written = self._template_ids(before, behind + clean_question(question, self.max_question_chars))
        ids = self._expand(written, family.video_ids(self.config, self._encode, frames, shape, times))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        family.layout(self.config, ids, video_grid_thw)  # refuses a template that put the placeholders anywhere else
        return inputs | family.prompt_inputs(self.config, ids, video_grid_thw, times)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Generated ids to text, special tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _template_ids(self, before: str, behind: str) -> list[int]:
        content = [{"type": "video"}, {"type": "text", "text": behind}]
        if before:
            content.insert(0, {"type": "text", "text": before})
        ids: list[int] = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return ids

    def _expand(self, ids: list[int], video_ids: list[int]) -> Tensor:
        video = self.family.visual_token_id(self.config)
        if ids.count(video) != 1:
            raise ModelError(f"the chat template wrote {ids.count(video)} video placeholders for one video")
        at, around = ids.index(video), self.family.replaced_around
        return torch.tensor([ids[: at - around] + video_ids + ids[at + 1 + around :]])


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


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    # transformers' precedence: the processor's files, then the tokenizer's own template.
    legacy = read_json(folder / "chat_template.json").get("chat_template")
    raw = folder / "chat_template.jinja"
    template = legacy or (raw.read_text("utf-8") if raw.is_file() else tokenizer.chat_template)
    if not isinstance(template, str):
        raise ModelError(
            f"{folder} has no chat template (chat_template.json, chat_template.jinja or tokenizer_config.json)"
        )
    return template
