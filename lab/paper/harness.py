"""Runs lmms-eval in its own environment, once for all methods of a table, and reads how it scored every question."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.paper.runs import MethodRun, write_runs
from lab.paper.store import PATTERN
from sharp_demo.errors import InputError, SharpError
from sharp_demo.settings import ROOT, environment_with

ENVIRONMENT = ".venv-eval"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Where a benchmark's metric keeps whether an answer is right, in lmms-eval 0.7.3.
PREDICTED = ("pred_answer", "parsed_pred")


class HarnessError(SharpError):
    """lmms-eval ended without scores."""


@dataclass(frozen=True)
class Job:
    """One call of lmms-eval: all runs on all tasks with one model.

    Attributes
    ----------
    model : its name. runs : what answers; the first is asked for, and with it all others.
    tasks : of lmms-eval, groups too. folder : where the store, the configuration and the scores go.
    include : folder of further tasks. limit : questions of each task; None: all. shard : "2/8", see the plugin.
    frames : sampled frames; None: the model's. device : None: lmms-eval's default. offline : no hub is asked.
    threads : of torch; 0: its own choice.
    """

    model: str
    runs: Sequence[MethodRun]
    tasks: Sequence[str]
    folder: Path
    include: Path | None = None
    limit: int | None = None
    shard: str = ""
    frames: int | None = None
    device: str | None = None
    offline: bool = False
    threads: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "answers"

    @property
    def answering(self) -> list[MethodRun]:
        return [run for run in self.runs if not run.maps]

    def scores_of(self, run: MethodRun) -> Path:
        return self.folder / "scores" / str(self.limit or "all") / f"{run.label}-{run.identity}"

    def is_scored(self, run: MethodRun) -> bool:
        """Whether every task was scored after the last answer came: a killed run goes on with what is missing."""
        answers = [path.stat().st_mtime for path in self.store.glob(PATTERN)]
        try:
            files = score_files(self, run).values()
        except HarnessError:
            return False
        return bool(answers) and min(path.stat().st_mtime for path in files) > max(answers)


@dataclass(frozen=True)
class Score:
    """How one question was scored. `category` is what the benchmark groups by: duration, type or sub-task."""

    task: str
    doc_id: int
    right: bool
    category: str


def lmms_python(root: Path = ROOT) -> Path:
    """Return the Python of lmms-eval's environment. Raises InputError where it was not made."""
    python = root / ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise InputError(f"lmms-eval is not there: run make eval-env, which installs it into {ENVIRONMENT}")
    return python


def run_job(job: Job, python: Path | None = None, **variables: str) -> None:
    """Ask what the store lacks and score every run. Raises HarnessError where anything is missing afterwards."""
    if not job.shard and all(job.is_scored(run) for run in job.runs if not run.maps):
        return
    config = write_config(job)
    settings = {**(OFFLINE if job.offline else {}), **({"SHARP_THREADS": str(job.threads)} if job.threads else {})}
    command = [str(python or lmms_python()), "-m", "lmms_eval", "--config", str(config), "--verbosity", "WARNING"]
    if job.device is not None:
        command += ["--device", job.device]
    sys.stdout.flush()
    done = subprocess.run(command, env=environment_with(**settings, **variables), stdout=sys.stderr, check=False)
    if done.returncode:
        raise HarnessError(f"lmms-eval ended with code {done.returncode}; what it said stands above")
    if not job.shard:
        for run in job.answering:
            read_scores(job, run)  # its command line ends with code 0 whatever became of the scores


def write_config(job: Job) -> Path:
    """Write lmms-eval's configuration: one entry a run that is not scored.

    The first asks all questions with all runs, the others read the answers.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    runs = job.folder / "runs.json"
    write_runs(runs, job.runs)
    entries: list[dict[str, Any]] = []
    for run in job.answering[:1] if job.shard else [run for run in job.answering if not job.is_scored(run)]:
        arguments: Mapping[str, Any] = {
            "model": job.model,
            "runs": runs,
            "report": run.label,
            "store": job.store,
            **({"frames": job.frames} if job.frames else {}),
            **({"shard": job.shard} if job.shard else {}),
        }
        entries.append(
            {
                "model": "sharp_video",
                "model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
                "tasks": ",".join(job.tasks),
                "output_path": str(job.scores_of(run)),
                "log_samples": True,
                "batch_size": 1,
                **({"include_path": str(job.include)} if job.include else {}),
                **({"limit": job.limit} if job.limit is not None else {}),
            }
        )
    path = job.folder / "lmms-eval.yaml"
    path.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")  # JSON is YAML
    return path


def score_files(job: Job, run: MethodRun) -> dict[str, Path]:
    """Return the newest file of scores of every task, sub-tasks too. Raises HarnessError where lmms-eval wrote none."""
    files: dict[str, Path] = {}
    for path in sorted(job.scores_of(run).rglob("*_samples_*.jsonl")):  # their names begin with the time
        files[path.stem.partition("_samples_")[2]] = path
    found = {
        name: path
        for name, path in files.items()
        if any(name == task or name.startswith(f"{task}_") for task in job.tasks)
    }
    missing = [task for task in job.tasks if not any(name == task or name.startswith(f"{task}_") for name in found)]
    if missing:
        raise HarnessError(f"lmms-eval scored no question of {', '.join(missing)} with {run.label}")
    return found


def read_scores(job: Job, run: MethodRun) -> list[Score]:
    """Return the newest scores of a run, of every task. Raises HarnessError where lmms-eval wrote none."""
    return [
        score_of(name, json.loads(line))
        for name, path in score_files(job, run).items()
        for line in path.read_text("utf-8").splitlines()
    ]


def score_of(task: str, sample: Mapping[str, Any]) -> Score:
    """Return whether lmms-eval's parser found the right option; an answer without one is wrong, whatever its reason.

    Raises HarnessError for a sample of a metric that is not known here.
    """
    for metric in sample.values():
        if not isinstance(metric, dict):
            continue
        predicted = next((metric[name] for name in PREDICTED if name in metric), None)
        if predicted is None:
            continue
        expected = metric.get("answer", metric.get("gt_answer"))
        right = bool(metric["score"]) if "score" in metric else predicted == expected
        category = metric.get("duration", metric.get("task_type", metric.get("duration_group", "")))
        return Score(task, int(sample["doc_id"]), right, str(category))
    raise HarnessError(f"{task} {sample.get('doc_id')}: no metric of lmms-eval says whether the answer is right")
