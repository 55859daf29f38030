"""The command line from outside (exit codes, streams, speed) and its parsing from inside."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharp_demo.cli import main, method_specs, parse_option
from sharp_demo.errors import MethodError
from sharp_demo.records import MethodSpec

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sharp_demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def one_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("layer=3", "layer", 3),
        ("tau_seg=0.85", "tau_seg", 0.85),
        ("posc=false", "posc", False),
        ("score_layer=first", "score_layer", "first"),
        ("x=a=b", "x", "a=b"),
    ],
)
def test_options_are_typed(text: str, name: str, value: object) -> None:
    assert parse_option(text) == (name, value)


@pytest.mark.parametrize("text", ["layer", "=3", ""])
def test_options_without_name_or_value_are_refused(text: str) -> None:
    with pytest.raises(MethodError, match="write name=value"):
        parse_option(text)


def test_method_specs_keep_order_and_options() -> None:
    specs = method_specs("vanilla, sharp", ["sharp.score_layer=first", "sharp.tau_seg=0.8"])
    assert specs == (MethodSpec("vanilla"), MethodSpec("sharp", {"score_layer": "first", "tau_seg": 0.8}))


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ("", [], "no method was named"),
        ("fastv,fastv", [], "named twice"),
        ("fastv", ["layer=3"], "METHOD.OPTION=VALUE"),
        ("fastv", ["sharp.layer=3"], "a method of fastv"),
        ("fastv", ["fastv.layer"], "write name=value"),
    ],
)
def test_wrong_method_arguments_are_refused(methods: str, settings: list[str], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_specs(methods, settings)


def test_flops_prints_paper_tflops_first_and_fast() -> None:
    command = [
        "flops",
        "--config",
        "llava-onevision-7b",
        "--tokens",
        "6272",
        "--method",
        "sharp",
        "--retention",
        "0.282",
    ]
    started = time.perf_counter()
    done = run(*command)
    elapsed = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert float(done.stdout.split()[0]) == pytest.approx(11, rel=0.005)
    assert "27 x 1769" in done.stdout
    assert elapsed < 5  # under a second on an idle machine; the import test below is what keeps it so


@pytest.mark.parametrize("arguments", ['["flops"]', '["flops", "--reference"]', '["--help"]', '["compare", "--help"]'])
def test_light_commands_do_not_import_torch(arguments: str) -> None:
    code = (
        f"import sys; from sharp_demo.cli import main; code = main({arguments}); "
        "heavy = {'torch', 'transformers', 'gradio', 'plotly'} & set(sys.modules); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_flops_matches_fastv_on_demand(capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", "--method", "sharp", "--retention", "0.25", "--match", "flops"]) == 0
    assert "27 x 1769" in capsys.readouterr().out


def test_reference_names_the_cells_that_round_differently(capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", "--reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("yes" in line or "no, " in line for line in lines) == 20
    assert sum("no, " in line for line in lines) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flops", "--retention", "1.5"], "above 0 and at most 1"),
        (["flops", "--retention", "0"], "above 0 and at most 1"),
        (["flops", "--config", "gpt"], "no configuration named 'gpt'; there are: llava-onevision-0.5b"),
        (["flops", "--method", "gpt"], "no method named 'gpt'; there are: vanilla, fastv"),
        (["flops", "--tokens", "0"], "--tokens"),
        (["flops", "--option", "layer=40"], "layer is 40; this model has layers 0 to 27"),
        (["flops", "--option", "tau_seg=0.5"], "tau_seg changes no cost"),
        (["flops", "--option", "score_layer=last"], "must be lookahead or first"),
        (["flops", "--option", "posc=3"], "must be true or false"),
        (["flops", "--match", "flops", "--option", "layer=20"], "ask for a higher retention or match=tokens"),
        (["nonsense"], "nonsense"),
        (["flops", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_exits_2_with_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in one_line(done.stderr)
