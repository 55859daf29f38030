"""`compare`: one video, one question, several methods."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sharp_demo.cli.options import Match, check_output, method_specs, write
from sharp_demo.cli.text import printable, say, stdout, table_of
from sharp_demo.pruning.registry import list_methods

if TYPE_CHECKING:
    from sharp_demo.records import Decoded, Event, MethodFailed, Result, Started


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
        Match,
        typer.Option(
            help="flops: every method costs what FastV (K=2) costs at the asked retention; ttft: with the vision tower"
        ),
    ] = Match.tokens,
    frames: Annotated[int | None, typer.Option(help="frames to sample; default: the model's")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 64,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    timing: Annotated[
        float | None, typer.Option(help="seconds of timing rounds after the answers; 0: none; default: SHARP_TIMING_S")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a method option, METHOD.OPTION=VALUE: sharp.score_layer=first")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write request and results to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="write a report that opens without a network to this file")] = None,
) -> int:
    """Ask one video one question with several methods, side by side."""
    specs = method_specs(methods, set_ or ())
    for path in (json_, html):
        check_output(path)
    from sharp_demo.settings import read_settings

    settings = read_settings()  # wrong ones are told before torch is loaded
    from sharp_demo.memory import importing
    from sharp_demo.records import Request
    from sharp_demo.video import Reader

    request = Request(video, question, specs, retention, match.value, model, frames, max_new_tokens, seed, timing)
    with closing(Reader(settings)) as reader:
        reader.warm()  # it starts while torch is imported
        with importing():
            from transformers.utils import logging

            from sharp_demo.engine.runs import Engine
        logging.disable_progress_bar()
        outcome = _follow(Engine(settings, reader).stream(request))
    _print_comparison(outcome)
    failed = [{"label": one.label, "kind": one.kind, "message": one.message} for one in outcome.failed]
    if json_ is not None:
        from sharp_demo.views.report import comparison_dict

        write(json_, json.dumps(comparison_dict(request.to_dict(), outcome.results, failed), indent=1) + "\n")
    if html is not None:
        from sharp_demo.views.benchmark import load_benchmark
        from sharp_demo.views.report import render_report

        stored = load_benchmark(settings.assets)
        frames_shown = outcome.decoded.frames
        write(html, render_report(request.to_dict(), outcome.results, frames_shown, failed=failed, benchmark=stored))
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
            return f"{event.label}: {printable(event.text)}"
        case records.Timing():
            return f"timing the prefills: round {event.round + 1}, {event.budget_s:g} s in all"
    return ""


def _print_comparison(outcome: Outcome) -> None:
    from sharp_demo.views.summary import baseline_of, figures_of, format_ms

    console, model = stdout(), outcome.started.model
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
        table = table_of("", *(result.label for result in outcome.results))
        untrained = "" if model.trained else " (untrained)"
        table.add_row("Answer" + untrained, *(Text(printable(r.answer) or "(empty)") for r in outcome.results))
        for label in dict.fromkeys(label for figures in sorted(shown, key=len, reverse=True) for label in figures):
            table.add_row(label, *(figures.get(label, "") for figures in shown))
        table.add_section()
        stages = [result.latency_ms.stages for result in outcome.results]
        for name in dict.fromkeys(name for of_method in stages for name in of_method):
            times = [of_method.get(name) for of_method in stages]
            shared = " (shared)" if any(stage is not None and stage.shared for stage in times) else ""
            table.add_row(f"Stage {name}{shared}", *("" if stage is None else format_ms(stage.ms) for stage in times))
        console.print(table)
    for failure in outcome.failed:
        say(f"{failure.label} did not run: {failure.message}", 1)
