"""python -m sharp_demo compare | bench | evaluate | flops | methods | doctor.

Exit codes: 0 done, 2 bad input (one line on stderr), 1 our fault.

Heavy imports stand inside the commands: `flops` and `--help` answer without loading torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning.registry import list_methods

if TYPE_CHECKING:
    from sharp_demo.cost import ModelShape
    from sharp_demo.pruning.method import Method
    from sharp_demo.records import Decoded, Event, MethodFailed, MethodSpec, Result, Started

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
bench = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Speed benchmarks.")
app.add_typer(bench, name="bench")


class Match(StrEnum):
    tokens = "tokens"
    flops = "flops"


@app.callback()
def root() -> None:
    """Visual-token pruning for video LLMs: many methods, side by side on one video and one question."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's own."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
    try:
        return app(arguments, prog_name="python -m sharp_demo", standalone_mode=False) or 0
    except InputError as error:
        return _say(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped", 130)
    except Exception as error:
        # Usage errors of the parser; its class moves between typer releases, this method does not.
        if hasattr(error, "format_message"):
            return _say(error.format_message(), 2)
        raise  # our fault: Python prints the traceback and exits with 1


def _say(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def parse_option(text: str) -> tuple[str, Any]:
    """Split `name=value`; the value is read as JSON (3, 0.5, true) and otherwise taken as text.

    Raises MethodError when there is no name or no `=`.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise MethodError(f"cannot read the option {text!r}; write name=value, for example layer=3")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or a number or nesting beyond Python's own limits
        return name.strip(), value.strip()


def method_specs(methods: str, settings: Iterable[str]) -> tuple[MethodSpec, ...]:
    """Read `--methods a,b` and `--set a.option=value` into one spec per method, in the order given.

    Raises MethodError when a method is named twice, none is named, or an option names a method that does not run.
    """
    from sharp_demo.records import MethodSpec

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise MethodError("no method was named; give --methods, for example vanilla,fastv,feather,sharp")
    if len(set(names)) < len(names):
        raise MethodError(f"a method is named twice in --methods {methods}")
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in settings:
        key, value = parse_option(text)
        method, dot, option = key.partition(".")
        if not dot or method not in options:
            raise MethodError(
                f"cannot read --set {text}; write METHOD.OPTION=VALUE with a method of {', '.join(names)}"
            )
        options[method][option] = value
    return tuple(MethodSpec(name, options[name]) for name in names)


def _check_output(path: Path | None) -> None:
    """Refuse an output path before the run that would be lost with it."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; name a file")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"cannot write {path}: no permission")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    """Write UTF-8 whatever the locale; an argument that was not valid text loses what cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


# -- compare ---------------------------------------------------------------------------------------------------------


@app.command()
def compare(
    video: Annotated[str, typer.Argument(help="a video file")],
    question: Annotated[str, typer.Argument(help="what to ask about it")],
    model: Annotated[str | None, typer.Option(help="an embedded model's name, a hub id, or a local folder")] = None,
    methods: Annotated[
        str,
        typer.Option(
            help=f"comma-separated, run in this order; there are {', '.join(list_methods())} (`methods` describes them)"
        ),
    ] = "vanilla,fastv,feather,sharp",
    retention: Annotated[float, typer.Option(help="share of visual tokens to keep, in (0, 1]")] = 0.2,
    match: Annotated[
        Match, typer.Option(help="flops: every method costs what FastV (K=2) costs at the asked retention")
    ] = Match.tokens,
    frames: Annotated[int | None, typer.Option(help="frames to sample; default: the model's")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 64,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a method option, METHOD.OPTION=VALUE: sharp.score_layer=first")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write request and results to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="write a report that opens without a network to this file")] = None,
) -> int:
    """Ask one video one question with several methods, side by side."""
    specs = method_specs(methods, set_ or ())
    for path in (json_, html):
        _check_output(path)
    from sharp_demo.settings import read_settings

    settings = read_settings()  # wrong ones are told before torch is loaded
    from transformers.utils import logging

    from sharp_demo.engine import Engine
    from sharp_demo.records import Request

    logging.disable_progress_bar()
    request = Request(video, question, specs, retention, match.value, model, frames, max_new_tokens, seed)
    outcome = _follow(Engine(settings).stream(request))
    _print_comparison(outcome)
    failed = [{"label": one.label, "kind": one.kind, "message": one.message} for one in outcome.failed]
    if json_ is not None:
        from sharp_demo.views.report import comparison_dict

        _write(json_, json.dumps(comparison_dict(request.to_dict(), outcome.results, failed), indent=1) + "\n")
    if html is not None:
        from sharp_demo.views.benchmark import load_benchmark
        from sharp_demo.views.report import render_report

        stored = load_benchmark(settings.assets)
        frames_shown = outcome.decoded.frames
        _write(html, render_report(request.to_dict(), outcome.results, frames_shown, failed=failed, benchmark=stored))
    return max((2 if failure.kind == "refused" else 1 for failure in outcome.failed), default=0)


@dataclass
class Outcome:
    """What the events of one comparison added up to."""

    started: Started
    decoded: Decoded
    results: tuple[Result, ...]
    failed: tuple[MethodFailed, ...]


def _follow(events: Iterable[Event]) -> Outcome:
    """Run a comparison to its end, showing on stderr what it does while that is a terminal."""
    from sharp_demo import records

    console = Console(stderr=True)
    status = console.status("starting") if console.is_terminal else None
    seen: dict[type, Any] = {}
    with status or nullcontext():
        for event in events:
            seen[type(event)] = event
            if status is not None and (line := _progress(event)):
                status.update(Text(line, overflow="ellipsis", no_wrap=True))
    done = seen[records.Done]
    return Outcome(seen[records.Started], seen[records.Decoded], done.results, done.failed)


def _progress(event: Event) -> str:
    from sharp_demo import records

    match event:
        case records.Progress():
            return event.message
        case records.Started():
            return f"{event.model.name} on {event.model.device}"
        case records.Decoded():
            return f"decoded {len(event.frames)} frames; encoding them"
        case records.Encoded():
            return f"encoded {event.tokens} visual tokens"
        case records.MethodStarted():
            return f"{event.label}: prefill"
        case records.Text():
            return f"{event.label}: {_printable(event.text)}"
    return ""


def _printable(text: str) -> str:
    """Answers are data: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _print_comparison(outcome: Outcome) -> None:
    from sharp_demo.views.summary import baseline_of, figures_of, format_ms

    console, model = _stdout(), outcome.started.model
    video = outcome.decoded.info
    console.print(
        Text(
            f"{model.name} on {model.device}, {model.dtype}, {model.attention_backend}; "
            f"{len(outcome.decoded.frames)} frames of {video.get('width')} x {video.get('height')} {video.get('codec')}"
        )
    )
    if model.note:
        console.print(Text(model.note))
    if outcome.results:
        baseline = baseline_of(outcome.results)
        shown = [{figure.label: figure.value for figure in figures_of(r, baseline)} for r in outcome.results]
        table = _table("", *(result.label for result in outcome.results))
        untrained = "" if model.trained else " (untrained)"
        table.add_row("Answer" + untrained, *(Text(_printable(r.answer) or "(empty)") for r in outcome.results))
        for label in max(shown, key=len):
            table.add_row(label, *(figures.get(label, "") for figures in shown))
        table.add_section()
        stages = [result.latency_ms.stages for result in outcome.results]
        for name in dict.fromkeys(name for of_method in stages for name in of_method):
            times = [of_method.get(name) for of_method in stages]
            shared = " (shared)" if any(stage is not None and stage.shared for stage in times) else ""
            table.add_row(f"Stage {name}{shared}", *("" if stage is None else format_ms(stage.ms) for stage in times))
        console.print(table)
    for failure in outcome.failed:
        _say(f"{failure.label} did not run: {failure.message}", 1)


