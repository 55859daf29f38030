"""The engine on ZeroGPU, against a `spaces` that enforces its rules: another process, pickles, no CUDA outside."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from gradio.exceptions import Error

import app
from sharp_demo.engine import Engine, attention, background, generation, stages, zerogpu
from sharp_demo.engine.condition import DEVICE_LOST
from sharp_demo.engine.zerogpu import MAX_S, METHODS, ZeroGPUEngine
from sharp_demo.errors import EXIT_DEVICE_LOST, DeviceError, ModelError, QuestionError
from sharp_demo.page.api import Api
from sharp_demo.page.build import build_ui
from sharp_demo.page.runs import Runs
from sharp_demo.records import (
    Decoded,
    Done,
    MethodDone,
    MethodFailed,
    MethodSpec,
    Progress,
    Request,
    Result,
    Text,
    Timing,
)
from sharp_demo.settings import ROOT, Settings
from sharp_demo.video import Reader
from tests.test_engine import video  # noqa: F401

FORK = multiprocessing.get_context("fork")
MAIN = os.getpid()
TWO = tuple(MethodSpec(name) for name in METHODS)


class PlainPickler(pickle.Pickler):
    """Refuses tensors: a CUDA tensor that crosses would start CUDA in the main process."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor | torch.nn.Module):
            raise pickle.PicklingError(f"{type(value).__name__} may not cross")
        return NotImplemented


def crossing(value: Any) -> bytes:
    buffer = io.BytesIO()
    PlainPickler(buffer).dump(value)
    return buffer.getvalue()


