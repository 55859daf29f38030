"""`--model sharp_video` of lmms-eval: the demo's engine answers, with one method or with all of a table at once.

Every method of `runs` (or of `method`) answers every question, all on one decoding and one pass of the vision tower,
and the answers go to a store. lmms-eval scores those of one method, `report`; a second call with another `report` reads
them from the store and loads no model. lmms-eval's command line turns exceptions into exit code 0, so nothing here
raises one: what fails says so on stderr and ends the process with a code of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from lab.paper.asking import Asker, QuestionsFailed, benchmark_settings, in_shard, parse_shard
from lab.paper.runs import parse_runs, read_runs
from lab.paper.store import Question, Store
from sharp_demo.engine import Engine
from sharp_demo.errors import InputError, SharpError, UnsupportedError
from sharp_demo.settings import read_settings

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024  # where a task sets no limit: lmms-eval's own wrappers' number


class SharpVideo(lmms):
    """Video questions through the demo's engine.

    Parameters
    ----------
    model : an embedded model's name, a hub id, or a local folder.
    method, retention, match : as `compare` takes them; several methods are joined by "+".
    runs : in their place, a JSON file of methods, as `lab.paper.runs.write_runs` writes it.
    report : label of the method whose answers are scored; default: the first.
    store : folder of the answers.
    frames : sampled frames of a video; default: the model's own.
    shard : "2/8" asks the second eighth of the videos, scores nothing and ends the process.
    device : of lmms-eval's command line; `batch_size` must be 1.
    """

    def __init__(
        self,
        model: str,
        method: str = "vanilla",
        retention: float = 0.2,
        match: str = "tokens",
        runs: str = "",
        report: str = "",
        store: str = "runs/lmms-eval",
        frames: int | None = None,
        shard: str = "",
        seed: int = 0,
        device: str | None = None,
        batch_size: int | str = 1,
        **unknown: object,
    ) -> None:
        super().__init__()
        with loud():
            if unknown:
                raise InputError(f"sharp_video has no argument {', '.join(map(repr, unknown))}")
            if str(batch_size) != "1":
                raise InputError(f"batch_size is {batch_size}; one question is asked at a time, so it must be 1")
            named = read_runs(Path(runs)) if runs else parse_runs(method, float(retention), match)
            self.run = next((run for run in named if run.label == report), named[0])
            if report and self.run.label != report:
                raise InputError(f"report is {report!r}; it must be {', '.join(run.label for run in named)}")
            self.shard = parse_shard(shard) if shard else None
            self.accelerator = Accelerator(cpu=device == "cpu")
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            self.device_name = None if device is None else device.partition(":")[0]
            part = f"{self._rank}" if self.shard is None else f"shard-{self.shard[0]}-of-{self.shard[1]}"
            self.asker = Asker(lambda: self.engine, model, named, Store(Path(store), part), frames, seed)

    @cached_property
    def engine(self) -> Engine:
        """The demo's engine, with the limits of benchmarks; loads the model at its first question."""
        settings = benchmark_settings(read_settings())
        if self.device_name is not None:
            settings = settings.model_copy(update={"device": self.device_name})
        return Engine(settings)

    @property
    def device(self) -> Any:
        return self.accelerator.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer all requests; the process ends where one failed, and after a shard."""
        with loud():
            questions = [self._question(request) for request in requests]
            mine = [one for one in questions if self.shard is None or in_shard(one, *self.shard)]
            with tqdm(total=len(mine), desc="questions", disable=self.rank != 0) as bar:
                self.asker.ask(mine, lambda done, total: bar.update(done - bar.n) and None)
            if self.shard is not None:
                print(f"shard {self.shard[0]} of {self.shard[1]} is complete: {len(mine)} questions", file=sys.stderr)
                raise SystemExit(0)
            return [self._reported(question) for question in questions]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        with loud():
            raise UnsupportedError("sharp_video generates answers; it gives no likelihoods of given ones")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        with loud():
            raise UnsupportedError("sharp_video answers one question at a time; it holds no conversation")

    def _question(self, request: Instance) -> Question:
        prompt, options, doc_to_visual, doc_id, task, split = request.args
        if options.get("do_sample") or options.get("temperature") or options.get("num_beams", 1) != 1:
            raise UnsupportedError(f"{task} asks for sampling or beams; the demo's answers are greedy")
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], str):
            raise UnsupportedError(f"{task} {doc_id} does not show one video file; sharp_video answers nothing else")
        return Question(task, split, doc_id, visuals[0], prompt, options.get("max_new_tokens", MAX_NEW_TOKENS))

    def _reported(self, question: Question) -> GenerationResult:
        record = self.asker.record(question, self.run)
        return GenerationResult(record["answer"], TokenCounts(record["tokens"]["prompt"], record["answer_tokens"]))


@contextmanager
def loud() -> Iterator[None]:
    """Turn every exception into an end of the process that nobody can mistake for a result: 2 bad input, 1 the rest."""
    try:
        yield
    except InputError as error:
        print(f"sharp_video: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except QuestionsFailed as error:
        print(f"sharp_video: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SharpError as error:
        print(f"sharp_video: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except Exception:
        log.exception("sharp_video failed")
        raise SystemExit(1) from None
