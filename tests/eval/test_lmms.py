"""The plugin inside real lmms-eval, offline, on films made here; needs the environment of `make eval-env`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from lab.accuracy.asking import Asked, Film
from lab.paper.harness import ENVIRONMENT, OFFLINE, HarnessError, Job, lmms_python, read_scores, run_job, write_config
from lab.paper.rehearsal import TASKS, write_rehearsal
from lab.paper.runs import MethodRun
from lab.paper.store import Store
from lab.world.generate import clip_questions, clip_scenes, sampled_frames
from sharp_demo.backbones.load import load
from sharp_demo.pruning.registry import make_method
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.settings import ROOT, Settings, environment_with
from sharp_demo.video import decode

pytestmark = [pytest.mark.eval, pytest.mark.full, pytest.mark.timeout(900)]

MODEL = "tiny-llava-onevision"
FRAMES = 16
QUESTIONS = 7
RUNS = (
    MethodRun("vanilla", "vanilla"),
    MethodRun("fastv", "fastv", 0.1),
    MethodRun("feather", "feather", 0.1),
    MethodRun("sharp", "sharp", 0.1, "flops"),
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rehearsal on films of as many frames as the model is shown, so that every way of sampling takes them all."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "films").mkdir()
    for number in range(3):
        write_film(folder / "films" / f"{number}.mp4", number)
    write_rehearsal(folder, QUESTIONS)
    return folder


def write_film(path: Path, number: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(2), options={"crf": "18"})
        frames = sampled_frames(clip_scenes(number, "heldout"), 1)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def job(folder: Path, tasks: Path, names: tuple[str, ...] = TASKS, runs: tuple[MethodRun, ...] = RUNS) -> Job:
    return Job(MODEL, runs, names, folder, include=tasks, device="cpu", offline=True, threads=1)


@pytest.fixture(scope="module")
def done(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All methods on all tasks."""
    one = job(tmp_path_factory.mktemp("all"), tasks)
    run_job(one, HF_HOME=str(tasks / "hub"))
    return one


def test_one_pass_scores_every_method_on_every_task(done: Job) -> None:
    records = list(Store(done.store))
    assert len(records) == len(RUNS) * len(TASKS) * QUESTIONS
    assert {Counter(record["label"] for record in records)[run.label] for run in RUNS} == {len(TASKS) * QUESTIONS}
    assert all(record["frames"] == record["distinct_frames"] == FRAMES for record in records)
    pruned = [record["tokens"]["retention"] for record in records if record["label"] == "fastv"]
    assert max(pruned) < 0.11
    for run in RUNS:
        scores = read_scores(done, run)
        assert Counter(score.task for score in scores) == dict.fromkeys(TASKS, QUESTIONS)
    vanilla = [score.right for score in read_scores(done, RUNS[0]) if score.task == "rehearsal_open"]
    assert sum(vanilla) > QUESTIONS / 2


@torch.inference_mode()
def test_scores_are_those_of_our_own_evaluation(done: Job, tasks: Path) -> None:
    """Question by question, by another way: `evaluate`'s shared passes on the frames that our decoder gives."""
    settings = Settings(device="cpu", dtype="float32", threads=1)
    backbone = load(MODEL, settings)
    docs = [json.loads(line) for line in (tasks / "open.jsonl").read_text().splitlines()]
    layers = backbone.model.config.text_config.num_hidden_layers
    theirs = {
        run.label: {score.doc_id: score.right for score in read_scores(done, run) if score.task == "rehearsal_open"}
        for run in RUNS[:3]
    }
    ours: dict[str, dict[int, bool]] = {run.label: {} for run in RUNS[:3]}
    for number, doc in enumerate(docs):
        film = Film(backbone, decode(doc["path"], FRAMES, settings).frames, BiasCache())
        questions = clip_questions(int(Path(doc["path"]).stem), "heldout")
        question = next(one for one in questions if one.text == doc["question"])
        asked = Asked(film, question.text)
        for run in RUNS[:3]:
            method = make_method(run.method, run.retention, {}).fitted(layers)
            ours[run.label][number] = asked.is_right(method, question)[0]
    assert theirs == ours


