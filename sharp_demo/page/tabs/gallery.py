"""The examples: a click shows the clip, its question and the result that was stored for it, without a run."""

from __future__ import annotations

import gradio as gr

from sharp_demo import strings
from sharp_demo.page.examples import Example
from sharp_demo.page.runs import HIDDEN, Runs, Updates
from sharp_demo.page.stored import Stored, path_of, read_stored
from sharp_demo.page.tabs.compare import Compare


class Gallery:
    """Shows examples in the comparison's columns."""

    def __init__(self, runs: Runs, compare: Compare) -> None:
        self.runs, self.compare = runs, compare
        self.examples = runs.inputs.examples
        self.outputs = [
            *runs.inputs.example_controls(),
            compare.status,
            *compare.controls.all(),
            *compare.outputs,
        ]
        self._read: dict[int, Stored | None] = {}

    def wire(self, source: gr.HTML) -> None:
        """Show the example whose `index` a component selects."""
        source.select(self.selected, None, self.outputs, queue=False, **HIDDEN)

    def selected(self, event: gr.EventData, caller: gr.Request) -> Updates:
        """Show the chosen example, unless a run goes on, whose events would go on over it."""
        index, visit = int(event.index), self.runs.visits.of(caller.session_hash)
        if visit.waiting or visit.running:
            gr.Warning(strings.EXAMPLE_BUSY)
        elif 0 <= index < len(self.examples):
            return self.show(index, caller.session_hash)
        return {self.compare.status: gr.skip()}

    def show(self, index: int, session: str | None) -> Updates:
        """Return the updates for an example: clip, question and stored result, whose frames play through once."""
        self.runs.visits.of(session).chosen = True
        return {**self.runs.inputs.choose(self.examples[index]), **self._result(index, session, opening=False)}

    def opening(self, session: str | None) -> Updates:
        """Return the updates for the first example's stored result alone, whose clip and question stand there."""
        return self._result(0, session, opening=True)

    def _result(self, index: int, session: str | None, *, opening: bool) -> Updates:
        """Return the updates for a stored result; nothing where there is none, or where a visitor was faster."""
        if index >= len(self.examples):
            return {}
        example = self.examples[index]
        stored = self._stored(index, example)
        if stored is None or (opening and self.runs.visits.of(session).chosen):
            return {}
        board = stored.board(example)
        board.opening = opening
        return self.compare.stored(board, session)

    def _stored(self, index: int, example: Example) -> Stored | None:
        if index not in self._read:
            self._read[index] = read_stored(path_of(self.runs.settings.assets, example))
        return self._read[index]
