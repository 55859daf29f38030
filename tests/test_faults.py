"""Faults injected into a run: each ends in its own message, loses nothing for others, and the next request succeeds."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sharp_demo.engine import Engine, attention, generation, runs, stages
from sharp_demo.engine.faults import is_device_lost, is_out_of_memory
from sharp_demo.errors import DeviceLostError, DeviceMemoryError, ModelError, VideoError
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.records import Decoded, Event, MethodDone, MethodFailed, MethodSpec, Progress, Request, Result
from sharp_demo.settings import Settings
from sharp_demo.video import sandbox
from tests.video.clips import write_clip

FOUR = tuple(MethodSpec(name) for name in ("vanilla", "fastv", "feather", "sharp"))
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
ASSERTED = RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture
def engine(cpu_settings: Settings, tiny_llava_folder: Path) -> Engine:
    return Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (120, 160, 3)).astype(np.uint8) for _ in range(16)]
    return str(write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", "h264", pictures, fps=8))


@pytest.fixture
def request_for(video: str) -> Request:
    return Request(video, "What moves?", FOUR, frames=8, max_new_tokens=4)


def results(events: Iterator[Event] | list[Event]) -> dict[str, Result]:
    return {event.label: event.result for event in events if isinstance(event, MethodDone)}


def failures(events: list[Event]) -> dict[str, str]:
    return {event.label: event.kind for event in events if isinstance(event, MethodFailed)}


def same(one: Result, other: Result) -> bool:
    return (one.answer, one.kept, one.scores) == (other.answer, other.kept, other.scores)


def raising(error: BaseException, times: int, original: Callable) -> Callable:
    """A function that raises so many times before it does what the original does."""
    left = [times]

    def call(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise type(error)(*error.args)  # a new one: the traceback of an old one would hold on to tensors
        return original(*args, **kwargs)

    return call


def assert_next_works(engine: Engine, request: Request, expected: dict[str, Result]) -> None:
    got = results(engine.stream(request))
    assert list(got) == list(expected)
    assert all(same(got[label], expected[label]) for label in expected)
    assert not engine.condition.running


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_method_out_of_memory_is_tried_once_more_with_half_the_frames(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))
    with monkeypatch.context() as patch:
        patch.setattr(Prefill, "unrotated_logits", raising(OUT_OF_MEMORY, 1, Prefill.unrotated_logits))
        events = list(engine.stream(request_for))
    assert failures(events) == {}
    got = results(events)
    assert got["feather"].layout.frames == 4
    assert got["feather"].layout.timestamps == expected["feather"].layout.timestamps[::2]
    assert got["feather"].notes[0] == "Memory ran out: this answer saw only 4 frames."
    assert any(isinstance(event, Progress) and "feather ran out of memory" in event.message for event in events)
    assert all(same(got[label], expected[label]) for label in ("vanilla", "fastv", "sharp"))
    assert_next_works(engine, request_for, expected)


def test_a_method_that_never_fits_fails_alone_and_leaves_no_tensor_behind(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with monkeypatch.context() as patch:
        patch.setattr(Prefill, "unrotated_logits", raising(OUT_OF_MEMORY, 2, Prefill.unrotated_logits))
        events = list(engine.stream(request_for))
        assert failures(events) == {"feather": "out_of_memory"}
        (failed,) = [event for event in events if isinstance(event, MethodFailed)]
        assert "8 x 9 = 72 visual tokens" in failed.message
        assert engine.condition.error == failed.message
        del events, failed
        before = tensors()
        patch.setattr(Prefill, "unrotated_logits", raising(OUT_OF_MEMORY, 2, Prefill.unrotated_logits))
        assert failures(list(engine.stream(request_for))) == {"feather": "out_of_memory"}
        assert tensors() == before
    assert_next_works(engine, request_for, expected)


def test_a_vision_tower_out_of_memory_sees_half_the_frames_for_all(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))
    again = replace(request_for, frames=6)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "encode_video", raising(OUT_OF_MEMORY, 1, stages.encode_video))
        events = list(engine.stream(again))
    assert [len(event.frames) for event in events if isinstance(event, Decoded)] == [6, 3]
    got = results(events)
    assert {result.layout.frames for result in got.values()} == {3}
    assert all("saw only 3 frames" in result.notes[0] for result in got.values())
    assert {result.layout.frames for result in results(engine.stream(again)).values()} == {6}, "the next one fits"
    assert_next_works(engine, request_for, expected)


def test_a_request_that_fits_in_no_way_is_refused_with_advice(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "encode_video", raising(OUT_OF_MEMORY, 2, stages.encode_video))
        with pytest.raises(DeviceMemoryError, match="fewer frames or a smaller model"):
            list(engine.stream(replace(request_for, frames=5)))
    assert_next_works(engine, request_for, expected)


def test_a_model_that_does_not_survive_its_warm_up_is_not_taken_for_loaded(engine, request_for, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "warm_up", raising(OUT_OF_MEMORY, 1, runs.warm_up))
        with pytest.raises(DeviceMemoryError):
            list(engine.stream(request_for))
        assert engine.condition.state == "not loaded"
    assert len(results(engine.stream(request_for))) == 4
    assert engine.condition.state == "ready"


def test_attention_out_of_memory_is_a_typed_error(engine, request_for, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(attention, "probe_attention", raising(OUT_OF_MEMORY, 1, attention.probe_attention))
        with pytest.raises(DeviceMemoryError):
            engine.attention(request_for)
    assert len(engine.attention(request_for).raw) == 4


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (OUT_OF_MEMORY, True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True, False),
        (MemoryError(), True, False),
        (ASSERTED, False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_kinds_of_device_errors(error, memory, lost):
    assert (is_out_of_memory(error), is_device_lost(error)) == (memory, lost)


# -- the device, the thread, the client ------------------------------------------------------------------------------


def test_a_lost_device_fails_what_is_left_and_every_later_request(engine, request_for, monkeypatch):
    list(engine.stream(request_for))
    monkeypatch.setattr(Prefill, "unrotated_logits", raising(ASSERTED, 1, Prefill.unrotated_logits))
    events = list(engine.stream(request_for))
    assert list(results(events)) == ["vanilla", "fastv"]
    assert failures(events) == {"feather": "device_lost", "sharp": "device_lost"}
    assert "must restart" in engine.condition.lost
    for call in (lambda: list(engine.stream(request_for)), lambda: engine.attention(request_for)):
        with pytest.raises(DeviceLostError, match="must restart"):
            call()


def test_a_device_lost_while_encoding_is_noticed_too(engine, request_for, monkeypatch):
    monkeypatch.setattr(stages, "encode_video", raising(ASSERTED, 1, stages.encode_video))
    with pytest.raises(DeviceLostError):
        list(engine.stream(request_for))
    assert engine.condition.lost


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_generation_thread_holds_nothing(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))
    with monkeypatch.context() as patch:
        patch.setattr(generation, "decode_step", raising(SystemExit(), 1, generation.decode_step))
        died = threading.Thread(target=lambda: list(engine.stream(request_for)))
        died.start()
        died.join(30)
        assert not died.is_alive()
    assert_next_works(engine, request_for, expected)


def test_a_run_whose_client_left_computes_no_further_token(engine, request_for, monkeypatch):
    expected = results(engine.stream(request_for))
    steps = []
    original = generation.decode_step
    with monkeypatch.context() as patch:
        patch.setattr(generation, "decode_step", lambda *args: steps.append(1) or original(*args))
        stream = engine.stream(replace(request_for, max_new_tokens=100))
        while len(steps) < 2:
            next(stream)
        stream.close()
        assert len(steps) == 2
        assert not engine._lock.locked()
    assert_next_works(engine, request_for, expected)


def test_the_condition_follows_the_run(engine, request_for):
    assert engine.condition.state == "not loaded"
    stream = engine.stream(request_for)
    next(stream)
    assert (engine.condition.running, engine.condition.runs) == (True, 0)
    stream.close()
    assert (engine.condition.running, engine.condition.runs) == (False, 1)
    list(engine.stream(request_for))
    assert (engine.condition.state, engine.condition.runs, engine.condition.error) == ("ready", 2, "")


def test_a_clock_that_jumps_changes_nothing(engine, request_for, monkeypatch):
    """Every look at the wall clock finds it a day later or earlier; limits and figures go by another one."""
    expected = results(engine.stream(request_for))
    now, jumps = time.time(), itertools.cycle((86_400.0, -86_400.0, 0.0))
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    fresh = Engine(engine.settings)
    start = time.monotonic()
    got = results(fresh.stream(request_for))
    took = 1000 * (time.monotonic() - start)
    assert all(same(got[label], expected[label]) for label in expected)
    assert all(0 < result.latency_ms.total < took for result in got.values())


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import os; os.abort()", "crashed", "crashes the decoders"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "killed", "killed from outside"),
        ("import time; time.sleep(60)", "timeout", "longer than 4 s"),
    ],
)
def test_a_decoder_that_crashes_hangs_or_is_killed(
    code, kind, message, cpu_settings, tiny_llava_folder, request_for, monkeypatch
):
    quick = cpu_settings.model_copy(update={"model": str(tiny_llava_folder), "decode_timeout_s": 4.0})
    engine = Engine(quick)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "command", lambda preload: [sys.executable, "-c", code])
        with pytest.raises(VideoError, match=message) as refused:
            list(engine.stream(request_for))
    assert refused.value.kind == kind
    assert len(results(engine.stream(request_for))) == 4


def test_a_full_disk_is_said_and_survived(engine, request_for, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        with pytest.raises(VideoError, match="cannot be decoded now") as refused:
            list(engine.stream(request_for))
    assert refused.value.kind == "unavailable"
    assert len(results(engine.stream(request_for))) == 4


def test_an_upload_that_is_gone_or_was_replaced(engine, request_for, video, tmp_path):
    copy = Path(shutil.copy(video, tmp_path / "b.mp4"))
    mine = replace(request_for, video=str(copy))
    first = results(engine.stream(mine))
    copy.unlink()
    with pytest.raises(VideoError, match="no file"):
        list(engine.stream(mine))
    write_clip(copy, frames=16)
    second = results(engine.stream(mine))
    assert not same(first["vanilla"], second["vanilla"]), "what the cache held belongs to the old content"
    assert_next_works(engine, request_for, first)


def in_shards(folder: Path, damage: Callable[[Path], object]) -> None:
    """Write a checkpoint's weights as two shards and damage the second."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    damage(folder / "b.safetensors")


