"""Settings in the page's address, and the API examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from urllib.parse import parse_qsl

import gradio as gr
import pytest
from gradio_client import Client

from sharp_demo.page.api_examples import curl_example, python_example
from sharp_demo.page.controls import KNOBS, knob_field
from sharp_demo.page.inputs import load_examples
from sharp_demo.page.link import CHOICES, NAMES, inputs_of, query_of
from sharp_demo.settings import Settings

SETTINGS = Settings()
EXAMPLES = load_examples(SETTINGS)
MODELS = ["tiny-llava-onevision", "tiny-qwen2-vl"]
KNOB_VALUES = [knob_field(*knob).default for knob in KNOBS]
INPUTS = [str(EXAMPLES[1].video), "Why? & <b>", "tiny-qwen2-vl", ["vanilla", "sharp"], 15, "flops", 8, 20, 3]


def read(**query: str) -> tuple[dict, list[str]]:
    values, wrong = inputs_of(query, MODELS, EXAMPLES, SETTINGS)
    names = (*NAMES, *CHOICES)
    return {name: value for name, value in zip(names, values, strict=True) if value != gr.skip()}, wrong


def test_what_a_link_says_is_what_was_set():
    knobs = list(KNOB_VALUES)
    knobs[KNOBS.index(("sharp", "posc"))] = False
    knobs[KNOBS.index(("sharp", "penalty"))] = 0.25
    query = dict(parse_qsl(query_of([*INPUTS, *knobs], EXAMPLES, mode="ablate", plan="both", steps="coarse")))
    values, wrong = inputs_of(query, MODELS, EXAMPLES, SETTINGS)
    assert values == [*INPUTS, *knobs, "ablate", "both", "coarse"]
    assert not wrong


def test_an_upload_has_no_place_in_a_link(tmp_path):
    upload = tmp_path / "mine.mp4"
    upload.write_bytes(b"x")
    query = query_of([str(upload), *INPUTS[1:], *KNOB_VALUES], EXAMPLES)
    assert "example" not in query
    assert "mine" not in query


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
    values, wrong = read(**{name: text, "question": "Why?"} if name != "question" else {name: text})
    assert wrong == [name]
    assert name not in values


def test_names_nobody_knows_change_nothing():
    assert read(__theme="dark", evil="1") == ({}, [])


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
