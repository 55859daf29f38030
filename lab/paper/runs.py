"""What answers a question: a method with its retention and options, under a label."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from sharp_demo.errors import InputError
from sharp_demo.pruning.registry import make_method
from sharp_demo.records import Match, MethodSpec

JOIN = "+"  # between the methods of one argument; a comma separates lmms-eval's arguments


@dataclass(frozen=True)
class MethodRun:
    """One row of a table: what is asked of the engine for every question.

    Attributes
    ----------
    label : its name in logs and results. method : registered name.
    retention, match : as in `records.Request`. options : the method's own.
    maps : no answer is wanted but the attention by layer and frame (`Engine.attention`).
    """

    label: str
    method: str
    retention: float = 1.0
    match: Match = "tokens"
    options: Mapping[str, Any] = field(default_factory=dict)
    maps: bool = False

    def check(self) -> None:
        """Raise InputError where the engine would refuse it: an unknown method, option or match, a wrong retention."""
        make_method(self.method, self.retention, dict(self.options))
        if self.match not in get_args(Match):
            raise InputError(f"{self.label}: match is {self.match!r}; it must be {' or '.join(get_args(Match))}")

    @property
    def spec(self) -> MethodSpec:
        return MethodSpec(self.method, dict(self.options), self.label, self.retention)

    @property
    def identity(self) -> str:
        """What it computes, whatever it is called: equal for equal answers."""
        content = {name: value for name, value in asdict(self).items() if name != "label"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def parse_runs(method: str, retention: float, match: str) -> tuple[MethodRun, ...]:
    """Read `method=vanilla+sharp,retention=0.14,match=flops`; InputError for what does not exist."""
    names = [name.strip() for name in method.split(JOIN) if name.strip()]
    runs = [
        MethodRun(name, name, 1.0 if name == "vanilla" else float(retention), match)  # type: ignore[arg-type]
        for name in names
    ]
    return checked(runs)


def read_runs(path: Path) -> tuple[MethodRun, ...]:
    """Read what `write_runs` wrote. Raises InputError for a file that is not such a list."""
    try:
        entries = json.loads(path.read_text("utf-8"))
        return checked([MethodRun(**entry) for entry in entries])
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no list of methods: {error}") from None


def write_runs(path: Path, runs: Sequence[MethodRun]) -> None:
    path.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", "utf-8")


def checked(runs: Iterable[MethodRun]) -> tuple[MethodRun, ...]:
    """Return the runs. Raises InputError where there is none, one is refused, or a label repeats."""
    runs = tuple(runs)
    if not runs:
        raise InputError("no method is named; for example method=vanilla+sharp")
    labels = [run.label for run in runs]
    for run in runs:
        run.check()
        if labels.count(run.label) > 1:
            raise InputError(f"two methods are called {run.label!r}; labels must differ")
    return runs
