"""`flops`: what a prefill costs, without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sharp_demo.backbones.families import family_of_type, published, published_models
from sharp_demo.backbones.view import VideoShape
from sharp_demo.cli.options import Match, parse_option
from sharp_demo.cli.text import stdout, table_of
from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning.matching import (
    PAPER_ROWS,
    Prompted,
    first_token_tflops,
    flops_matched_retention,
    paper_flops_matched,
    ttft_matched_retention,
)
from sharp_demo.pruning.registry import list_methods
from sharp_demo.pruning.vanilla import Vanilla

if TYPE_CHECKING:
    from sharp_demo.cost import ModelShape
    from sharp_demo.pruning.method import Method


def flops(
    config: Annotated[str, typer.Option(help=f"one of {', '.join(published_models())}")] = PAPER_ROWS[0].config,
    tokens: Annotated[int, typer.Option(min=1, help="visual tokens of the video")] = 6272,
    method: Annotated[str, typer.Option(help=f"one of {', '.join(list_methods())}")] = "sharp",
    retention: Annotated[float, typer.Option(help="share of visual tokens to keep, in (0, 1]")] = 0.2,
    match: Annotated[
        Match,
        typer.Option(
            help="flops: the retention that costs what FastV (K=2) costs at the asked one; ttft: with the vision tower "
            "(needs --option frames=N)"
        ),
    ] = Match.tokens,
    text_tokens: Annotated[int, typer.Option(min=1, help="text tokens of the prompt, for the exact figures")] = 40,
    option: Annotated[list[str] | None, typer.Option(help="a method option, name=value: layer=3")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="print the paper's tables next to our figures, and nothing else")
    ] = False,
) -> None:
    """Print what a prefill costs: paper-convention TFLOPs first, then exact TFLOPs and KV cache."""
    if reference:
        _print_reference()
        return
    from sharp_demo.cost import paper_tflops, shape_named

    shape = shape_named(config)
    if not 0 < retention <= 1:
        raise InputError(f"the retention is {retention:g}; it must be above 0 and at most 1")
    options = dict(parse_option(text) for text in option or ())
    frames = _frames(options.pop("frames", 1), tokens)
    made = _costed(method, retention, options)
    if match is Match.flops and made.active:
        made = replace(made, retention=flops_matched_retention(made, shape, tokens, retention, frames))
    if match is Match.ttft and made.active:
        if frames == 1:
            raise InputError("match=ttft needs --option frames=N: the vision tower is counted by the frame")
        prompt = _prompted(config, shape, tokens, frames, text_tokens)
        made = replace(made, retention=ttft_matched_retention(made, prompt, retention))
    made.check(shape.layers)
    per_layer = made.visual_per_layer(shape.layers, tokens, frames)
    paper = paper_tflops(shape, per_layer, made.mlp_per_layer(per_layer))
    print(f"{paper:.3f} TFLOPs, paper convention (visual tokens only, one multiply-add = 1)")
    stdout().print(_cost_table(config, made, shape, tokens, frames, text_tokens))


def _costed(name: str, retention: float, options: dict[str, Any]) -> Method:
    """Build the method; options that change no cost are refused, since their figures would be the same."""
    from sharp_demo.pruning.registry import make_method, method_class

    known = [option.name for option in fields(method_class(name)) if option.metadata.get("costs")]
    if unknown := set(options) - set(known):
        known.append("frames")  # taken by all: one command line serves several methods
        raise MethodError(f"option {min(unknown)} changes no cost of {name}; flops knows {', '.join(known)}")
    return make_method(name, retention, options)


def _prompted(config: str, shape: ModelShape, tokens: int, frames: int, text_tokens: int) -> Prompted:
    """Return what a first token's cost is counted from: frames that are all different, rows of a single token."""
    checkpoint = published(config).config
    family = family_of_type(checkpoint["model_type"])
    tower = partial(family.tower_shape, checkpoint)
    video = VideoShape(frames, 1, tokens // frames, family.preprocessor.resizable)
    return Prompted(shape, tower, video, encoded=frames, text=text_tokens)


def _frames(frames: Any, tokens: int) -> int:
    if type(frames) is not int or frames < 1 or tokens % frames:
        raise MethodError(f"frames is {frames!r}; {tokens} visual tokens must be a whole number for each frame")
    return frames


def _cost_table(config: str, method: Method, shape: ModelShape, n: int, frames: int, text_tokens: int) -> Table:
    from sharp_demo.cost import TERA, exact_tflops, kv_bytes, paper_tflops

    per_layer = method.visual_per_layer(shape.layers, n, frames)
    mlp = method.mlp_per_layer(per_layer)
    full = [n] * shape.layers
    table = table_of("", method.name, "vanilla", "vanilla / this", "this / vanilla", title=config)

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
    if frames > 1:  # else the frames are not known, and with them what the tower costs
        prompt = _prompted(config, shape, n, frames, text_tokens)
        this, vanilla = (first_token_tflops(one, prompt) for one in (method, Vanilla()))
        row("  to the first token, with the tower", this, vanilla, "{:.3f}".format)
    cache, cache_full = (kv_bytes(shape, [v + text_tokens for v in counts]) for counts in (per_layer, full))
    row("KV cache, bf16", cache, cache_full, lambda size: f"{size / 1e6:.1f} MB")
    row("visual tokens, layer mean", sum(per_layer) / len(per_layer), n, "{:.0f}".format)
    table.caption = (
        f"tokens per layer: {_runs(per_layer)}\n"
        f"exact: 2 x multiply-adds with {text_tokens} text tokens, causal attention, grouped heads, SwiGLU, one row "
        "of logits; without vision tower and merging"
    )
    if method.adaptive:
        table.caption += f"\nnominal: how many tokens {method.name} keeps in each layer depends on the video"
    return table


def _runs(per_layer: list[int]) -> str:
    """Write runs of equal counts as `layers x tokens`."""
    return ", ".join(f"{len(list(run))} x {count}" for count, run in groupby(per_layer))


def _print_reference() -> None:
    from sharp_demo.cost import paper_tflops, shape_named
    from sharp_demo.pruning.registry import method_schedule
    from sharp_demo.pruning.schedule import visual_per_layer

    table = table_of(
        "table", "method", "kept", "printed", "ours", "difference", "rounds to the printed figure", "FLOPs-matched"
    )
    for row in PAPER_ROWS:
        shape = shape_named(row.config)
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
    stdout().print(table)