def _find_laboratory(command: str) -> None:
    """Make `lab` importable, which stands beside the package in a checkout and in no wheel; InputError without it."""
    from sharp_demo.settings import ROOT

    if not (ROOT / "lab" / "__init__.py").is_file():
        raise InputError(f"{command} needs a checkout of the repository; the installed package has no laboratory")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


# -- evaluate --------------------------------------------------------------------------------------------------------


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="an embedded model's name, a hub id, or a local folder; several with commas")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="core (the paper's comparison with floors and oracles), all (every method there is), ablation, or "
            "names with options: fastv,random:layer=1"
        ),
    ] = "core",
    retention: Annotated[str, typer.Option(help="shares of visual tokens to keep, each in (0, 1]")] = (
        "0.25,0.2,0.15,0.1,0.05,0.02"
    ),
    match: Annotated[
        Match | None, typer.Option(help="equal tokens, or equal FLOPs (FastV's, K=2, at that retention); default: both")
    ] = None,
    questions: Annotated[int, typer.Option(help="questions to ask, five a clip")] = 400,
    seed: Annotated[int, typer.Option(help="which clips of the split")] = 0,
    split: Annotated[str, typer.Option(help="heldout, or validation for what is still to be decided")] = "heldout",
    jobs: Annotated[int | None, typer.Option(help="processes to share the clips; default: the cores, up to 4")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write all results to this file")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write tables to this file")] = None,
) -> None:
    """Accuracy of methods, floors and oracles on synthetic clips, by retention, kind and place of the evidence."""
    for path in (json_, markdown):
        _check_output(path)
    from sharp_demo.settings import read_settings

    settings = read_settings()
    from transformers.utils import logging

    _find_laboratory("evaluate")
    from lab.accuracy.command import run

    logging.disable_progress_bar()
    run(
        settings,
        model=model,
        methods=methods,
        retention=retention,
        match=match and match.value,
        questions=questions,
        seed=seed,
        split=split,
        jobs=jobs,
        json_path=json_,
        markdown_path=markdown,
    )


