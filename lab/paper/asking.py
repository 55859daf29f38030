"""Asks questions through the engine, each with every method, and writes down what comes back.

The way of a question is that of the demo: its decoders, its preprocessing, its prompt, its methods. The questions of a
video follow each other and all methods of a question run on one request, so that a video is decoded once and goes
through the vision tower once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, get_args

from lab.paper.runs import MethodRun
from lab.paper.store import Question, Store, answer_key
from lab.provenance import commit
from sharp_demo.errors import InputError, SharpError
from sharp_demo.records import AttentionMaps, Decoded, Event, Match, MethodDone, MethodFailed, Request, Result
from sharp_demo.settings import Settings

MOST_FAILURES = 20  # after as many, whatever is wrong is wrong with every question
LOST = "device_lost"
# What stands between untrusted uploads and a demo is in the way of a two-hour film of a benchmark.
LIMITS: dict[str, Any] = {
    "max_upload_mb": 20_000.0,
    "max_duration_s": 4 * 3600.0,
    "max_side": 16_384,
    "max_pixels": 7680 * 4320,
    "max_frames": 1024,
    "max_visual_tokens": 200_000,
    "max_question_chars": 100_000,
    "max_new_tokens": 4096,
    "decode_timeout_s": 900.0,
    "decode_cpu_s": 900,
    "decode_memory_mb": 8192,
    "decode_output_mb": 8192,
    "timing_s": 0.0,
}


Progress = Callable[[int, int], None]


class QuestionsFailed(SharpError):
    """Some questions have no answer; the log says why of each."""


class Asks(Protocol):
    """What is needed of an engine."""

    def stream(self, request: Request) -> Iterable[Event]: ...
    def attention(self, request: Request) -> AttentionMaps: ...


@dataclass
class Asker:
    """Answers questions with every run, from the store where it has the answer.

    Attributes
    ----------
    engine : builds the engine; called only when a question has to be asked.
    model : its name. frames : sampled frames of a video; None: the model's default. seed : of methods that draw.
    """

    engine: Callable[[], Asks]
    model: str
    runs: Sequence[MethodRun]
    store: Store
    frames: int | None = None
    seed: int = 0

    def key(self, question: Question, run: MethodRun) -> str:
        return answer_key(self.model, self.frames, question, run)

    def record(self, question: Question, run: MethodRun) -> dict[str, Any]:
        """Return what the store knows of an answer; KeyError for a question that was not asked."""
        record = self.store.get(self.key(question, run))
        if record is None:
            raise KeyError(f"{question.task} {question.doc_id} was not asked with {run.label}")
        return record

    def ask(
        self, questions: Sequence[Question], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> int:
        """Ask whatever the store lacks, video by video; return how many answers were added.

        Raises
        ------
        QuestionsFailed : some question failed with some method. All others were asked first, unless the device was
            lost or `MOST_FAILURES` had failed; asking again repeats the failures only.
        """
        failures: list[str] = []
        added = 0
        ordered = by_video(questions)
        for done, question in enumerate(ordered):
            progress(done, len(ordered))
            for runs in self._missing(question):
                for record in self._ask(question, runs):
                    self.store.put(record)
                    if "error" not in record:
                        added += 1
                        continue
                    failures.append(f"{question.task} {question.doc_id}, {record['label']}: {record['error']}")
                    if record["kind"] == LOST or len(failures) >= MOST_FAILURES:
                        raise self._failed(failures)
        progress(len(ordered), len(ordered))
        if failures:
            raise self._failed(failures)
        return added

    def _missing(self, question: Question) -> list[list[MethodRun]]:
        """The runs without an answer, in one group for each way of matching: a request matches by one."""
        missing = [run for run in self.runs if self.store.get(self.key(question, run)) is None]
        asked = [[run for run in missing if run.match == match and not run.maps] for match in get_args(Match)]
        return [group for group in (*asked, [run for run in missing if run.maps]) if group]

    def _ask(self, question: Question, runs: Sequence[MethodRun]) -> Iterable[dict[str, Any]]:
        """Yield a record for every run: an answer, or an `error` with its `kind`."""
        request = Request(
            question.video,
            question.prompt,
            tuple(run.spec for run in runs),
            match=runs[0].match,
            model=self.model,
            frames=self.frames,
            max_new_tokens=question.max_new_tokens,
            seed=self.seed,
            timing_s=0.0,
        )
        open_runs = {run.label: run for run in runs}
        frames, distinct = 0, None
        try:
            if runs[0].maps:
                for run in runs:
                    yield self._about(question, open_runs.pop(run.label)) | attention(self.engine().attention(request))
                return
            for event in self.engine().stream(request):
                if isinstance(event, Decoded):
                    frames = frames or len(event.timestamps)  # a second event tells of fewer, for want of memory
                    distinct = event.info.get("distinct_frames")
                elif isinstance(event, MethodDone):
                    run = open_runs.pop(event.label)
                    yield self._about(question, run) | outcome(event.result, frames, distinct)
                elif isinstance(event, MethodFailed):
                    run = open_runs.pop(event.label)
                    yield self._about(question, run) | {"error": event.message, "kind": event.kind}
        except InputError as error:  # the video or the question: as true of every method
            for run in open_runs.values():
                yield self._about(question, run) | {"error": str(error), "kind": "refused"}
            return
        for run in open_runs.values():
            yield self._about(question, run) | {"error": "the run ended without an answer", "kind": "internal"}

    def _about(self, question: Question, run: MethodRun) -> dict[str, Any]:
        return {
            "key": self.key(question, run),
            "task": question.task,
            "split": question.split,
            "doc_id": question.doc_id,
            "video": Path(question.video).name,
            "model": self.model,
            "label": run.label,
            "run": asdict(run),
            "max_new_tokens": question.max_new_tokens,
            "commit": _commit(),
        }

    def _failed(self, failures: Sequence[str]) -> QuestionsFailed:
        first, count = failures[0], len(failures)
        return QuestionsFailed(
            f"{count} answer{'s' * (count != 1)} failed and nothing is scored; the first: {first}; "
            f"{self.store.path} has them all; run the same command to ask them once more"
        )


@cache
def _commit() -> str | None:
    return commit()


def outcome(result: Result, frames: int, distinct: int | None) -> dict[str, Any]:
    """What the log keeps of a result: the answer, what was kept, and what it took.

    An answer on fewer frames than were asked for, because memory ran out, is an `error`: it is another experiment.
    """
    layout, latency = result.layout, result.latency_ms
    seen = layout.frames * layout.frames_per_token
    if seen < frames:
        return {"error": f"memory ran out: the model saw {seen} of {frames} frames", "kind": "out_of_memory"}
    return {
        "answer": result.answer,
        "answer_tokens": result.answer_tokens,
        "first_token_prob": result.first_token_prob,
        "frames": frames,
        "distinct_frames": distinct,
        "tokens": asdict(result.tokens),
        "kept_by_frame": [len(kept) for kept in result.kept],
        "asked_retention": result.config.get("retention"),
        "ms": {
            name: round(getattr(latency, name), 3)
            for name in ("decode_video", "vision", "bias_setup", "prefill", "first_token", "decode", "total")
        },
        "stages_ms": {name: round(stage.ms, 3) for name, stage in latency.stages.items() if stage.part_of == "prefill"},
        "tflops": {"paper": result.tflops.paper, "exact": result.tflops.exact},
        "device": result.device,
        "dtype": result.dtype,
        "attention": result.attention_backend,
        "versions": result.versions,
    }


def attention(maps: AttentionMaps) -> dict[str, Any]:
    """What the log keeps of the last token's attention, [layers][frames]: as it is, and debiased."""
    kept = {"raw": maps.raw, "debiased": maps.debiased}
    return {"attention": {name: [[round(value, 7) for value in row] for row in rows] for name, rows in kept.items()}}


def by_video(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with those of one video together; videos as they first appear."""
    first: dict[str, int] = {}
    for question in questions:
        first.setdefault(question.video, len(first))
    return sorted(questions, key=lambda question: first[question.video])


def in_shard(question: Question, shard: int, shards: int) -> bool:
    """Whether a question belongs to shard 1..`shards`, which its video decides: a video is decoded in one of them."""
    digest = hashlib.sha256(Path(question.video).name.encode()).digest()
    return int.from_bytes(digest[:8]) % shards == shard - 1


def parse_shard(text: str) -> tuple[int, int]:
    """Read "2/8". Raises InputError."""
    first, slash, second = text.partition("/")
    if slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise InputError(f"cannot read the shard {text!r}; write 2/8 for the second of eight")


def benchmark_settings(settings: Settings) -> Settings:
    """Return the settings with limits that benchmarks need; the environment's device, dtype and attention stay."""
    return settings.model_copy(update=LIMITS)
