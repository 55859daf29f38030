"""The plugin's contract, without lmms-eval: its manifest, its arguments, its answers, and how it ends when it fails."""

from __future__ import annotations

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.lab.paper.questions import ToyEngine, fails

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = ROOT / "lab" / "plugin"


@dataclass(frozen=True)
class TokenCounts:
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class GenerationResult:
    text: str
    token_counts: TokenCounts


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str


class Base:
    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank  # type: ignore[attr-defined]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, next to what it uses of lmms-eval 0.7.3."""
    for name, contents in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": object,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "lab.paper.plugin", raising=False)
    yield importlib.import_module("lab.paper.plugin")
    sys.modules.pop("lab.paper.plugin", None)


def request(doc_id: int, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        args=(f"question {doc_id}", {"max_new_tokens": 8, **options}, lambda doc: [doc["path"]], doc_id, "toy", "test")
    )


def model(plugin: Any, folder: Path, engine: ToyEngine, **arguments: Any) -> Any:
    one = plugin.SharpVideo("toy-model", store=str(folder), device="cpu", **arguments)
    one.task_dict = {"toy": {"test": [{"path": f"{number}.mp4"} for number in range(4)]}}
    one.engine = engine
    return one


def test_the_entry_point_names_the_class(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    module, _, name = project["project"]["entry-points"]["lmms_eval.models"]["sharp_video"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "sharp_video"
    home, _, cls = manifest.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(home), cls).is_simple


def test_answers_are_those_of_the_reported_method_in_order(plugin: Any, tmp_path: Path) -> None:
    engine = ToyEngine()
    arguments = {"method": "vanilla+sharp", "retention": "0.14", "match": "flops"}
    one = model(plugin, tmp_path, engine, report="sharp", **arguments)
    answers = one.generate_until([request(1), request(0)])
    assert [answer.text for answer in answers] == ["sharp on 1.mp4", "sharp on 0.mp4"]
    assert answers[0].token_counts == TokenCounts(9, 1)
    assert {spec.name for asked in engine.requests for spec in asked.methods} == {"vanilla", "sharp"}
    again = model(plugin, tmp_path, ToyEngine(), **arguments)
    assert [answer.text for answer in again.generate_until([request(0)])] == ["vanilla on 0.mp4"]
    assert not again.engine.requests


def test_a_shard_asks_its_videos_and_ends(plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    for shard in ("1/2", "2/2"):
        engine = ToyEngine()
        with pytest.raises(SystemExit) as ended:
            model(plugin, tmp_path, engine, shard=shard).generate_until([request(number) for number in range(4)])
        assert ended.value.code == 0
        asked += [one.video for one in engine.requests]
    assert sorted(asked) == [f"{number}.mp4" for number in range(4)]
    assert "shard 2 of 2 is complete" in capsys.readouterr().err
    assert len(model(plugin, tmp_path, ToyEngine(fails("internal", "vanilla"))).generate_until([request(3)])) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"methods": "sharp"}, "no argument 'methods'"),
        ({"batch_size": 4}, "batch_size is 4"),
        ({"method": "nonsense"}, "nonsense"),
        ({"report": "sharp"}, "report is 'sharp'"),
        ({"shard": "3/2"}, "cannot read the shard"),
        ({"runs": "/nowhere.json"}, "no list of methods"),
    ],
)
def test_wrong_arguments_end_the_process_with_2(
    plugin: Any, arguments: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        model(plugin, tmp_path, ToyEngine(), **arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_whatever_fails_ends_the_process(plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """lmms-eval's command line would turn an exception into a result of None and exit code 0."""

    def crash(asked: object, result: object) -> None:
        raise RuntimeError("a bug")

    for trouble, code in ((fails("internal", "vanilla"), 1), (crash, 1)):
        with pytest.raises(SystemExit) as ended:
            model(plugin, tmp_path, ToyEngine(trouble)).generate_until([request(0)])
        assert ended.value.code == code
    assert "1 answer failed and nothing is scored" in capsys.readouterr().err
    one = model(plugin, tmp_path, ToyEngine())
    for call in (
        lambda: one.generate_until([request(0, temperature=0.7)]),
        lambda: one.loglikelihood([]),
        lambda: one.generate_until_multi_round([]),
    ):
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == 2