def test_vanilla_answers_as_lmms_evals_own_wrapper_does(done: Job, tasks: Path, tmp_path: Path) -> None:
    """The parity control: transformers' processor and `generate`, lmms-eval's decoding, nothing of ours."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
        "{{ '<|im_start|>assistant\\n' }}"
    )
    arguments = {
        "pretrained": ROOT / "assets" / "models" / MODEL,
        "device_map": "cpu",
        "dtype": "float32",
        "max_frames_num": FRAMES,
        "chat_template": template,
    }
    entry = {
        "model": "llava_hf",
        "model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
        "tasks": "rehearsal_open",
        "output_path": str(tmp_path / "control"),
        "log_samples": True,
        "force_simple": True,
        "device": "cpu",
        "include_path": str(tasks),
    }
    config = tmp_path / "control.yaml"
    config.write_text(json.dumps([entry]))
    command = [str(lmms_python()), "tools/torchvision_on_cpu.py", "lmms_eval", "--config", str(config)]
    environment = environment_with(
        **OFFLINE, HF_HOME=str(tasks / "hub"), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT / ENVIRONMENT / "control")
    )
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    paths = list((tmp_path / "control").rglob("*_samples_rehearsal_open.jsonl"))
    assert paths, ended.stdout[-3000:] + ended.stderr[-3000:]
    control = {sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, paths[0].open())}
    ours = {
        record["doc_id"]: record["answer"]
        for record in Store(done.store)
        if (record["label"], record["task"]) == ("vanilla", "rehearsal_open")
    }
    assert {number: _text(answer) for number, answer in control.items()} == ours


def _text(answer: Any) -> str:
    return (answer[0] if isinstance(answer, list) else answer).strip()


def test_an_exception_in_a_method_makes_the_run_fail_loudly(
    tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from sharp_demo.pruning.fastv import FastV\n"
        "def before_layer(self, layer, prefill):\n"
        "    raise RuntimeError('injected')\n"
        "FastV.before_layer = before_layer\n"
    )
    one = job(tmp_path / "run", tasks, ("rehearsal_open",), RUNS[:2])
    with pytest.raises(HarnessError, match="ended with code 1"):
        run_job(one, HF_HOME=str(tasks / "hub"), PYTHONPATH=str(tmp_path))
    assert f"{QUESTIONS} answers failed and nothing is scored" in capfd.readouterr().err
    store = Store(one.store)
    assert Counter(record["label"] for record in store) == {"vanilla": QUESTIONS}
    assert (
        "injected" not in (one.store / "answers-0.jsonl").read_text()
    )  # the log of the process has it, the visitor's message does not
    with pytest.raises(HarnessError, match="scored no question"):
        read_scores(one, RUNS[0])


def test_a_killed_run_goes_on_without_repeating_or_losing_a_question(tasks: Path, tmp_path: Path) -> None:
    one = job(tmp_path, tasks, ("rehearsal_open", "rehearsal_mvbench"), RUNS[:2])
    command = [str(lmms_python()), "-m", "lmms_eval", "--config", str(write_config(one)), "--device", "cpu"]
    environment = environment_with(**OFFLINE, HF_HOME=str(tasks / "hub"), SHARP_THREADS="1")
    answers = one.store / "answers-0.jsonl"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        until = time.monotonic() + 200
        while lines(answers) < 5:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    before = lines(answers)
    assert before < 4 * QUESTIONS
    run_job(one, HF_HOME=str(tasks / "hub"))
    keys = [json.loads(line)["key"] for line in answers.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2 * 2 * QUESTIONS
    assert len(read_scores(one, RUNS[1])) == 2 * QUESTIONS


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
