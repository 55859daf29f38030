"""`bench prefill` on CUDA: device events, allocator peaks, and both contents of a tiny model."""

import json
from pathlib import Path

import pytest
import torch

from sharp_demo.cli import main

pytestmark = pytest.mark.gpu


def test_bench_prefill_measures_on_the_gpu(tiny_llava_folder: Path, tmp_path: Path, capsys) -> None:
    out, profile = tmp_path / "out.json", tmp_path / "profile.txt"
    arguments = ["--model", str(tiny_llava_folder), "--device", "cuda", "--dtype", "bfloat16", "--tokens", "72"]
    arguments += ["--segments", "1,8", "--rounds", "3", "--vision", "2", "--json", str(out), "--profile", str(profile)]
    assert main(["bench", "prefill", *arguments]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["setup"]["device"].startswith("cuda")
    assert len(document["vision_ms"]["samples"]) == 2
    for result in document["results"]:
        assert all(ms > 0 for ms in result["prefill_ms"]["samples"])
        assert all(ms >= 0 for ms in result["stages_ms"].values())
        assert result["peak_bytes"] > result["added_bytes"] > 0
    sharp = [result for result in document["results"] if result["method"] == "sharp"]
    assert {result["tokens"]["segments"] for result in sharp} == {1, 8}
    assert all(result["bias_setup_ms"] > 0 for result in sharp)
    assert "cuda" in profile.read_text().lower()


def test_every_backend_of_this_machine_runs_side_by_side(tiny_qwen_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--model", str(tiny_qwen_folder), "--device", "cuda", "--rounds", "3", "--segments", "1"]
    arguments += ["--methods", "sharp", "--attention", "auto,sdpa,eager", "--json", str(out)]
    code = main(["bench", "prefill", *arguments])
    assert code == 0
    assert {"sdpa", "eager"} <= set(json.loads(out.read_text())["setup"]["attention"])