def without_metadata(folder: Path) -> None:
    """Write weights in shards whose index lacks what transformers asks for."""
    in_shards(folder, lambda shard: None)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))


def with_header(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a safetensors file's header, whose length stays."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:8] + change(data[8:end]).ljust(end - 8)[: end - 8] + data[end:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: in_shards(folder, Path.unlink), "shards are missing"),
        (lambda folder: in_shards(folder, lambda shard: os.truncate(shard, 50_000)), "b.safetensors is cut off"),
        (lambda folder: in_shards(folder, lambda shard: shard.write_bytes(b"")), "b.safetensors is corrupt"),
        (
            lambda folder: in_shards(folder, lambda shard: with_header(shard, lambda text: text[1:])),
            "b.safetensors is corrupt",
        ),
        (
            lambda folder: in_shards(
                folder, lambda shard: with_header(shard, lambda text: text.replace(b"F32", b"Z99"))
            ),
            "Z99|corrupt|cannot be read",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 50_000), "is cut off"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 50_000), "corrupt"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "token"),
    ],
)
def test_a_model_that_is_missing_half_downloaded_or_corrupt(
    damage, message, engine, request_for, tiny_llava_folder, tmp_path
):
    broken = Path(shutil.copytree(tiny_llava_folder, tmp_path / "broken"))
    damage(broken)
    with pytest.raises(ModelError, match=message) as said:
        list(engine.stream(replace(request_for, model=str(broken))))
    assert "\n" not in str(said.value)
    assert engine.condition.state == "not loaded"
    assert len(results(engine.stream(request_for))) == 4