class FakeSpaces(types.ModuleType):
    """`spaces.GPU` by its documented rules. Every call forks a worker; the real one does so whenever it is not idle."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.seconds: list[int] = []
        self.workers: list[Any] = []
        self.refusal: str | None = None

    def GPU(self, task: Callable, *, duration: Callable[..., int]) -> Callable:
        generator = bool(getattr(task, "__code__", task.__func__.__code__).co_flags & 0x20)

        def call(*args: Any) -> Iterator[Any]:
            self.seconds.append(duration(*args))
            if self.refusal:
                raise Error(self.refusal, print_exception=False)
            parent, child = FORK.Pipe()
            stop = FORK.Event()
            worker = FORK.Process(target=self._work, args=(task, crossing(args), child, stop, generator))
            worker.start()
            child.close()
            self.workers.append(worker)
            try:
                while True:
                    try:
                        kind, value = pickle.loads(parent.recv_bytes())
                    except EOFError:
                        raise Error("GPU task aborted", print_exception=False) from None
                    if kind == "error":
                        raise Error(value, print_exception=False)
                    if kind == "end":
                        return
                    try:
                        yield value
                    except GeneratorExit:
                        stop.set()
                        while pickle.loads(parent.recv_bytes())[0] == "value":
                            pass
                        raise
            finally:
                worker.join(30)

        return call if generator else lambda *args: next(call(*args))

    @staticmethod
    def _work(task: Callable, args: bytes, pipe: Any, stop: Any, generator: bool) -> None:
        try:
            result = task(*pickle.loads(args))
            for value in result if generator else [result]:
                if stop.is_set():
                    break
                pipe.send_bytes(crossing(("value", value)))
            pipe.send_bytes(crossing(("end", None)))
        except BaseException as error:  # the real one tells the class and nothing else
            pipe.send_bytes(crossing(("error", type(error).__name__)))
        finally:
            os._exit(0)


def emulated_to(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """`.to("cuda")` of the main process: any use of the module outside a worker fails from then on."""
    assert device == "cuda"

    def guard(*_: Any) -> None:
        if os.getpid() == MAIN:
            raise RuntimeError("CUDA used outside a spaces.GPU call")

    for part in module.modules():
        part.register_forward_pre_hook(guard)
    return module


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> FakeSpaces:
    fake = FakeSpaces()
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.setattr(torch.nn.Module, "to", emulated_to)
    return fake


@pytest.fixture
def zero(spaces: FakeSpaces, cpu_settings: Settings, tiny_llava_folder: Path) -> ZeroGPUEngine:
    settings = Settings(
        model=str(tiny_llava_folder), dtype="float32", device="cpu", assets=ROOT / "assets", timing_s=0.01
    )
    return ZeroGPUEngine(settings)


@pytest.fixture
def request_for(video: str) -> Request:  # noqa: F811
    return Request(video, "What color is the car?", TWO, frames=4, max_new_tokens=6)


def results(events: list) -> dict[str, Result]:
    return {event.label: event.result for event in events if isinstance(event, MethodDone)}


def test_answers_are_the_plain_engines(
    zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request, tiny_llava_folder: Path, cpu_settings: Settings
) -> None:
    plain = Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))
    expected, got = (list(engine.stream(request_for)) for engine in (plain, zero))
    several = (Progress, Timing)  # how many rounds fit is the machine's
    kinds = [type(event).__name__ for event in expected if not isinstance(event, several)]
    assert [type(event).__name__ for event in got if not isinstance(event, several)] == kinds
    assert any(isinstance(event, Timing) for event in got)
    assert all(result.latency_ms.rounds for result in got[-1].results)
    assert len(spaces.workers) == 1
    for label, result in results(expected).items():
        other = results(got)[label]
        assert (other.answer, other.kept, other.scores) == (result.answer, result.kept, result.scores)
    assert zero.attention(request_for) == plain.attention(request_for)
    assert len(spaces.workers) == 2


def test_the_video_is_decoded_before_a_gpu_is_asked_for(
    zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = Reader.decode, []

    def decode_in_main(*args: Any) -> Any:
        assert os.getpid() == MAIN, "decoded in the worker"
        calls.append(len(spaces.seconds))
        return decode(*args)

    monkeypatch.setattr(Reader, "decode", decode_in_main)
    events = list(zero.stream(request_for))
    assert isinstance(events[-1], Done)
    assert calls == [0]
    kinds = [type(event) for event in events]
    assert kinds.index(Decoded) < next(i for i, event in enumerate(events) if getattr(event, "stage", "") == "gpu")


def test_seconds_follow_the_request(
    zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces.refusal = "not now"
    two = replace(request_for, max_new_tokens=64)
    one = replace(two, methods=TWO[:1])
    for request in (one, two, replace(two, max_new_tokens=128), replace(one, frames=64)):
        with pytest.raises(DeviceError, match="not now"):
            list(zero.stream(request))
    single, double, long, wide = spaces.seconds
    assert 0 < single < double < long <= MAX_S
    with pytest.raises(DeviceError):
        list(zero.stream(replace(two, timing_s=10)))
    assert double + 9 <= spaces.seconds[-1] <= double + 10
    assert wide > single
    monkeypatch.setattr("sharp_demo.engine.zerogpu.TFLOPS_PER_S", 1e-9)
    with pytest.raises(DeviceError):
        list(zero.stream(request_for))
    assert spaces.seconds[-1] == MAX_S


def test_stop_reaches_the_worker(zero: ZeroGPUEngine, request_for: Request) -> None:
    events, texts = [], 0
    for event in zero.stream(replace(request_for, max_new_tokens=100), "mine"):
        events.append(event)
        texts += isinstance(event, Text)
        if texts == 3:
            zero.stop("mine")
    (result,) = results(events).values()
    assert result.status == "stopped"
    assert result.answer_tokens < 100
    assert isinstance(events[-1], Done)
    (again,) = results(list(zero.stream(replace(request_for, methods=TWO[:1])))).values()
    assert again.status == "done"


def test_a_page_that_goes_away_ends_the_worker(zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request) -> None:
    stream = zero.stream(replace(request_for, max_new_tokens=100))
    next(event for event in stream if isinstance(event, Text))
    stream.close()
    assert not spaces.workers[0].is_alive()
    assert results(list(zero.stream(request_for)))


def test_no_quota_is_spent_on_a_refused_request(zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request) -> None:
    small = ZeroGPUEngine(zero.settings.model_copy(update={"max_visual_tokens": 100}))
    for wrong, error, says in (
        (replace(request_for, question=" "), QuestionError, "question"),
        (replace(request_for, frames=64), ModelError, "576 visual tokens, over the limit of 100"),
        (replace(request_for, model="Qwen/Qwen2-VL-2B-Instruct"), ModelError, "is not served on this hardware"),
    ):
        with pytest.raises(error, match=says):
            list(small.stream(wrong))
    assert not spaces.seconds


def test_embedded_models_cost_no_quota(zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request) -> None:
    assert zero.models() == [zero.default_model, "tiny-llava-onevision", "tiny-qwen2-vl"]
    events = list(zero.stream(replace(request_for, model="tiny-llava-onevision", max_new_tokens=2)))
    assert {result.device for result in results(events).values()} == {"cpu"}
    assert not spaces.seconds


def test_examples_are_asked_with_an_embedded_model(zero: ZeroGPUEngine, cpu_settings: Settings) -> None:
    chosen = []
    for engine in (zero, Engine(zero.settings)):
        page = build_ui(engine, engine.settings)
        (choose,) = [block.fn for block in page.fns.values() if getattr(block.fn, "__name__", "") == "selected"]
        updates = choose(gr.EventData(None, {"index": 0}), SimpleNamespace(session_hash="one"))
        chosen.append(list(updates.values())[:3])
    (clip, question, model), (same_clip, same_question, untouched) = chosen
    assert (clip, question) == (same_clip, same_question)
    assert Path(clip).is_file()
    assert model == "tiny-llava-onevision"
    assert untouched == gr.skip()


def test_no_hub_means_embedded_models_only(
    spaces: FakeSpaces, monkeypatch: pytest.MonkeyPatch, request_for: Request
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    engine = ZeroGPUEngine(Settings(model="nobody/nothing-at-all", device="cpu"))
    assert engine.models() == ["tiny-llava-onevision", "tiny-qwen2-vl"]
    assert engine.default_model == "tiny-llava-onevision"


def test_the_visitor_reads_why_there_is_no_gpu(zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request) -> None:
    spaces.refusal = "You have exceeded your ZeroGPU quota (30s requested vs. 4s left)."
    with pytest.raises(DeviceError, match=r"30s requested vs\. 4s left"):
        zero.attention(request_for)
    folder = Path(request_for.video).parent
    api = Api(Runs(zero, zero.settings, folder, folder))
    with pytest.raises(Error, match=r"30s requested vs\. 4s left"):
        list(api.compare(request_for.video, "What?", ["sharp"], 0.2, "tokens", 4, zero.default_model))


def test_a_worker_that_dies_is_told_as_such(
    zero: ZeroGPUEngine, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr("sharp_demo.engine.zerogpu.warm_up", die)
        with pytest.raises(DeviceError, match="aborted"):
            list(zero.stream(request_for))
    assert results(list(zero.stream(request_for)))


def test_a_worker_whose_device_is_lost_ends_after_it_has_said_so(
    zero: ZeroGPUEngine, spaces: FakeSpaces, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker is lent to the next visitor, who would only find a dead device in it."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    for module, broken in ((generation, "prefill"), (stages, "encode_video")):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, fail)
            patch.setattr("sharp_demo.engine.zerogpu.warm_up", lambda backbone: None)
            events = list(zero.stream(request_for))
        failed = [(event.label, event.kind, event.message) for event in events if isinstance(event, MethodFailed)]
        assert failed == [(label, "device_lost", DEVICE_LOST) for label in ("vanilla", "sharp")]
        assert isinstance(events[-1], Done)
        assert len(events[-1].failed) == 2
        assert spaces.workers[-1].exitcode == EXIT_DEVICE_LOST
        assert not zero.condition.lost, "the main process has no part in that device"
    with monkeypatch.context() as patch:
        patch.setattr(attention, "probe_attention", fail)
        with pytest.raises(DeviceError, match="aborted"):
            zero.attention(request_for)
    assert spaces.workers[-1].exitcode == EXIT_DEVICE_LOST
    assert results(list(zero.stream(request_for)))
    assert spaces.workers[-1].exitcode == 0


def test_two_methods_unless_the_host_says_otherwise(zero: ZeroGPUEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zero.settings.methods == METHODS
    monkeypatch.setenv("SHARP_METHODS", "vanilla, fastv,sharp")
    assert ZeroGPUEngine(Settings(device="cpu", model="tiny-qwen2-vl")).settings.methods == (
        "vanilla",
        "fastv",
        "sharp",
    )


def test_the_fake_enforces_the_rules(zero: ZeroGPUEngine, spaces: FakeSpaces) -> None:
    with pytest.raises(RuntimeError, match=r"outside a spaces\.GPU call"):
        zero._placed.backbone.model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(pickle.PicklingError, match="Tensor may not cross"):
        crossing({"x": torch.zeros(1)})
    leaking = spaces.GPU(types.MethodType(lambda self: torch.zeros(1), object()), duration=lambda: 1)
    with pytest.raises(Error, match="PicklingError"):
        leaking()


@pytest.mark.parametrize(("value", "engine"), [("true", "zero"), ("", "plain")])
def test_app_builds_the_engine_of_its_hardware(value: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    class Stop(Exception):
        pass

    def stand_in(name: str) -> Callable[[Settings], None]:
        def build(settings: Settings) -> None:
            built.append(name)
            raise Stop

        return build

    monkeypatch.setenv("SPACES_ZERO_GPU", value)
    monkeypatch.setattr(background, "BackgroundEngine", stand_in("plain"))
    monkeypatch.setattr(zerogpu, "ZeroGPUEngine", stand_in("zero"))
    with suppress(Stop):
        app.main()
    assert built == [engine]
    assert "spaces" not in sys.modules


def test_a_space_listens_on_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARP_HOST", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert Settings().host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "someone/demo")
    assert Settings().host == "0.0.0.0"