# -- bench -----------------------------------------------------------------------------------------------------------


@bench.command()
def prefill(
    config: Annotated[
        str | None,
        typer.Option(
            help="llava-onevision-0.5b, llava-onevision-7b, qwen2-vl-2b or qwen2-vl-7b, built with random weights"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="a checkpoint instead: an embedded model's name, a hub id, or a local folder")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="visual tokens; default: those of 32 sampled frames")] = None,
    text_tokens: Annotated[int, typer.Option(help="other tokens of the prompt")] = 40,
    methods: Annotated[str, typer.Option(help="measured against vanilla, comma-separated; all for every method")] = (
        "vanilla,fastv,feather,sharp"
    ),
    retention: Annotated[str, typer.Option(help="shares of visual tokens to keep, each in (0, 1)")] = "0.235,0.14",
    segments: Annotated[str, typer.Option(help="content-consistent segments of the imagined clip: 1,8,32")] = "8",
    duplicates: Annotated[str, typer.Option(help="share of tokens that repeat the frame before: 0,0.5,0.95")] = "0.5",
    rounds: Annotated[int, typer.Option(help="interleaved rounds; with fewer than 3 no speed-up is shown")] = 5,
    decode_tokens: Annotated[int, typer.Option(help="tokens to decode after each prefill")] = 4,
    vision: Annotated[int, typer.Option(help="times to run the vision tower; 0: a configuration is built without")] = 0,
    layers: Annotated[str, typer.Option(help="all, or fewer decoder layers of a configuration")] = "all",
    threads: Annotated[int, typer.Option(min=0, help="torch CPU threads; 0: all")] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cuda, mps or cpu; default: the settings'")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16, float32; default: the settings'")] = None,
    attention: Annotated[
        str, typer.Option(help="auto, sdpa, flash_attention_2 or eager; several with commas, side by side")
    ] = "auto",
    scale: Annotated[
        str, typer.Option(help="frames to measure at, in place of --tokens: 8,16,32,64,128; fits the exponents")
    ] = "",
    seed: Annotated[int, typer.Option(help="seed of weights and embeddings")] = 0,
    json_: Annotated[Path | None, typer.Option("--json", help="write every sample and figure to this file")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the tables to this file")] = None,
    svg: Annotated[Path | None, typer.Option(help="with --scale: write a plot to this file")] = None,
    profile: Annotated[Path | None, typer.Option(help="write a profile of one prefill of every case")] = None,
) -> None:
    """Time prefills of vanilla and every method, interleaved, and compare with what exact FLOPs allow."""
    for path in (json_, markdown, svg, profile):
        _check_output(path)
    from sharp_demo.settings import read_settings

    settings = read_settings()
    _find_laboratory("bench")
    from lab.speed.prefill_command import run

    run(
        settings,
        model=model,
        config=config,
        layers=layers,
        tokens=tokens,
        text_tokens=text_tokens,
        methods=methods,
        retention=retention,
        segments=segments,
        duplicates=duplicates,
        device=device,
        dtype=dtype,
        attention=attention,
        scale_frames=scale,
        rounds=rounds,
        decode_tokens=decode_tokens,
        vision=vision,
        seed=seed,
        threads=threads,
        json_path=json_,
        markdown_path=markdown,
        svg_path=svg,
        profile_path=profile,
    )


