"""The public surface: what `import sharp_demo as sharp` gives, the pages' examples, and the report of a run."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sharp_demo as sharp
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.errors import ModelError
from sharp_demo.pruning.outcome import Run
from sharp_demo.pruning.registry import METHODS

ROOT = Path(__file__).resolve().parent.parent


def test_every_registered_method_is_a_public_name() -> None:
    public = {name for name in sharp.__all__ if isinstance(getattr(sharp, name), type)}
    assert {method.__name__ for method in METHODS} >= public - {"Backbone", "Clip", "Settings"}
    assert {method.__name__ for method in METHODS} <= {*dir(sharp)}
    assert all(getattr(sharp, method.__name__) is method for method in METHODS)
    assert list(sharp.methods().values()) == list(METHODS)
    assert {*sharp.__all__} <= {*dir(sharp)}
    with pytest.raises(AttributeError, match="no attribute 'FastW'"):
        _ = sharp.FastW


def test_the_import_and_its_names_are_free_of_torch() -> None:
    code = "import sharp_demo as sharp, sys; dir(sharp); sharp.decode; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_code_on_the_page_runs(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line]) == 6
    monkeypatch.chdir(ROOT)
    exec(compile("\n".join(blocks), page, "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert "K" in printed[0]
    assert printed[1] == "ShaRP: 157 of 784 visual tokens kept (20.0%)"
    assert len(printed[2].partition(": ")[2].split()) == 16
    assert printed[3].startswith("stages: ")


def test_a_method_takes_a_backbone_or_a_model_and_its_processor(tiny: sharp.Backbone) -> None:
    frames = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8).numpy()
    runs = []
    for given in ((tiny,), (tiny.model, tiny.processor)):
        with sharp.ShaRP(retention=0.5)(*given) as run:
            answer = sharp.answer(tiny, frames, "What is it?", max_new_tokens=3)
        runs.append((answer, run.kept.tolist()))
    assert runs[0] == runs[1]


def test_an_embedded_model_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^tiny-qwen2-vl is not in .*: set SHARP_ASSETS to .*$"):
        sharp.load("tiny-qwen2-vl", sharp.Settings(assets=tmp_path))


def made_run() -> Run:
    run = Run(sharp.FastV(retention=0.5), torch.device("cpu"))
    run.begin(VisualLayout(torch.arange(8), frames=2, rows=2, cols=2, frames_per_token=1, length=9), layers=4)
    run.kept = torch.tensor([0, 1, 3, 6])
    return run


def test_a_report_tells_what_was_kept_of_every_frame() -> None:
    run = made_run()
    with run.stopwatch("<score>"):
        pass
    report = run.report()
    assert report.per_frame == (3, 1)
    lines = str(report).splitlines()
    assert lines[:2] == ["FastV: 4 of 8 visual tokens kept (50.0%)", "per frame, of 4: 3 1"]
    page = report._repr_html_()
    assert "&lt;score&gt;" in page
    assert "<score>" not in page
    assert re.findall(r"<title>(.*?)</title>", page) == [
        "frame 1: 3 of 4 tokens kept",
        "frame 2: 1 of 4 tokens kept",
    ]
    assert [path.count("M") for path in re.findall(r'<path d="(.*?)"', page)] == [3, 1]
    assert html.unescape(page).count("<svg") == 2


def test_a_report_says_why_nothing_was_pruned() -> None:
    run = Run(sharp.FastV(), torch.device("cpu"))
    assert str(run.report()) == "FastV: no video was seen"
    run.skip("The prompt holds no video")
    assert str(run.report()) == "FastV: The prompt holds no video, so nothing was pruned."
    assert "<svg" not in run.report()._repr_html_()
