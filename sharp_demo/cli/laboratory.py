"""`evaluate` and `bench`: the laboratory, which stands next to the package in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sharp_demo.backbones.families import published_models
from sharp_demo.cli.options import Match, check_output
from sharp_demo.errors import InputError


def _find_laboratory(command: str) -> None:
    """Make `lab` importable, which stands next to the package in a checkout and in no wheel; InputError without it."""
    from sharp_demo.settings import ROOT

    if not (ROOT / "lab" / "__init__.py").is_file():
        raise InputError(f"{command} needs a checkout of the repository; the installed package has no laboratory")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


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
    world: Annotated[
        str | None,
        typer.Option(
            help="drawn, or tabletop, which needs requirements-world.txt; default: the one the model was trained on"
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="processes to share the clips; default: the cores, up to 4")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write all results to this file")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write tables to this file")] = None,
) -> None:
    """Accuracy of methods, floors and oracles on synthetic clips, by retention, kind and place of the evidence."""
    for path in (json_, markdown):
        check_output(path)
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
        world=world,
        jobs=jobs,
        json_path=json_,
        markdown_path=markdown,
    )


def reproduce(
    what: Annotated[str, typer.Argument(help="table1 to table5, figure2, figure4, figure5, or all")],
    model: Annotated[
        str | None, typer.Option(help="another model than the paper's; an embedded one rehearses on drawn films")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="questions of each task; default: all, in a rehearsal 40")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print GPU hours and disk, and run nothing")] = False,
    methods: Annotated[str, typer.Option(help="further methods, at the cost of every row of FastV: dart,evs")] = "",
    shard: Annotated[str, typer.Option(help="2/8: ask the second eighth of the videos, and score nothing yet")] = "",
    work: Annotated[Path, typer.Option(help="where answers and scores are kept; a second call goes on there")] = Path(
        "runs/paper"
    ),
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results/paper"),
) -> None:
    """Reproduce a table of the ShaRP paper with lmms-eval (make eval-env): plan, ask, score, compare."""
    from sharp_demo.settings import read_settings

    settings = read_settings()
    _find_laboratory("reproduce")
    from lab.paper.command import Options, run

    run(settings, Options(what, model, limit, dry_run, methods, shard, work, out))


def prefill(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(help=f"one of {', '.join(published_models())}, built with random weights"),
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
    ttft: Annotated[
        bool, typer.Option("--ttft", help="end to end: the tower once in every round, the first token and its ceiling")
    ] = False,
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
        check_output(path)
    from sharp_demo.settings import read_settings

    settings = read_settings()
    _find_laboratory("bench")
    from lab.speed.prefill_command import PrefillOptions, run

    run(settings, PrefillOptions(**context.params))
