"""The API's one endpoint, `compare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import gradio as gr
from gradio.exceptions import Error

from sharp_demo.errors import InputError, SharpError
from sharp_demo.page.runs import Runs, public
from sharp_demo.pruning.registry import method_class
from sharp_demo.records import Done, MethodFailed, MethodSpec, Request
from sharp_demo.web.calls import Refusal


class Api:
    """The endpoint's handler, bound to the runs it shares the engine with."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def build(self) -> None:
        """Add the endpoint to the current page."""
        with gr.Column(visible=False):
            parameters = self.runs.inputs.public()
            result = gr.JSON(label="comparison")
            gr.Button().click(
                self.compare,
                None,
                result,
                inputs_kwargs=parameters,
                api_name="compare",
                concurrency_id="model",
                concurrency_limit=1,
            )

    def compare(
        self,
        video: str | None,
        question: str,
        methods: list[str],
        retention: float,
        match: str,
        frames: int | None,
        model: str | None,
        caller: gr.Request | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Run pruning methods side by side on one video and one question.

        `retention` is the share of visual tokens kept, above 0 and at most 1; `match` is "tokens", "flops" or "ttft";
        `frames` 0 means the model's default. Returns {"request", "results", "failed"} as `compare --json` does;
        while it runs, what is finished so far.
        """
        try:
            request = self.runs.inputs.check(
                video=video,
                question=question,
                methods=[MethodSpec(name, {}, method_class(name).title) for name in methods or ()],
                retention=retention,
                match=match,
                frames=frames,
                model=model,
                max_new_tokens=min(Request.max_new_tokens, self.runs.settings.max_new_tokens),
            )
            answer: dict[str, Any] = {"request": public(request), "results": [], "failed": []}
            yield answer
            for event in self.runs.events(request, uuid4().hex, caller.session_hash if caller else None):
                match event:
                    case MethodFailed(label=label, kind=kind, message=message):
                        failure = {"label": label, "kind": kind, "message": message}
                        answer = {**answer, "failed": [*answer["failed"], failure]}
                    case Done(results=results):
                        answer = {**answer, "results": [result.to_dict() for result in results]}
                # Also when nothing changed: a client that hung up is noticed at a yield only.
                yield answer
        except InputError as error:
            raise Refusal(str(error)) from None
        except SharpError as error:
            raise Error(str(error), print_exception=False) from None
