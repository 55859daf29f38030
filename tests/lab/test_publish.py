"""The published files: what is written, when it is made again, and the validation log."""

import json
from pathlib import Path

import pytest

from lab import provenance, publish
from lab.accuracy.variants import parse_variants
from lab.tables.accuracy import OFF_NOTE, accuracy_table, differences_to
from lab.tables.pages import page
from sharp_demo.settings import ROOT


@pytest.fixture
def llava_with_card(tiny_llava_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llava_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "card.json").write_text(json.dumps({"trained": False, "default_frames": 16, "kinds": ["bg_of"]}))
    return folder


def run(folder: Path, out: Path, *more: str) -> int:
    return publish.main(["--model", str(folder), "--out", str(out), "--questions", "2", "--jobs", "1", *more])


def test_parts_are_written_once_and_made_again_when_the_weights_change(
    llava_with_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    few = parse_variants("vanilla,fastv,sharp,random:layer=1")
    monkeypatch.setattr(publish, "CORE", few)
    monkeypatch.setattr(publish, "ABLATION", few)
    monkeypatch.setattr(publish, "every_method", lambda: few)
    monkeypatch.setattr(publish, "RENUMBERED", parse_variants("vanilla,evs,evs:reindex_positions=false"))
    out = tmp_path / "results"
    assert run(llava_with_card, out) == 0
    names = {f"{part}-model.{kind}" for part in publish.PARTS for kind in ("json", "md")}
    assert {file.name for file in out.iterdir()} == names
    assert "| sharp |" not in (out / "ablation-model.md").read_text()
    assert "## Difference to ShaRP as it is" in (out / "ablation-model.md").read_text()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()

    assert run(llava_with_card, out) == 0
    assert capsys.readouterr().err.count("is there already") == len(publish.PARTS) == 6
    (out / "evaluate-model.md").unlink()
    assert run(llava_with_card, out, "--fresh", "--part", "evaluate") == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before  # the same, to the byte

    with monkeypatch.context() as other_code:
        other_code.setattr(provenance, "code_digest", lambda: "0" * 64)
        assert run(llava_with_card, out, "--part", "phenomena") == 0
        assert "wrote phenomena-model.json" in capsys.readouterr().err

    weights = llava_with_card / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.unlink()
    weights.write_bytes(changed)
    capsys.readouterr()
    assert run(llava_with_card, out, "--part", "phenomena") == 0
    assert "wrote phenomena-model.json" in capsys.readouterr().err


def test_stored_verdicts_are_checked_question_by_question(
    llava_with_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(publish, "CORE", parse_variants("vanilla,sharp,random:layer=1"))
    out = tmp_path / "results"
    assert run(llava_with_card, out, "--part", "evaluate", "--check", "1") == 2
    assert "is not there; make it first" in capsys.readouterr().err

    assert run(llava_with_card, out, "--part", "evaluate") == 0
    assert run(llava_with_card, out, "--check", "1", "--part", "evaluate", "--part", "phenomena") == 0
    assert "0 of" in capsys.readouterr().err
    target = out / "evaluate-model.json"
    stored = json.loads(target.read_text())
    first = stored["results"][0]
    turned = "1" if first["right"][0] == "0" else "0"
    target.write_text(
        json.dumps({**stored, "results": [{**first, "right": turned + first["right"][1:]}, *stored["results"][1:]]})
    )
    assert run(llava_with_card, out, "--check", "1", "--part", "evaluate") == 1
    said = capsys.readouterr().err
    assert "1 of" in said
    assert f"question 0: {turned} before" in said
    target.write_text(json.dumps({**stored, "results": stored["results"][1:]}))
    assert run(llava_with_card, out, "--check", "1", "--part", "evaluate") == 1
    assert "only in one of both" in capsys.readouterr().err


def test_a_file_that_no_part_writes_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stored result"):
        page(tmp_path / "soak.json")


def test_the_digest_of_the_code_follows_what_is_measured_with(tmp_path: Path) -> None:
    for name in provenance.MEASURING:
        file = tmp_path / name if name.endswith(".py") else tmp_path / name / "a.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a = 1")
    (tmp_path / "ui.py").write_text("u = 1")
    before = provenance.code_digest(tmp_path)
    (tmp_path / "ui.py").write_text("u = 2")
    assert provenance.code_digest(tmp_path) == before
    (tmp_path / "sharp_demo" / "pruning" / "a.py").write_text("a = 2")
    assert provenance.code_digest(tmp_path) != before


def test_no_position_is_renumbered_on_qwen2_vl(
    tiny_qwen_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tiny_qwen_folder, tmp_path / "out", "--part", "positions") == 0
    assert not list((tmp_path / "out").iterdir())


def test_validation_runs_are_logged_one_after_another(llava_with_card: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    more = ["--split", "validation", "--retention", "0.2"]
    assert run(llava_with_card, out, *more, "--methods", "vanilla,sharp,sharp:posc=false", "--why", "First") == 0
    assert run(llava_with_card, out, *more, "--methods", "sharp,sharp:regd=false", "--why", "Second") == 0
    assert [file.name for file in out.iterdir()] == ["validation-log.md"]
    text = (out / "validation-log.md").read_text()
    assert text.startswith("# What was tried on validation clips")
    assert text.index("## First (model)") < text.index("## Second (model)")
    assert text.count("split `validation`") == 2
    assert "| ShaRP, posc=False, K=1 |" in text


def test_bad_input_is_one_line_and_two(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "nowhere", tmp_path / "results") == 2
    assert capsys.readouterr().err.startswith("error: unknown model")
    assert publish.main(["--part", "everything"]) == 2
    assert "there is no 'everything'; there are evaluate" in capsys.readouterr().err


def test_differences_are_paired_with_the_reference() -> None:
    def one(method: str, right: str) -> dict:
        return {"method": method, "label": method.upper(), "group": "method", "match": "tokens", "retention": 0.1,
                "right": right}  # fmt: skip

    document = {
        "setup": {"seed": 0, "retentions": [0.1]},
        "questions": {"asked": [[clip, "bg_of", "early"] for clip in (0, 0, 1, 1)]},
        "results": [one("a", "1010"), one("b", "1000"), one("c", "1010")],
    }
    lines = differences_to(document, "tokens", "a").splitlines()
    assert lines[2] == "| A | +0.0 (+0.0 to +0.0) |"
    assert lines[3] == "| B | -25.0 (-50.0 to +0.0) |"
    assert lines[4] == "| C | +0.0 (+0.0 to +0.0) |"


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("systems-*.json")), ids=lambda path: path.stem)
def test_stored_systems_say_what_every_row_cost_and_which_miss_the_target(path: Path) -> None:
    stored = json.loads(path.read_text())
    (setup,) = stored["models"].values()
    text = accuracy_table({**setup, "results": stored["results"]}, "flops")
    ratios = {
        (one["label"], one["retention"]): one["tflops_ratio"]
        for one in stored["results"]
        if one["group"] != "reference"
    }
    fastv = {share: ratio for (label, share), ratio in ratios.items() if label.startswith("FastV")}
    retentions = setup["setup"]["retentions"]
    missed = 0
    for line in text.splitlines()[3:]:
        label, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        for share, cell in zip(retentions, cells, strict=False):
            ratio = ratios.get((label, share))
            if ratio is None or not cell:
                continue
            off = abs(ratio / fastv[share] - 1) > 0.05
            missed += off
            assert cell.endswith(f"FLOPs {100 * ratio:.1f} %" + off * "\\*")
    assert missed
    assert text.endswith(OFF_NOTE)


def test_rows_on_target_need_no_note() -> None:
    shares = {"setup": {"retentions": [0.2]}}
    one = {
        "group": "method",
        "retention": 0.2,
        "match": "flops",
        "accuracy": 0.5,
        "ci95": [0.4, 0.6],
        "kept_share": 0.2,
    }
    rows = [
        {**one, "method": "fastv", "label": "FastV", "tflops_ratio": 0.30},
        {**one, "method": "sharp", "label": "ShaRP", "tflops_ratio": 0.31},
    ]
    text = accuracy_table({**shares, "results": rows}, "flops")
    assert "| ShaRP | 50.0 (40.0 to 60.0), keeps 20.0 %, FLOPs 31.0 % |" in text
    assert "\\*" not in text