# -- doctor ----------------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> int:
    """Report device, dtype, attention backend, decoders, models and limits; exit 1 if the app cannot run here."""
    from dataclasses import asdict

    from sharp_demo.doctor import can_run, examine
    from sharp_demo.settings import read_settings

    findings = examine(read_settings())
    usable = can_run(findings)
    if json_:
        print(json.dumps({"can_run": usable, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if usable else 1
    table = _table("", "", "", "")
    for before, finding in zip([None, *findings], findings, strict=False):
        first = before is None or before.topic != finding.topic
        table.add_row(finding.topic if first else "", finding.name, finding.status, Text(finding.detail))
    console = _stdout()
    console.print(table)
    print("The app can run here." if usable else "The app cannot run here: see the lines marked fail.")
    return 0 if usable else 1


# -- methods ---------------------------------------------------------------------------------------------------------


@app.command()
def methods() -> None:
    """List every method: its name here, title, year and paper, where it prunes, what it has to see, what it does."""
    from sharp_demo.pruning.method import GROUPS
    from sharp_demo.pruning.registry import METHODS

    for method in METHODS:
        source = ", ".join(str(part) for part in (method.title, method.year, method.paper) if part)
        where = "nothing" if method.where == "nowhere" else GROUPS[method.where][0].lower() + GROUPS[method.where][1:]
        traits = [f"prunes {where}", "sees the question" if method.question_aware else "does not see the question"]
        if method().needs_vision:
            traits.append("needs attention of the vision tower")
        print(f"{method.name}: {source}\n    {'; '.join(traits)}\n    {method.summary}")


# -- flops -----------------------------------------------------------------------------------------------------------


@app.command()
def flops(
    config: Annotated[
        str, typer.Option(help="llava-onevision-0.5b, llava-onevision-7b, qwen2-vl-2b or qwen2-vl-7b")
    ] = ("llava-onevision-7b"),
    tokens: Annotated[int, typer.Option(min=1, help="visual tokens of the video")] = 6272,
    method: Annotated[str, typer.Option(help=f"one of {', '.join(list_methods())}")] = "sharp",
    retention: Annotated[float, typer.Option(help="share of visual tokens to keep, in (0, 1]")] = 0.2,
    match: Annotated[
        Match, typer.Option(help="flops: the retention that costs what FastV (K=2) costs at the asked one")
    ] = Match.tokens,
    text_tokens: Annotated[int, typer.Option(min=1, help="text tokens of the prompt, for the exact figures")] = 40,
    option: Annotated[list[str] | None, typer.Option(help="a method option, name=value: layer=3")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="print the paper's tables beside our figures, and nothing else")
    ] = False,
) -> None:
    """Print what a prefill costs: paper-convention TFLOPs first, then exact TFLOPs and KV cache."""
    if reference:
        _print_reference()
        return
    from sharp_demo.cost import SHAPES, paper_tflops
    from sharp_demo.pruning.matching import flops_matched_retention

    if config not in SHAPES:
        raise InputError(f"no configuration named {config!r}; there are: {', '.join(SHAPES)}")
    if not 0 < retention <= 1:
        raise InputError(f"the retention is {retention:g}; it must be above 0 and at most 1")
    shape, options = SHAPES[config], dict(parse_option(text) for text in option or ())
    frames = _frames(options.pop("frames", 1), tokens)
    made = _costed(method, retention, options)
    if match is Match.flops and made.active:
        made = replace(made, retention=flops_matched_retention(made, shape, tokens, retention, frames))
    made.check(shape.layers)
    per_layer = made.visual_per_layer(shape.layers, tokens, frames)
    paper = paper_tflops(shape, per_layer, made.mlp_per_layer(per_layer))
    print(f"{paper:.3f} TFLOPs, paper convention (visual tokens only, one multiply-add = 1)")
    _stdout().print(_cost_table(config, made, shape, tokens, frames, text_tokens))


def _costed(name: str, retention: float, options: dict[str, Any]) -> Method:
    """Build the method; options that change no cost are refused, since their figures would be the same."""
    from sharp_demo.pruning.registry import make_method, method_class

    known = [option.name for option in fields(method_class(name)) if option.metadata.get("costs")]
    if unknown := set(options) - set(known):
        known.append("frames")  # taken by all: one command line serves several methods
        raise MethodError(f"option {min(unknown)} changes no cost of {name}; flops knows {', '.join(known)}")
    return make_method(name, retention, options)


def _frames(frames: Any, tokens: int) -> int:
    if type(frames) is not int or frames < 1 or tokens % frames:
        raise MethodError(f"frames is {frames!r}; {tokens} visual tokens must be a whole number for each frame")
    return frames


def _stdout() -> Console:
    """A console as wide as the terminal; files and pipes get lines that need no folding."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _table(*columns: str, title: str | None = None) -> Table:
    return Table(
        *columns, title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _cost_table(config: str, method: Method, shape: ModelShape, n: int, frames: int, text_tokens: int) -> Table:
    from sharp_demo.cost import TERA, exact_tflops, kv_bytes, paper_tflops

    per_layer = method.visual_per_layer(shape.layers, n, frames)
    mlp = method.mlp_per_layer(per_layer)
    full = [n] * shape.layers
    table = _table("", method.name, "vanilla", "vanilla / this", "this / vanilla", title=config)

    def row(label: str, this: float, vanilla: float, unit: Callable[[float], str]) -> None:
        table.add_row(label, unit(this), unit(vanilla), f"{vanilla / this:.2f}x", f"{this / vanilla:.1%}")

    row("TFLOPs, paper", paper_tflops(shape, per_layer, mlp), paper_tflops(shape, full), "{:.3f}".format)
    exact = exact_tflops(shape, per_layer, text_tokens, mlp_per_layer=mlp)
    exact_full = exact_tflops(shape, full, text_tokens)
    row("TFLOPs, exact", exact, exact_full, "{:.3f}".format)
    stages = method.overhead_macs(shape, n, text_tokens, frames=frames)
    every_time = sum(macs for stage, macs in stages.items() if stage != "bias_setup")
    if stages:
        row("  with scoring, bias warm", exact + 2 * every_time / TERA, exact_full, "{:.3f}".format)
    if "bias_setup" in stages:
        row("  first use, bias cold", exact + 2 * sum(stages.values()) / TERA, exact_full, "{:.3f}".format)
    cache, cache_full = (kv_bytes(shape, [v + text_tokens for v in counts]) for counts in (per_layer, full))
    row("KV cache, bf16", cache, cache_full, lambda size: f"{size / 1e6:.1f} MB")
    row("visual tokens, layer mean", sum(per_layer) / len(per_layer), n, "{:.0f}".format)
    table.caption = (
        f"tokens per layer: {_runs(per_layer)}\n"
        f"exact: 2 x multiply-adds with {text_tokens} text tokens, causal attention, grouped heads, SwiGLU, one row "
        "of logits; without vision tower and token similarities"
    )
    if method.adaptive:
        table.caption += f"\nnominal: how many tokens {method.name} keeps in each layer depends on the video"
    return table


def _runs(per_layer: list[int]) -> str:
    """Write runs of equal counts as `layers x tokens`."""
    return ", ".join(f"{len(list(run))} x {count}" for count, run in groupby(per_layer))


def _print_reference() -> None:
    from sharp_demo.cost import SHAPES, paper_tflops
    from sharp_demo.pruning.matching import PAPER_ROWS, paper_flops_matched
    from sharp_demo.pruning.registry import method_schedule
    from sharp_demo.pruning.schedule import visual_per_layer

    table = _table(
        "table", "method", "kept", "printed", "ours", "difference", "rounds to the printed figure", "FLOPs-matched"
    )
    for row in PAPER_ROWS:
        shape = SHAPES[row.config]
        stages = method_schedule(row.method, row.retention, row.tokens, shape.layers)
        ours, printed = paper_tflops(shape, visual_per_layer(shape.layers, row.tokens, stages)), float(row.printed)
        rounded = f"{ours:.{len(row.printed.partition('.')[2])}f}"
        matched = paper_flops_matched(row)
        table.add_row(
            f"{row.table}  {row.config}",
            row.method,
            f"{stages[0][1] if stages else row.tokens} = {row.retention:.1%}",
            row.printed,
            f"{ours:.3f}",
            f"{ours / printed - 1:+.2%}",
            "yes" if rounded == row.printed else f"no, {rounded}",
            "" if matched is None else f"{matched * row.tokens:.0f} = {matched:.2%}",
        )
    table.caption = (
        "printed: arXiv 2512.05385v1, Tables 1 and 2, TFLOPs of the visual tokens; kept: after the first drop\n"
        "FLOPs-matched: what costs as much as FastV's row of the same printed figure"
    )
    _stdout().print(table)
