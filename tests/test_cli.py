"""The command line from outside (exit codes, streams, speed) and its parsing from inside."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sharp_demo import doctor
from sharp_demo.cli import main
from sharp_demo.cli.options import method_specs, parse_option
from sharp_demo.errors import MethodError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.registry import METHODS, list_methods, method_class
from sharp_demo.records import MethodSpec
from sharp_demo.settings import Settings
from tests.video.clips import write_clip, write_sound

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
        ("layer=" + "9" * 5000, "layer", "9" * 5000),
        ("layer=" + "[" * 50_000, "layer", "[" * 50_000),
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


@pytest.mark.parametrize(
    "arguments", ['["flops"]', '["flops", "--reference"]', '["methods"]', '["--help"]', '["compare", "--help"]']
)
def test_light_commands_do_not_import_torch(arguments: str) -> None:
    code = (
        f"import sys; from sharp_demo.cli import main; code = main({arguments}); "
        "heavy = {'torch', 'transformers', 'numpy', 'gradio', 'plotly'} & set(sys.modules); "
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_flops_matches_fastv_on_demand(capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", "--method", "sharp", "--retention", "0.25", "--match", "flops"]) == 0
    assert "27 x 1769" in capsys.readouterr().out


@pytest.mark.parametrize("method", list_methods())
def test_flops_takes_frames_for_every_method_and_says_what_is_nominal(
    method: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["flops", "--method", method, "--option", "frames=32"]) == 0
    out = capsys.readouterr().out
    assert ("nominal: how many tokens" in out) == method_class(method)().adaptive


@pytest.mark.parametrize(
    ("method", "config", "saved"),
    [
        ("fewer_frames", "llava-onevision-7b", True),
        ("smaller_frames", "llava-onevision-7b", False),
        ("smaller_frames", "qwen2-vl-7b", True),
        ("tome", "qwen2-vl-7b", True),
        ("fastv", "qwen2-vl-7b", False),
    ],
)
def test_flops_counts_the_tower_where_frames_are_known(
    method: str, config: str, saved: bool, capsys: pytest.CaptureFixture
) -> None:
    command = ["flops", "--method", method, "--config", config, "--tokens", "2880", "--retention", "0.25"]
    assert main(command) == 0
    assert "with the tower" not in capsys.readouterr().out
    assert main([*command, "--option", "frames=16"]) == 0
    out = capsys.readouterr().out
    first = [float(part) for part in re.search(r"with the tower\D+([\d.]+)\D+([\d.]+)", out).groups()]
    prefill = [float(part) for part in re.search(r"TFLOPs, exact\D+([\d.]+)\D+([\d.]+)", out).groups()]
    towers = [whole - part for whole, part in zip(first, prefill, strict=True)]
    assert (towers[0] < 0.9 * towers[1]) == saved


def test_methods_lists_every_method_with_what_it_needs(capsys: pytest.CaptureFixture) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert (
        "holitom: HoliTom, 2025, https://arxiv.org/abs/2505.21334\n"
        "    prunes before and inside the LLM; sees the question; needs attention of the vision tower\n"
        "    Static patches merged"
    ) in out
    assert "\n    prunes nothing; does not see the question\n" in out
    for name in list_methods():
        assert f"{name}: " in out


def test_flops_takes_the_options_that_change_a_cost_and_refuses_others(capsys: pytest.CaptureFixture) -> None:
    for method in METHODS:
        for option in fields(method):
            costs, value = option.metadata["costs"], json.dumps(option.default)
            code = main(["flops", "--method", method.name, "--option", f"{option.name}={value}"])
            assert code == (0 if costs else 2), option.name
            assert costs or f"changes no cost of {method.name}; flops knows" in capsys.readouterr().err


def test_flops_of_a_budget_per_frame(capsys: pytest.CaptureFixture) -> None:
    """Table 3: VisionZip at 12.8 % is 25 of 196 tokens in each of 32 frames and costs 4.3 T."""
    assert main(["flops", "--method", "visionzip", "--retention", "0.128", "--option", "frames=32"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4.321 TFLOPs")
    assert "28 x 800" in out
    (paper,) = (line.split() for line in out.splitlines() if line.strip().startswith("TFLOPs, paper"))
    assert paper[2:] == ["4.321", "40.765", "9.43x", "10.6%"]  # vanilla has all tokens in its first layer too


@pytest.mark.parametrize(
    ("method", "retention", "tflops", "runs"),
    [
        ("visionzip+sharp", "0.124", 4.294, "1 x 1248, 27 x 778"),
        ("holitom", "0.15", 4.268, "18 x 960, 10 x 480"),
        ("holitom+sharp", "0.15", 4.268, "18 x 960, 10 x 480"),
    ],
)
def test_flops_of_table_3(method: str, retention: str, tflops: float, runs: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", "--method", method, "--retention", retention, "--option", "frames=32"]) == 0
    out = capsys.readouterr().out
    assert float(out.split()[0]) == tflops
    assert runs in out
    assert "40.765" in out  # vanilla has all tokens, although fewer enter this method's first layer


def test_reference_names_the_cells_that_round_differently(capsys: pytest.CaptureFixture) -> None:
    assert main(["flops", "--reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("yes" in line or "no, " in line for line in lines) == 26
    assert sum("no, " in line for line in lines) == 11
    assert sum("= 29.89%" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flops", "--retention", "1.5"], "above 0 and at most 1"),
        (["flops", "--retention", "0"], "above 0 and at most 1"),
        (["flops", "--config", "gpt"], "unknown configuration 'gpt'; known are llava-onevision-0.5b"),
        (["flops", "--method", "gpt"], "no method named 'gpt'; the methods are vanilla, fastv"),
        (["flops", "--tokens", "0"], "--tokens"),
        (["flops", "--option", "layer=40"], "prunes before layer 40, but this model has layers 0 to 27"),
        (["flops", "--option", "layer=2.0"], "layer is '2.0'; it must be a whole number"),
        (["flops", "--option", "layer=true"], "layer is 'True'; it must be a whole number"),
        (["flops", "--option", "layer=0"], "sharp: layer is 0; it must be at least 1"),
        (
            ["flops", "--option", "tau_seg=0.5"],
            "tau_seg changes no cost of sharp; flops knows posc, layer, score_layer, frames",
        ),
        (
            ["flops", "--method", "vanilla", "--option", "layer=3"],
            "layer changes no cost of vanilla; flops knows frames",
        ),
        (["flops", "--option", "score_layer=last"], "must be one of lookahead, first"),
        (["flops", "--option", "posc=3"], "must be true or false"),
        (
            ["flops", "--method", "pdrop", "--option", "cuts=quarters"],
            "cuts is 'quarters'; it must be one of comparison, official",
        ),
        (["flops", "--method", "pdrop", "--option", "decay=2"], "decay is 2; it must be at most 1"),
        (["flops", "--method", "framefusion", "--retention", "0.03"], "it must be above 1/28 = 0.0357"),
        (["flops", "--method", "visionzip", "--option", "frames=5"], "frames is 5; 6272 visual tokens must be a whole"),
        (["flops", "--match", "flops", "--option", "layer=20"], "ask for a higher retention or match=tokens"),
        (
            ["flops", "--method", "holitom", "--option", "inner_layer=28"],
            "prunes before layer 28, but this model has",
        ),
        (["flops", "--method", "holitom", "--option", "drop=1"], "drop is 1; it must be at most 0.99"),
        (["nonsense"], "nonsense"),
        (["flops", "--match", "ttft"], "needs --option frames=N"),
        (["flops", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_exits_2_with_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in one_line(done.stderr)


# -- compare -----------------------------------------------------------------------------------------------------------

Compare = Callable[..., int]


@pytest.fixture
def compare(tiny_llava_folder: Path) -> Compare:
    """`compare` on the tiny checkpoint, four frames and two answer tokens; more arguments come last and win."""

    def run_compare(video: Path | str, *arguments: str) -> int:
        fixed = ["--model", str(tiny_llava_folder), "--frames", "4", "--max-new-tokens", "2", "--timing", "0.01"]
        return main(["compare", str(video), "What is shown?", *fixed, *arguments])

    return run_compare


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "h264.mp4", frames=8)


def test_compare_runs_four_methods_and_writes_json_and_report(
    compare: Compare, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert compare(clip, "--json", str(out), "--html", str(page)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    written = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert written["request"]["question"] == "What is shown?"
    assert [result["method"] for result in written["results"]] == ["vanilla", "fastv", "feather", "sharp"]
    for result in written["results"]:
        assert result["tokens"]["visual"] == 36
        assert result["tokens"]["kept"] == (36 if result["method"] == "vanilla" else 7)
        assert sum(map(len, result["kept"])) == result["tokens"]["kept"]
        assert result["method"] in printed.out
        assert result["latency_ms"]["total"] > 0
        assert result["latency_ms"]["rounds"]
        assert (result["speedup"] is None) == (result["method"] == "vanilla")
    for figure in ("Prefill speed-up", "First token, speed-up", "If the prefill were free"):
        assert figure in printed.out
    assert "What is shown?" in page.read_text()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("hevc.mp4", "hevc", {}),
        ("vp9.webm", "vp9", {}),
        ("av1.mp4", "av1", {}),
        ("rotated.mp4", "h264", {"rotation": 90}),
    ],
)
def test_compare_reads_every_codec(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, codec: str, options: dict
) -> None:
    video, out = write_clip(tmp_path / name, codec, frames=6, **options), tmp_path / "out.json"
    assert compare(video, "--methods", "vanilla,sharp", "--json", str(out)) == 0, capsys.readouterr().err
    assert len(json.loads(out.read_text())["results"]) == 2
    shown = capsys.readouterr().out
    assert codec in shown
    assert ("120 x 160" if options else "160 x 120") in shown


def test_match_flops_gives_sharp_more_tokens_than_fastv(compare: Compare, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert compare(clip, "--methods", "fastv,sharp", "--retention", "0.25", "--match", "flops", "--json", str(out)) == 0
    fastv, sharp = json.loads(out.read_text())["results"]
    assert fastv["tokens"]["kept"] == 9 < sharp["tokens"]["kept"]
    assert sharp["tflops"]["paper"] == pytest.approx(fastv["tflops"]["paper"], rel=0.05)


def test_method_options_and_seed_reach_the_methods(compare: Compare, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--set", "sharp.score_layer=first", "--set", "sharp.segm_layers=0", "--seed", "7"]
    assert compare(clip, "--methods", "sharp,random", *options, "--json", str(out)) == 0
    sharp, floor = json.loads(out.read_text())["results"]
    assert (sharp["config"]["score_layer"], sharp["config"]["segm_layers"]) == ("first", [0])
    assert floor["config"]["seed"] == 7


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a video.\n" * 50)
    elif kind == "truncated":
        data = write_clip(path, frames=12).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "audio":
        write_sound(path)
    elif kind == "bomb":
        write_clip(path, frames=[np.zeros((8192, 8192, 3), np.uint8)], size=(8192, 8192))
    return path


BAD_FILES = {
    "missing": ("no file 'missing.mp4'",),
    "empty": ("'empty.mp4' is empty", "0 bytes"),
    "text": ("'text.mp4' is a text file", "MP4, MOV, WebM"),
    "truncated": ("'truncated.mp4'", "cut off"),
    "audio": ("'audio.mp4' holds only sound", "video track"),
    "bomb": ("8192 x 8192", "4096"),
}


def test_bad_files_exit_2_with_distinct_messages(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    messages = set()
    for kind, words in BAD_FILES.items():
        assert compare(bad_file(kind, tmp_path)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        line = one_line(printed.err)
        assert all(word in line for word in words), line
        messages.add(line.replace(kind, ""))
    assert len(messages) == len(BAD_FILES)


def test_a_bad_file_leaves_no_traceback_and_loads_no_model(tmp_path: Path) -> None:
    done = run("compare", str(bad_file("empty", tmp_path)), "What?", "--model", "no/such-model")
    assert done.returncode == 2
    assert "is empty (0 bytes)" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "fastv,gpt"], "no method named 'gpt'; the methods are vanilla"),
        (["--methods", ""], "no method was named"),
        (["--retention", "0"], "retention is 0; it must be above 0"),
        (["--frames", "100000"], "frames is 100000; it must be between 1 and"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--set", "sharp.lambda=1"], "there is no option 'lambda'; its options are"),
        (["--set", "sharp.score_layer=last"], "must be one of lookahead, first"),
        (["--set", "fastv.layer=99"], "prunes before layer 99, but this model has layers 0 to"),
        (["--model", "no such model"], "unknown model 'no such model'"),
        (["--json", "/nonexistent/folder/out.json"], "there is no folder /nonexistent/folder"),
        (["--html", "."], "it is a folder; name a file"),
        (["--json", "a" * 300], "cannot write aaa"),
        (["--json", "/dev/full"], "cannot write /dev/full: No space left on device"),
        (["--model", "a" * 300], "unknown model 'aaa"),
        (["--retention", "nan"], "retention is nan; it must be above 0"),
        (["--set", "sharp.segm_layers=[null]"], "whole numbers separated by commas"),
        (["--set", "sharp.penalty=1e300"], "penalty is 1e+300; it must be at most 100"),
        (["--methods", "random", "--seed", str(2**63)], "seed is 9.22337e+18; it must be at most"),
    ],
)
def test_bad_requests_exit_2_with_one_line(
    compare: Compare, clip: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert compare(clip, *arguments) == 2
    assert message in one_line(capsys.readouterr().err)


def test_arguments_that_are_no_text_are_still_written(clip: Path, tiny_llava_folder: Path, tmp_path: Path) -> None:
    """Bytes that are not UTF-8, on a machine whose locale cannot write them either."""
    video = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(clip, video)
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    options = ["--model", tiny_llava_folder, "--frames", "2", "--max-new-tokens", "1", "--methods", "vanilla"]
    command = [sys.executable, "-m", "sharp_demo", "compare", video, "gr\u00f6\u00dfer \u732b?".encode() + b"\xff"]
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*command, *options, "--json", out, "--html", page], cwd=ROOT, env={**os.environ, **ascii_only}, timeout=120
    )
    assert done.returncode == 0
    assert json.loads(out.read_text("utf-8"))["results"][0]["method"] == "vanilla"
    assert "</html>" in page.read_text("utf-8")


def test_an_empty_question_exits_2(clip: Path, tiny_llava_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(clip), "  ", "--model", str(tiny_llava_folder)]) == 2
    assert "question" in one_line(capsys.readouterr().err)


def test_a_wrong_setting_exits_2(
    compare: Compare, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARP_PORT", "door")
    assert compare(clip) == 2
    assert "SHARP_PORT is 'door'" in one_line(capsys.readouterr().err)


def test_a_method_that_breaks_exits_1_and_spares_the_others(
    compare: Compare, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(FastV, "select", broken)
    out = tmp_path / "out.json"
    assert compare(clip, "--methods", "fastv,feather", "--json", str(out)) == 1
    printed = capsys.readouterr()
    assert "fastv did not run" in printed.err
    assert "planted" not in printed.out
    assert [result["method"] for result in json.loads(out.read_text())["results"]] == ["feather"]


def test_answers_cannot_drive_the_terminal(
    compare: Compare, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.decode", lambda *_, **__: "red\x1b[2J[bold]blue")
    assert compare(clip, "--methods", "vanilla") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "red [2J[bold]blue" in shown


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_on_this_machine(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["can_run"] is True
    assert found["torch"]["status"] == "ok"
    assert "SHARP_MAX_UPLOAD_MB" in found
    assert {"decord", "av", "cv2", "attention", "tiny-llava-onevision"} <= set(found)
    assert main(["doctor"]) == 0
    assert "The app can run here." in capsys.readouterr().out


def test_doctor_says_no_when_nothing_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "DECODERS", {"no_such_decoder": "none", "av": "PyAV"})
    findings = {finding.name: finding for finding in doctor.examine(Settings(assets=tmp_path))}
    assert not doctor.can_run(list(findings.values()))
    assert findings["no-such-package"].status == "fail"
    assert findings["no_such_decoder"].status == "warn"
    assert "No module named" in findings["no_such_decoder"].detail


def test_doctor_without_any_model_fails(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in doctor.examine(Settings(assets=tmp_path, device="cpu"))}
    assert findings["default"].status == "fail"
    assert "SHARP_MODEL" in findings["default"].detail


def test_doctor_reports_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    asked = Settings(device="mps", assets=tmp_path)
    finding = next(finding for finding in doctor.examine(asked) if finding.topic == "device")
    assert (finding.status, "mps" in finding.detail) == ("fail", True)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SHARP_PORT", "door", "SHARP_PORT is 'door'"),
        ("SHARP_METHODS", "vanilla,gpt", "no method named 'gpt'; the methods are vanilla, fastv"),
        ("SHARP_THREADS", "-1", "SHARP_THREADS is '-1'"),
    ],
)
def test_wrong_settings_of_the_app_are_one_line(variable: str, value: str, message: str) -> None:
    environment = {**os.environ, variable: value}
    done = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in one_line(done.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "code", "says"),
    [
        ("SHARP_METHODS", "vanilla,gpt", 1, "no method named 'gpt'; the methods are vanilla, fastv"),
        ("SHARP_PORT", "door", 2, "SHARP_PORT is 'door'"),
        ("SHARP_DEVICE", "abacus", 2, "SHARP_DEVICE is 'abacus'"),
    ],
)
def test_doctor_names_a_setting_that_the_app_would_not_start_with(
    variable: str, value: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(doctor, "DECODERS", {})
    monkeypatch.setenv(variable, value)
    assert main(["doctor", "--json"]) == code
    shown = capsys.readouterr()
    if code == 2:
        assert says in one_line(shown.err)
        assert "correct it or unset it" in shown.err
        return
    wrong = [one for one in json.loads(shown.out)["findings"] if one["name"] == variable and one["status"] == "fail"]
    assert len(wrong) == 1
    assert says in wrong[0]["detail"]
    assert "set it to some of these" in wrong[0]["detail"]


def test_doctor_looks_at_the_disk_that_uploads_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: asked.append(Path(path)) or SimpleNamespace(free=3e9))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "elsewhere" / "uploads"))
    found = {finding.name: finding for finding in doctor._disk(Settings(upload_quota_mb=2000, min_free_mb=500))}
    assert asked == [Path(tempfile.gettempdir()), tmp_path], "the folder itself is made when the app starts"
    assert found["uploads"].status == "ok"
    assert str(tmp_path / "elsewhere" / "uploads") in found["uploads"].detail
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "elsewhere").write_text("a file where the folder should be")
    (refused,) = [finding for finding in doctor._disk(Settings()) if finding.name == "uploads"]
    assert refused.status == "fail"
    assert "GRADIO_TEMP_DIR" in refused.detail


def test_doctor_tells_a_host_what_is_wrong_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_models", lambda settings: [])
    monkeypatch.setattr(doctor, "DECODERS", {})
    monkeypatch.setenv("SHARP_QEUE_SIZE", "5")
    monkeypatch.delenv("SPACE_ID", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = Settings(port=other.getsockname()[1], upload_quota_mb=1e12)
        findings = {finding.name: finding for finding in doctor.examine(busy)}
    for name, advice in (
        ("address", "SHARP_PORT"),
        ("uploads", "SHARP_UPLOAD_QUOTA_MB"),
        ("SHARP_QEUE_SIZE", "did you mean SHARP_QUEUE_SIZE?"),
    ):
        assert findings[name].status == "warn", name
        assert advice in findings[name].detail
    assert findings["names"].status == "ok"
    assert doctor.can_run(list(findings.values()))
    public = {finding.name: finding for finding in doctor._server(Settings(host="0.0.0.0", port=busy.port))}
    assert (public["names"].status, public["address"].status) == ("warn", "ok")
    assert "SHARP_ALLOWED_HOSTS" in public["names"].detail
    named = doctor._server(Settings(host="0.0.0.0", port=busy.port, allowed_hosts="demo.example"))
    assert [finding.status for finding in named if finding.name == "names"] == ["ok"]
