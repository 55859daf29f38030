"""The page's inputs by name: their controls, what an address says of them, the API's parameters, and the checks.

Widget limits bind neither a browser nor an API client, so every request passes `Inputs.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import gradio as gr
from gradio.components import Component
from gradio.exceptions import Error

from sharp_demo import strings
from sharp_demo.errors import InputError, MethodError, ModelError, QuestionError, SharpError, VideoError
from sharp_demo.page.controls import KNOBS, knob_control, knob_field, method_specs
from sharp_demo.page.examples import Example, evidence_for, example_of, load_examples
from sharp_demo.page.menu import method_choices
from sharp_demo.pruning.registry import list_methods
from sharp_demo.records import MethodSpec, Request
from sharp_demo.settings import Settings
from sharp_demo.video.digest import file_digest
from sharp_demo.views.evidence import Evidence

if TYPE_CHECKING:
    from sharp_demo.engine.background import AnyEngine

Values = Mapping[str, Any]  # input name -> what its control holds

# What may be open; the comparison is what opens where an address says nothing.
MODES = ("compare", "ablate", "sweep", "walk", "benchmarks")
MATCHES = ("tokens", "flops", "ttft")
RETENTION_RANGE = (0.01, 1.0)
PERCENT = (2, 100)  # of the page's slider
FRAME_CHOICES = (4, 8, 16, 24, 32, 48, 64)
ANSWER_TOKENS = 64
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Input:
    """One input.

    Parameters
    ----------
    control : creates its component inside the current layout.
    read : its value from an address's text; raises ValueError, StopIteration or SharpError when it is not one.
    key : its name in an address; empty: `name`.
    mode : the only mode that has it; empty: all have it.
    public : creates the component behind the API's parameter of this name; None: the API has none.
    """

    name: str
    control: Callable[[], Component]
    read: Callable[[str], Any]
    key: str = ""
    mode: str = ""
    public: Callable[[], Component] | None = None


class Inputs:
    """Every input of the page. What `allowed` folders hold may be asked about: uploads and the examples."""

    def __init__(self, engine: AnyEngine, settings: Settings, allowed: Sequence[Path]) -> None:
        self.engine, self.settings, self.allowed = engine, settings, allowed
        self.examples = load_examples(settings)
        self.all = (*self._shared(), *_knobs(), *_of_modes())
        self.controls: dict[str, Component] = {}
        self.only = None if settings.uploads else self._digests()

    def place(self, name: str) -> Component:
        """Create an input's control inside the current layout."""
        self.controls[name] = next(one for one in self.all if one.name == name).control()
        return self.controls[name]

    def of(self, mode: str) -> dict[str, Component]:
        """Return the controls that a mode reads, by name."""
        return {one.name: self.controls[one.name] for one in self.all if one.mode in ("", mode)}

    def example_controls(self) -> list[Component]:
        """Return the controls that `choose` sets."""
        return [self.controls[name] for name in ("video", "question", "model")]

    def choose(self, example: Example) -> dict[Component, Any]:
        """Return the values that choosing an example sets; the model only where examples have one of their own."""
        values = (str(example.video), example.question, self.engine.example_model or gr.skip())
        return dict(zip(self.example_controls(), values, strict=True))

    def public(self) -> dict[str, Component]:
        """Create the API's parameters, by name, inside the current layout.

        They are components of their own, so that the page may change without breaking clients.
        """
        return {one.name: one.public() for one in self.all if one.public is not None}

    # -- the address ---------------------------------------------------------------------------------------------

    def query(self, values: Values, mode: str = "compare") -> str:
        """Return the values of a mode's run as a query string. An uploaded video has no name that it could hold."""
        example = example_of(self.examples, values["video"]) if values["video"] else None
        values = {**values, "video": example.video.stem if example else None}
        written = {one.key or one.name: _written(values[one.name]) for one in self.all if _is_set(one.name, values)}
        return urlencode(written if mode == "compare" else {**written, "mode": mode})

    def read(self, query: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Return what an address says, by input name and `mode`, and the names it got wrong."""
        values: dict[str, Any] = {}
        wrong = []
        readers = {one.key or one.name: (one.name, one.read) for one in self.all}
        for key, (name, read) in {**readers, "mode": ("mode", _one_of(MODES))}.items():
            if key in query:
                try:
                    values[name] = read(query[key])
                except (ValueError, StopIteration, SharpError):
                    wrong.append(key)
        return values, wrong

    # -- the checks ----------------------------------------------------------------------------------------------

    def request(self, values: Values) -> Request:
        """Return the checked request of the page's values. Raises InputError."""
        return self.check(
            video=values["video"],
            question=values["question"],
            methods=method_specs(values["methods"] or (), values),
            retention=(values["retention"] or 0) / 100,
            match=values["match"],
            frames=values["frames"],
            model=values["model"],
            max_new_tokens=values["max_new_tokens"],
            seed=values["seed"] or 0,
        )

    def check(
        self,
        *,
        video: str | None,
        question: str | None,
        methods: Sequence[MethodSpec],
        retention: float,
        match: str,
        frames: int | None,
        model: str | None,
        max_new_tokens: int,
        seed: int = 0,
    ) -> Request:
        """Return the engine's request; an InputError names the first thing that is wrong and its limit.

        `retention` is a share in (0, 1]; `frames` None or 0 means the model's default; `model` None the server's.
        """
        settings, models = self.settings, self.engine.models()
        path = check_video(video, self.allowed)
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
        if match not in MATCHES:
            raise InputError(strings.unknown(strings.KINDS["budget"], match, MATCHES))
        if frames:
            _check_range(strings.INPUTS["frames"], frames, 1, settings.max_frames)
        if model is not None and model not in models:
            raise ModelError(strings.unknown(strings.KINDS["model"], model, models))
        _check_range(strings.INPUTS["answer"], max_new_tokens, 1, settings.max_new_tokens)
        if self.only is not None and file_digest(path) not in self.only:
            raise VideoError("refused", strings.NO_UPLOAD)
        return Request(
            video=path,
            question=text,
            methods=tuple(methods),
            retention=float(retention),
            match=match,  # type: ignore[arg-type]
            model=model,
            frames=int(frames) if frames else None,
            max_new_tokens=int(max_new_tokens),
            seed=int(seed),
        )

    def evidence(self, request: Request) -> tuple[Evidence, ...]:
        """Return where the evidence of an example's question is; nothing for other clips and questions."""
        return evidence_for(self.examples, request.video, request.question)

    # -- the list ------------------------------------------------------------------------------------------------

    def _shared(self) -> tuple[Input, ...]:
        settings, engine = self.settings, self.engine
        methods, models = list(settings.methods), engine.models()
        longest, first = settings.max_question_chars, next(iter(self.examples), None)  # the page opens with it
        counts = [0, *(count for count in FRAME_CHOICES if count <= settings.max_frames)]  # 0: the model's default
        labelled = [(str(count) if count else strings.FRAMES_DEFAULT, count) for count in counts]
        return (
            Input(
                "video",
                partial(
                    clip_input,
                    value=str(first.video) if first else None,
                    label=strings.VIDEO,
                    interactive=settings.uploads,
                    sources=["upload", "webcam"] if settings.webcam else ["upload"],
                    height=190,
                    elem_id="clip",
                ),
                lambda text: str(next(one.video for one in self.examples if one.video.stem == text)),
                key="example",
                public=partial(clip_input, label="video", sources=["upload"]),
            ),
            Input(
                "question",
                partial(
                    gr.Textbox,
                    value=first.question if first else "",
                    label=strings.QUESTION,
                    placeholder=strings.QUESTION_PLACEHOLDER,
                    max_length=longest,
                    lines=2,
                    elem_id="question",
                ),
                _short(longest),
                public=partial(gr.Textbox, label="question", max_length=longest),
            ),
            Input(
                "methods",
                lambda: gr.CheckboxGroup(method_choices(), value=methods, label=strings.METHODS, elem_id="methods"),
                _different(list_methods),
                public=lambda: gr.CheckboxGroup(list_methods(), value=methods, label="methods"),
            ),
            Input(
                "retention",
                partial(gr.Slider, *PERCENT, value=20, step=1, label=strings.RETENTION, elem_id="retention"),
                _number(int, *PERCENT),
                public=partial(gr.Number, 0.2, label="retention"),
            ),
            Input(
                "match",
                partial(gr.Radio, strings.MATCH_CHOICES, value="tokens", label=strings.MATCH, info=strings.MATCH_INFO),
                _one_of(MATCHES),
                public=partial(gr.Radio, list(MATCHES), value="tokens", label="match"),
            ),
            Input(
                "frames",
                partial(gr.Dropdown, labelled, value=0, label=strings.FRAMES),
                lambda text: counts[counts.index(int(text))],
                public=partial(gr.Number, 0, precision=0, label="frames"),
            ),
            Input(
                "model",
                partial(gr.Dropdown, models, value=engine.default_model, label=strings.MODEL, elem_id="model"),
                _one_of(models),
                public=partial(gr.Dropdown, models, value=engine.default_model, label="model"),
            ),
            Input(
                "max_new_tokens",
                partial(
                    gr.Slider,
                    1,
                    settings.max_new_tokens,
                    value=min(ANSWER_TOKENS, settings.max_new_tokens),
                    step=1,
                    label=strings.MAX_NEW_TOKENS,
                    elem_id="max-new",
                ),
                _number(int, 1, settings.max_new_tokens),
            ),
            Input(
                "seed",
                partial(gr.Number, 0, label=strings.SEED, precision=0, minimum=0, maximum=LARGEST_SEED),
                _number(int, 0, LARGEST_SEED),
            ),
        )

    def _digests(self) -> set[str]:
        # Without uploads only the examples' own content passes: the page hands out copies of them.
        return {file_digest(str(one.video)) for one in self.examples}


def _knobs() -> tuple[Input, ...]:
    return tuple(
        Input(f"{method}.{name}", partial(knob_control, method, name), _knob(method, name)) for method, name in KNOBS
    )


def _of_modes() -> tuple[Input, ...]:
    plans, steps = ([name for _, name in choices] for choices in (strings.ABLATE_CHOICES, strings.SWEEP_CHOICES))
    return (
        Input(
            "plan",
            partial(gr.Radio, strings.ABLATE_CHOICES, value="one", label=strings.ABLATE_PLAN, elem_id="ablate-plan"),
            _one_of(plans),
            mode="ablate",
        ),
        Input(
            "steps",
            partial(gr.Radio, strings.SWEEP_CHOICES, value="fine", label=strings.SWEEP_STEPS, elem_id="sweep-steps"),
            _one_of(steps),
            mode="sweep",
        ),
    )


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


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    # NaN compares false, so it is refused too.
    if not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(strings.out_of_range(name, value, low, high))


def _is_set(name: str, values: Values) -> bool:
    return values.get(name) is not None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- readers of an address: each returns the value of a text or raises ValueError -----------------------------------


def _one_of(options: Sequence[str]) -> Callable[[str], str]:
    return lambda text: options[options.index(text)]


def _different(options: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [_one_of(options())(name) for name in text.split(",")]
        if len(set(names)) < len(names):
            raise ValueError
        return names

    return read


def _short(longest: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if len(text) > longest:
            raise ValueError
        return text

    return read


def _number(kind: type, low: float | None, high: float | None) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        # NaN compares false, so it is refused too.
        if not (-float("inf") if low is None else low) <= value <= (float("inf") if high is None else high):
            raise ValueError
        return value

    return read


def _knob(method: str, name: str) -> Callable[[str], Any]:
    knob = knob_field(method, name)
    if isinstance(knob.default, bool):
        return lambda text: _one_of(("true", "false"))(text) == "true"
    if knob.metadata["choices"]:
        return _one_of(knob.metadata["choices"])
    return _number(int if isinstance(knob.default, int) else float, knob.metadata["low"], knob.metadata["high"])
