"""Checks of what a browser or an API client sent: widget limits bind neither of them."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.errors import InputError, MethodError, ModelError, QuestionError, VideoError
from sharp_demo.pruning.registry import list_methods
from sharp_demo.records import MethodSpec, Request
from sharp_demo.settings import Settings
from sharp_demo.views.evidence import Evidence

RETENTION_RANGE = (0.01, 1.0)
FRAME_CHOICES = (4, 8, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Example:
    """One example clip with its question and a line on what to look for."""

    video: Path
    question: str
    note: str
    evidence: tuple[Evidence, ...] = ()


def load_examples(settings: Settings) -> list[Example]:
    """Return the examples listed in `assets/clips/examples.json` whose files are there."""
    folder = settings.assets / "clips"
    listing = folder / "examples.json"
    if not listing.is_file():
        return []
    rows = json.loads(listing.read_text("utf-8"))
    examples = [
        Example(
            folder / row["video"],
            row["question"],
            row.get("note", ""),
            tuple(
                Evidence(**{**one, "box": tuple(one["box"]) if "box" in one else None})
                for one in row.get("evidence", ())
            ),
        )
        for row in rows
    ]
    return [example for example in examples if example.video.is_file()]


def frame_choices(settings: Settings) -> list[int]:
    """Return the frame counts the page offers; 0 is the model's default."""
    return [0, *(count for count in FRAME_CHOICES if count <= settings.max_frames)]


def example_of(examples: Sequence[Example], video: str) -> Example | None:
    """Return the example whose film this file is, byte for byte; None for an upload, or one that is gone by now."""
    if not Path(video).is_file():
        return None
    return next((one for one in examples if filecmp.cmp(one.video, video, shallow=False)), None)


def evidence_for(examples: Sequence[Example], video: str, question: str) -> tuple[Evidence, ...]:
    """Return where the evidence is when this very clip and question are an example's; else nothing is known."""
    example = example_of([one for one in examples if one.question == question], video)
    return example.evidence if example else ()


def clip_input(**kwargs: Any) -> gr.Video:
    """Return a video upload that passes the file on untouched, without ffmpeg, and never fetches an address."""
    video = gr.Video(format=None, include_audio=True, **kwargs)
    take_local = video.async_move_resource_to_block_cache

    async def refuse_addresses(path: str | Path | None) -> str | None:
        if path is not None and str(path).lower().startswith(("http:", "https:", "//")):
            raise Error(strings.NO_URL, print_exception=False)
        return await take_local(path)

    video.async_move_resource_to_block_cache = refuse_addresses
    return video


def check_video(path: str | None, allowed: Sequence[Path]) -> str:
    """Return the path of an uploaded or example video; VideoError when it is neither."""
    if not path:
        raise VideoError("missing", strings.NO_VIDEO)
    if "://" in path:
        raise VideoError("url", strings.NO_URL)
    resolved = Path(path).resolve()
    if not any(resolved.is_relative_to(folder.resolve()) for folder in allowed):
        raise VideoError("missing", strings.NOT_UPLOADED)
    return str(resolved)


def check_request(
    *,
    video: str | None,
    question: str | None,
    methods: Sequence[MethodSpec],
    retention: float,
    match: str,
    frames: int | None,
    model: str | None,
    models: Sequence[str],
    allowed: Sequence[Path],
    settings: Settings,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Request:
    """Return the engine's request; an InputError names the first thing that is wrong and its limit.

    `retention` is a share in (0, 1]; `frames` None or 0 means the model's default; `model` None the server's.
    """
    path = check_video(video, allowed)
    text = (question or "").strip()
    if len(text) > settings.max_question_chars:
        raise QuestionError(strings.too_long(settings.max_question_chars, len(text)))
    if not methods:
        raise MethodError(strings.NO_METHOD)
    for spec in methods:
        if spec.name not in list_methods():
            raise MethodError(strings.unknown(strings.KINDS["method"], spec.name, list_methods()))
    for position, spec in enumerate(methods):
        if any((spec.name, spec.options) == (other.name, other.options) for other in methods[:position]):
            raise MethodError(strings.twice(spec.name))
    _check_range(strings.INPUTS["retention"], retention, *RETENTION_RANGE)
    if match not in ("tokens", "flops"):
        raise InputError(strings.unknown(strings.KINDS["budget"], match, ("tokens", "flops")))
    if frames:
        _check_range(strings.INPUTS["frames"], frames, 1, settings.max_frames)
    if model is not None and model not in models:
        raise ModelError(strings.unknown(strings.KINDS["model"], model, models))
    extra: dict[str, Any] = {}
    if max_new_tokens is not None:
        _check_range(strings.INPUTS["answer"], max_new_tokens, 1, settings.max_new_tokens)
        extra["max_new_tokens"] = int(max_new_tokens)
    return Request(
        video=path,
        question=text,
        methods=tuple(methods),
        retention=float(retention),
        match=match,  # type: ignore[arg-type]
        model=model,
        frames=int(frames) if frames else None,
        seed=int(seed),
        **extra,
    )


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    # NaN compares false, so it is refused too.
    if not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(strings.out_of_range(name, value, low, high))
