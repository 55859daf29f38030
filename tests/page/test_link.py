"""Settings in the page's address, and the API examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import pytest
from gradio_client import Client

from sharp_demo.page.api_examples import curl_example, python_example
from sharp_demo.page.controls import KNOBS, knob_field
from sharp_demo.page.inputs import Inputs
from sharp_demo.settings import Settings

SETTINGS = Settings()
MODELS = ["tiny-llava-onevision", "tiny-qwen2-vl"]
INPUTS = Inputs(SimpleNamespace(models=lambda: MODELS, default_model=MODELS[0], example_model=None), SETTINGS, ())
VALUES = {
    "video": str(INPUTS.examples[1].video),
    "question": "Why? & <b>",
    "methods": ["vanilla", "sharp"],
    "retention": 15,
    "match": "flops",
    "frames": 8,
    "model": "tiny-qwen2-vl",
    "max_new_tokens": 20,
    "seed": 3,
    **{f"{method}.{name}": knob_field(method, name).default for method, name in KNOBS},
}


@pytest.mark.parametrize(
    ("mode", "own"), [("compare", {}), ("ablate", {"plan": "both"}), ("sweep", {"steps": "coarse"}), ("walk", {})]
)
def test_what_a_link_says_is_what_was_set(mode, own):
    values = {**VALUES, "sharp.posc": False, "sharp.penalty": 0.25, **own}
    query = dict(parse_qsl(INPUTS.query(values, mode)))
    assert INPUTS.read(query) == ({**values, **({} if mode == "compare" else {"mode": mode})}, [])


def test_an_upload_has_no_place_in_a_link(tmp_path):
    upload = tmp_path / "mine.mp4"
    upload.write_bytes(b"x")
    query = INPUTS.query({**VALUES, "video": str(upload)})
    assert "example" not in query
    assert "mine" not in query


def test_every_input_has_one_name_in_page_link_and_api():
    with gr.Blocks():
        for one in INPUTS.all:
            INPUTS.place(one.name)
        assert {"plan", "steps"} == set(INPUTS.of("ablate")) ^ set(INPUTS.of("sweep"))
        assert list(INPUTS.public()) == ["video", "question", "methods", "retention", "match", "frames", "model"]
    assert set(INPUTS.of("compare")) == set(VALUES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("example", "../../etc/passwd"),
        ("example", ""),
        ("question", "x" * 501),
        ("model", "someone/else"),
        ("methods", "vanilla,teleport"),
        ("methods", ""),
        ("retention", "0"),
        ("retention", "nan"),
        ("retention", "many"),
        ("match", "luck"),
        ("methods", "sharp,sharp"),
        ("frames", "100000"),
        ("frames", "5"),
        ("max_new_tokens", "-1"),
        ("seed", "1e3"),
        ("mode", "run"),
        ("plan", "all 8"),
        ("steps", ""),
        ("sharp.segm", "1"),
        ("sharp.penalty", "nan"),
        ("sharp.score_layer", "__class__"),
    ],
)
def test_what_a_link_gets_wrong_is_named_and_left_out(name, text):
    values, wrong = INPUTS.read({"question": "Why?", name: text})
    assert wrong == [name]
    assert name not in values


def test_names_nobody_knows_change_nothing():
    assert INPUTS.read({"__theme": "dark", "evil": "1"}) == ({}, [])


@pytest.mark.timeout(240)
def test_the_programs_shown_run_as_they_are(server, clip, tmp_path):
    api = Client(server, verbose=False).view_api(return_format="dict", print_info=False)
    parameters = api["named_endpoints"]["/compare"]["parameters"]
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    for program in (["-c", python_example(parameters, server)], None):
        command = [sys.executable, *program] if program else ["bash", "-c", curl_example(parameters, server)]
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "cache")}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, env=environment)
        assert done.returncode == 0, done.stderr
        if program:
            assert re.findall(r"^(\w+) ", done.stdout, re.MULTILINE)[-4:] == ["vanilla", "fastv", "feather", "sharp"]
        else:
            assert "event: complete" in done.stdout
            assert '"method": "sharp"' in done.stdout
