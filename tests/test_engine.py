"""The engine on real files and real (tiny, random) checkpoints: events, figures, cancelling, isolation."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sharp_demo.backbones.families import FAMILIES
from sharp_demo.backbones.load import Backbone
from sharp_demo.cost import ModelShape, exact_tflops, paper_tflops, score_macs
from sharp_demo.engine import Engine, faults, generation, runs, stages
from sharp_demo.engine.figures import prefill_tflops
from sharp_demo.engine.generation import prefill
from sharp_demo.engine.requests import unique_labels
from sharp_demo.errors import InputError, MethodError, ModelError, QuestionError, VideoError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods, make_method
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.records import (
    Decoded,
    Done,
    Encoded,
    Event,
    Memory,
    MethodDone,
    MethodFailed,
    MethodSpec,
    Request,
    Result,
    Stage,
    Started,
    Text,
)
from sharp_demo.settings import Settings
from sharp_demo.video import Reader
from sharp_demo.video.digest import file_digest
from sharp_demo.views.summary import figures_of, flops_ratio
from tests.conftest import USUAL
from tests.pruning.prompts import Prompt, greedy
from tests.video.clips import write_clip

FOUR = tuple(MethodSpec(name) for name in ("vanilla", "fastv", "feather", "sharp"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    rng = np.random.default_rng(0)
    frames = [
        np.clip(np.full((120, 160, 3), colours[i // 8]) + rng.integers(-30, 30, (120, 160, 3)), 0, 255).astype(np.uint8)
        for i in range(24)
    ]
    return str(write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", "h264", frames, fps=8))


@pytest.fixture(scope="module")
def engine(cpu_settings: Settings, tiny_llava_folder: Path) -> Engine:
    return Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))


@pytest.fixture(
    params=[pytest.param(one.name, marks=pytest.mark.full if one.name not in USUAL else ()) for one in FAMILIES]
)
def request_for(request: pytest.FixtureRequest, video: str, tiny_folder_of: Callable[[str], Path]) -> Request:
    folder = tiny_folder_of(request.param)
    return Request(video, "What color is the car?", FOUR, model=str(folder), frames=8, max_new_tokens=6)


def results(events: Iterator[Event]) -> dict[str, Result]:
    """The results of a run that came to its end, by label."""
    (done,) = (event for event in events if isinstance(event, Done))
    return {result.label: result for result in done.results}


def test_events_come_in_order_and_are_plain_data(engine: Engine, request_for: Request) -> None:
    events = list(engine.stream(request_for))
    kinds = [type(event).__name__ for event in events if type(event).__name__ not in ("Text", "Progress")]
    timing = len(kinds) - 12
    assert timing >= 4
    answered = ["MethodStarted", "MethodDone"] * 4
    assert kinds == ["Started", "Decoded", "Encoded", *answered, *["Timing"] * timing, "Done"]
    started = next(event for event in events if isinstance(event, Started))
    assert started.labels == ("vanilla", "fastv", "feather", "sharp")
    assert started.model.name == request_for.model
    for event in events:
        assert type(pickle.loads(pickle.dumps(event))) is type(event)
    done = events[-1]
    assert isinstance(done, Done)
    assert json.loads(json.dumps([result.to_dict() for result in done.results])) == [
        json.loads(json.dumps(result.to_dict())) for result in done.results
    ]
    texts = [event.text for event in events if isinstance(event, Text) and event.label == "fastv"]
    fastv = results(iter(events))["fastv"]
    assert texts[-1] == fastv.answer
    assert len(texts) == fastv.answer_tokens


@pytest.mark.parametrize(
    "released",
    [
        {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001},  # Qwen2.5-VL
        {"do_sample": True, "repetition_penalty": 1.0, "temperature": 0.7, "top_k": 20, "top_p": 0.8},  # Qwen3-VL
    ],
)
def test_a_checkpoints_sampling_does_not_leak(
    released: dict, video: str, tiny_qwen_folder: Path, tmp_path: Path, cpu_settings: Settings
) -> None:
    """Answers are greedy and without a penalty, whatever generation_config.json says; its end tokens hold."""
    folder = Path(shutil.copytree(tiny_qwen_folder, tmp_path / "released"))
    told = json.loads((folder / "generation_config.json").read_text())
    answers = []
    for config in (told, told | released):
        (folder / "generation_config.json").write_text(json.dumps(config))
        engine = Engine(cpu_settings.model_copy(update={"model": str(folder)}))
        asked = Request(video, "What color is the car?", FOUR[:2], frames=8, max_new_tokens=12)
        answers.append({label: one.answer for label, one in results(engine.stream(asked)).items()})
        assert len(told["eos_token_id"]) == 2
    assert answers[0] == answers[1]


def test_figures_are_what_was_achieved(engine: Engine, request_for: Request) -> None:
    events = list(engine.stream(request_for))
    layout = next(event.layout for event in events if isinstance(event, Encoded))
    decoded = next(event for event in events if isinstance(event, Decoded))
    assert decoded.frames.shape[0] == 8
    assert layout.frames * layout.frames_per_token == 8
    assert len(layout.timestamps) == layout.frames
    n, layers = layout.tokens, 4
    for label, result in results(iter(events)).items():
        kept = sum(len(frame) for frame in result.kept)
        assert kept == result.tokens.kept == result.visual_per_layer[-1]
        assert result.tokens.visual == n
        assert result.tokens.retention == kept / n
        assert result.tokens.layer_mean == pytest.approx(sum(result.visual_per_layer) / layers / n)
        assert [len(frame) for frame in result.role] == [len(frame) for frame in result.kept]
        assert all(
            frame == sorted(set(frame)) and max(frame, default=0) < layout.rows * layout.cols for frame in result.kept
        )
        assert kept == (n if label == "vanilla" else max(1, round(0.2 * n)))
        assert all(len(scores) == n for scores in result.scores.values())
        assert set(result.scores) == {"vanilla": set(), "sharp": {"raw", "bias", "debiased"}}.get(label, {"raw"})
        assert result.memory == Memory(kv_bytes(result), None)
        assert 0 < result.first_token_prob <= 1
        assert result.status == "done"
        assert result.versions["torch"] == torch.__version__


def test_equal_frames_are_counted(engine: Engine, request_for: Request, tmp_path: Path) -> None:
    still = str(write_clip(tmp_path / "still.mp4", "h264", [np.zeros((120, 160, 3), np.uint8)] * 24, fps=8))
    events = list(engine.stream(replace(request_for, video=still, methods=FOUR[:1], timing_s=0, max_new_tokens=1)))
    (encoded,) = (event for event in events if isinstance(event, Encoded))
    (result,) = results(iter(events)).values()
    assert result.encoded_frames == encoded.frames == 1 < encoded.layout.frames
    assert {figure.key: figure.value for figure in figures_of(result, None)}[
        "encoded"
    ] == f"1 of {result.layout.frames}"


def test_equal_time_to_the_first_token_by_the_cost_model(engine: Engine, request_for: Request) -> None:
    methods = tuple(MethodSpec(name) for name in ("vanilla", "fastv", "sharp", "evs"))
    asked = replace(request_for, methods=methods, match="ttft", retention=0.5, timing_s=0, max_new_tokens=1)
    answered = results(engine.stream(asked))
    for result in answered.values():
        assert result.tflops.tower_exact == answered["vanilla"].tflops.tower_exact > result.tflops.tower_paper > 0
    cost = {label: one.tflops.exact + one.tflops.tower_exact for label, one in answered.items()}
    for label in ("sharp", "evs"):
        assert cost[label] == pytest.approx(cost["fastv"], rel=0.02)
    assert cost["fastv"] < cost["vanilla"]
    assert answered["fastv"].tokens.kept == round(0.5 * answered["fastv"].tokens.visual)


def test_a_method_may_have_the_video_shown_its_own_way(
    engine: Engine, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only it is encoded for, and what it saw is told; the others share what they always share."""
    names = ("vanilla", "fewer_frames", "smaller_frames", "tome", "tome+sharp", "fastv")
    seen: list[int] = []
    original = stages.encode_video

    def encode(model: Any, pixels: dict[str, Any], **options: Any) -> Any:
        features = original(model, pixels, **options)
        seen.append(features.frames)
        return features

    monkeypatch.setattr(stages, "encode_video", encode)
    engine.forget()
    methods = tuple(MethodSpec(name) for name in names)
    asked = replace(request_for, methods=methods, retention=0.5, timing_s=0, max_new_tokens=2)
    answered = results(engine.stream(asked))
    whole = answered["vanilla"].layout
    resizable = len(seen) == 4
    assert seen == [whole.frames, whole.frames // 2, *[whole.frames] * (1 + resizable)]  # both tomes ask for the same
    for label, result in answered.items():
        own = label in ("fewer_frames", "tome", "tome+sharp") or (label == "smaller_frames" and resizable)
        assert result.own_vision == own
        assert result.latency_ms.stages["vision"].shared != own
        assert any("not shared" in note for note in result.notes) == own
        assert result.tokens.visual == whole.tokens
        assert result.tokens.retention == result.tokens.kept / whole.tokens
    fewer, smaller, merged = (answered[label] for label in names[1:4])
    assert fewer.layout.frames == whole.frames // 2 == fewer.encoded_frames
    assert fewer.tokens.kept == whole.tokens // 2 == fewer.visual_per_layer[0]
    assert fewer.layout.timestamps[0] > whole.timestamps[0]
    assert 0 < smaller.tokens.kept <= whole.tokens // 2
    assert merged.layout == whole
    assert merged.tokens.kept == whole.tokens
    towers = {label: result.tflops.tower_exact for label, result in answered.items()}
    assert towers["fewer_frames"] == pytest.approx(towers["vanilla"] / 2)
    assert towers["tome"] < towers["vanilla"] == towers["fastv"]
    assert (towers["smaller_frames"] < towers["vanilla"]) == resizable
    seen.clear()
    list(engine.stream(asked))
    assert seen == []  # all of it is kept


def kv_bytes(result: Result) -> int:
    text = result.tokens.prompt - result.tokens.visual
    return int(sum(2 * 2 * 16 * 4 * (visual + text) for visual in result.visual_per_layer))  # 2 heads of 16, fp32


def test_latencies_add_up(engine: Engine, request_for: Request) -> None:
    for result in results(engine.stream(request_for)).values():
        times = result.latency_ms
        stages = times.stages
        inner = [stage.ms for stage in stages.values() if stage.part_of == "prefill"]
        assert sum(inner) == pytest.approx(times.prefill)
        assert stages["forward"].ms > 0
        alone = [stage.ms for stage in stages.values() if stage.part_of is None]
        assert sum(alone) + times.prefill == pytest.approx(times.total)
        before = [stage.ms for name, stage in stages.items() if stage.part_of is None and name != "decode"]
        assert sum(before) == pytest.approx(times.before_prefill)
        assert times.before_prefill + times.prefill == pytest.approx(times.first_token)
        assert times.first_token + times.decode == pytest.approx(times.total)
        assert {name for name, stage in stages.items() if stage.shared} == {"decode_video", "vision"}


def test_answers_are_those_of_the_library(engine: Engine, request_for: Request) -> None:
    """The engine's column equals `with method(...)` around the same features by hand."""
    events = list(engine.stream(request_for))
    clip = next(event for event in events if isinstance(event, Decoded))
    backbone = engine._loaded.backbone
    prompt = Prompt(backbone, clip.frames)
    for label, result in results(iter(events)).items():
        method = make_method(label, 0.2)
        with method(backbone.model, backbone.processor) as run:
            ids, logits, _ = greedy(prompt, steps=6)
        per_frame = result.layout.rows * result.layout.cols
        slots = [f * per_frame + token for f, frame in enumerate(result.kept) for token in frame]
        assert slots == run.kept.tolist()
        assert result.answer == backbone.processor.decode(ids[: result.answer_tokens])
        assert result.first_token_prob == pytest.approx(float(logits[0].softmax(-1).max()), rel=1e-5)


def test_the_set_up_of_the_first_use_is_in_no_figure(cpu_settings: Settings, request_for: Request) -> None:
    engine = Engine(cpu_settings)
    first, second = (results(engine.stream(request_for)) for _ in range(2))
    cold, warm = first["sharp"], second["sharp"]
    assert cold.latency_ms.bias_setup > 0
    assert cold.latency_ms.stages["bias_setup"] == Stage(cold.latency_ms.bias_setup, shared=False, part_of="once")
    assert warm.latency_ms.bias_setup == 0
    assert "bias_setup" not in warm.latency_ms.stages
    assert cold.tflops == warm.tflops
    assert 0 < cold.tflops.setup < cold.tflops.exact
    assert flops_ratio(cold, first["vanilla"]) == flops_ratio(warm, second["vanilla"])
    assert cold.kept == warm.kept
    assert cold.answer == warm.answer


def test_video_is_decoded_and_encoded_once(
    cpu_settings: Settings, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"decode": 0, "encode_video": 0}
    for name, modules in (("decode", (Reader,)), ("encode_video", (stages, generation))):
        original = getattr(modules[0], name)

        def counted(*args, _name=name, _original=original, **kwargs):
            counts[_name] += 1
            return _original(*args, **kwargs)

        for module in modules:
            monkeypatch.setattr(module, name, counted)
    engine = Engine(cpu_settings)
    first = list(engine.stream(request_for))
    counts["encode_video"] -= 1  # the warm-up of loading
    assert counts == {"decode": 1, "encode_video": 1}
    again = list(engine.stream(replace(request_for, retention=0.5)))
    assert counts == {"decode": 1, "encode_video": 1}
    assert [event.cached for event in [*first, *again] if isinstance(event, Encoded)] == [False, True]
    list(engine.stream(replace(request_for, frames=4)))
    assert counts == {"decode": 2, "encode_video": 2}


def test_a_traced_run_tells_its_steps_and_changes_nothing(engine: Engine, request_for: Request) -> None:
    specs = (MethodSpec("sharp", label="plain"), MethodSpec("sharp", {"trace": True}, "traced"))
    found = results(engine.stream(replace(request_for, methods=specs, retention=0.25, timing_s=0)))
    plain, traced = found["plain"], found["traced"]
    assert (traced.kept, traced.role, traced.answer, traced.scores) == (
        plain.kept,
        plain.role,
        plain.answer,
        plain.scores,
    )
    assert not plain.trace
    trace = traced.trace
    json.dumps(trace)
    cuts = [frame + 1 for frame, cosine in enumerate(trace["cosines"]) if cosine < traced.config["tau_seg"]]
    assert [first for first, _ in traced.segments] == [0, *cuts]
    size = traced.layout.rows * traced.layout.cols
    kept = {frame * size + token for frame, tokens in enumerate(traced.kept) for token in tokens}
    absorbed = {register for register, _ in trace["absorbed"]}
    assert (set(trace["registers"]) - absorbed) | {*trace["filled"], *trace["repaired"]} == kept


def test_one_run_may_hold_a_method_at_several_retentions(engine: Engine, request_for: Request) -> None:
    shares = (0.5, 0.25, 0.1)
    specs = tuple(MethodSpec("sharp", {}, f"at {share}", share) for share in shares)
    swept = results(engine.stream(replace(request_for, methods=specs, retention=0.9, timing_s=0)))
    for share in shares:
        (alone,) = results(
            engine.stream(replace(request_for, methods=(MethodSpec("sharp"),), retention=share))
        ).values()
        one = swept[f"at {share}"]
        assert (one.kept, one.answer, one.config) == (alone.kept, alone.answer, alone.config)
        assert (one.latency_ms.rounds, one.speedup) == ([], None)
    with pytest.raises(MethodError, match="retention is 2"):
        next(engine.stream(replace(request_for, methods=(MethodSpec("sharp", retention=2.0),))))


def test_flops_matched_budgets_cost_what_fastv_costs(engine: Engine, request_for: Request) -> None:
    matched = results(engine.stream(replace(request_for, match="flops", retention=0.4)))
    shape = engine._loaded.shape
    fastv = matched["fastv"]
    assert fastv.tokens.kept == round(0.4 * fastv.tokens.visual)
    assert matched["sharp"].tokens.kept > fastv.tokens.kept
    one_token = paper_tflops(shape, [fastv.tokens.visual]) / fastv.tokens.visual * shape.layers
    for result in matched.values():
        if result.method != "vanilla":
            assert abs(result.tflops.paper - fastv.tflops.paper) < one_token
            assert result.tflops.paper < matched["vanilla"].tflops.paper


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vanilla", {}),
        ("fastv", {"layer": 3}),
        ("feather", {"paper_mode": True}),
        ("sharp", {}),
        ("sharp", {"score_layer": "first", "layer": 2}),
        ("sharp", {"penalty": 0}),
        ("pdrop", {}),
        ("visionzip", {"dominant": 64}),
        ("evs", {}),
        ("divprune", {}),
        ("flashvid", {"alpha": 1.0}),  # nothing merges
        ("fastvid", {"context": 0.0}),
        ("dycoke", {}),
        ("vidcom2", {}),
        ("vidcom2", {"channel_share": 0.2, "exact": False}),
        ("dart", {}),
        ("dart", {"layer": 0, "text_pivots": 2}),
        ("cdpruner", {}),
        ("cdpruner", {"scope": "video", "relevance": "question"}),
        ("cdpruner", {"relevance": "none"}),
        ("divprune", {"scope": "frame", "first": "mean"}),
        ("sharpv", {}),
        ("framefusion", {}),
        ("framefusion", {"similarity": 1.0}),
        ("holitom", {"tau": 1.0, "drop": 0.0}),  # nothing merges: token similarities are not counted
        ("visionzip+sharp", {"dominant": 64}),
        ("vidcom2+sharp", {}),
        ("vidcom2+sharp", {"outer_ratio": 9.0}),
        ("visionzip+sharp", {"dominant": 64, "score_layer": "first", "layer": 2}),
        ("holitom+sharp", {"outer_tau": 1.0}),
        ("holitom+sharp", {"outer_tau": 1.0, "score_layer": "lookahead", "layer": 2}),
    ],
)
def test_exact_flops_are_those_torch_counts(
    name: str, options: dict, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products as counted by torch, attention as (query, key) pairs that the mask lets through."""
    method = make_method(
        name, 0.3, {**options, **({"segm": False, "regd": False} if "sharp" in name.split("+") else {})}
    )
    prompt, cache, attention = Prompt(tiny), BiasCache(), 0

    def counted(query: torch.Tensor, key: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        nonlocal attention
        mask, n = kwargs.get("attn_mask"), query.shape[2]
        pairs = n * (n + 1) // 2 if kwargs.get("is_causal") else n * key.shape[2]
        if mask is not None:
            pairs = int((mask if mask.dtype == torch.bool else mask == 0).sum())
        attention += pairs * 4 * query.shape[1] * query.shape[3]
        return original(query, key, *args, **kwargs)

    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with method(tiny.model, tiny.processor, cache) as run, torch.inference_mode():
        prefill(tiny.model, prompt.inputs())  # makes the bias, which takes the vision tower too
        attention = 0
        with FlopCounterMode(display=False) as counter:
            prefill(tiny.model, prompt.inputs())
    products = sum(
        flops for kernel, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(kernel)
    )
    shape = ModelShape.from_config(tiny.model.config.text_config)
    exact = prefill_tflops(shape, method, run, prompt.length).exact
    # FrameFusion's scores count as one row: none is needed where merging was enough, four on Qwen2-VL.
    assert exact * 1e12 == pytest.approx(products + attention, rel=5e-3 if name == "framefusion" else 1e-9)


def test_scores_of_all_parts_are_counted(tiny: Backbone) -> None:
    """Both of two methods score; neither's cost replaces the other's."""
    prompt, shape = Prompt(tiny), ModelShape.from_config(tiny.model.config.text_config)
    both = FastV(retention=0.5, layer=1) + FastV(retention=0.2, layer=2)
    with both(tiny.model) as run, torch.inference_mode():
        prefill(tiny.model, prompt.inputs())
    text, n = prompt.length - len(prompt.layout), len(prompt.layout)
    rows = score_macs(shape, n + text) + score_macs(shape, run.visual_per_layer[1] + text)
    bare = exact_tflops(shape, run.visual_per_layer, text)
    exact = prefill_tflops(shape, both, run, prompt.length).exact
    assert (exact - bare) * 1e12 == pytest.approx(2 * rows, rel=1e-6)


def test_exact_flops_know_which_layers_are_masked_and_from_what(tiny: Backbone) -> None:
    prompt, tflops = Prompt(tiny), {}
    shape = ModelShape.from_config(tiny.model.config.text_config)
    for layers in ((), (1,), (0, 1), (0, 1, 2)):
        for sys_visible in (True, False):
            masked = {"segm_layers": layers} if layers else {"segm": False}
            options = {**masked, "sys_visible": sys_visible, "tau_seg": 0.999}
            method = ShaRP(retention=0.3, layer=2, posc=False, regd=False, **options)
            with method(tiny.model) as run:
                greedy(prompt, steps=1)
            tflops[layers, sys_visible] = prefill_tflops(shape, method, run, prompt.length).exact
    assert len(run.segments) > 1
    frame, start, n = prompt.layout.frame, int(prompt.layout.index[0]), len(prompt.layout)
    segment = sum((frame >= first).long() for first, _ in run.segments)
    apart = int((segment[:, None] > segment[None]).sum())  # pairs that one masked layer does not compute
    for sys_visible, hidden in ((True, apart), (False, apart + n * start)):
        for layers, masked in (((1,), 1), ((0, 1), 2), ((0, 1, 2), 2)):  # layer 2 runs on what is left
            saved = (tflops[(), sys_visible] - tflops[layers, sys_visible]) * 1e12
            assert saved == pytest.approx(masked * hidden * 4 * shape.query_width)


def test_an_overflowed_model_still_gives_valid_json(
    engine: Engine, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.stream(request_for))
    lost = torch.full_like(engine._loaded.backbone.model.model.language_model.norm.weight, torch.nan)
    monkeypatch.setattr(engine._loaded.backbone.model.model.language_model.norm.weight, "data", lost)
    got = results(engine.stream(request_for))
    assert len(got) == 4
    for result in got.values():
        assert result.first_token_prob is None
        json.dumps(result.to_dict(), allow_nan=False)


def test_a_file_that_may_not_be_read_is_left_to_the_decoder(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert file_digest(video) == video


def test_stop_ends_between_two_tokens_and_is_labelled(engine: Engine, request_for: Request) -> None:
    request = replace(request_for, max_new_tokens=100)
    events: list[Event] = []
    for event in engine.stream(request, run_id="mine"):
        events.append(event)
        if isinstance(event, Text) and event.label == "fastv":
            assert engine.stop("mine")
    stopped = results(iter(events))
    assert [result.status for result in stopped.values()] == ["done", "stopped"]
    assert stopped["fastv"].answer_tokens == 1
    assert isinstance(events[-1], Done)
    assert not engine.stop("mine")
    assert len(results(engine.stream(request_for))) == 4


def test_a_stop_reaches_a_run_that_still_waits(engine: Engine, request_for: Request) -> None:
    first = engine.stream(request_for, run_id="first")
    next(first)
    waiting = engine.stream(request_for, run_id="second")
    assert next(waiting).stage == "queue"
    got: list[Event] = []
    thread = threading.Thread(target=lambda: got.extend(waiting))
    thread.start()
    assert engine.stop("second")
    thread.join(10)
    assert not thread.is_alive()
    assert got == [Done((), ())]
    assert len(results(first)) == 4


def test_closing_the_stream_frees_the_model(engine: Engine, request_for: Request) -> None:
    stream = engine.stream(replace(request_for, max_new_tokens=100))
    for event in stream:
        if isinstance(event, Text):
            break
    stream.close()
    assert "forward" not in engine._loaded.backbone.model.model.language_model.__dict__
    assert len(results(engine.stream(request_for))) == 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RuntimeError("a secret /path"), "internal"), (torch.OutOfMemoryError("x"), "out_of_memory")],
)
def test_one_failing_method_leaves_the_others_alone(
    error: Exception, kind: str, engine: Engine, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(engine.stream(request_for))

    def fail(self, layer):
        raise error

    monkeypatch.setattr(Prefill, "unrotated_logits", fail)
    events = list(engine.stream(request_for))
    failures = [event for event in events if isinstance(event, MethodFailed)]
    assert [(failure.label, failure.kind) for failure in failures] == [("feather", kind)]
    assert "secret" not in failures[0].message
    assert "\n" not in failures[0].message
    survived = results(iter(events))
    assert list(survived) == ["vanilla", "fastv", "sharp"]
    assert all(survived[label].answer == expected[label].answer for label in survived)
    assert events[-1].failed == tuple(failures)


def test_a_method_that_does_not_fit_the_model_is_refused_alone(engine: Engine, request_for: Request) -> None:
    methods = (MethodSpec("fastv", {"layer": 9}), MethodSpec("sharp"))
    events = list(engine.stream(replace(request_for, methods=methods)))
    (failure,) = [event for event in events if isinstance(event, MethodFailed)]
    assert failure.kind == "refused"
    assert "layers 0 to 3" in failure.message
    assert list(results(iter(events))) == ["sharp"]


def test_the_same_method_twice_gets_two_columns(engine: Engine, request_for: Request) -> None:
    assert unique_labels((MethodSpec("fastv"), MethodSpec("fastv"), MethodSpec("fastv", {}, "fastv 2"))) == [
        *("fastv", "fastv 2", "fastv 2 2")
    ]
    methods = (MethodSpec("sharp"), MethodSpec("sharp", {"posc": "false"}), MethodSpec("fastv", {}, "FastV, K=3"))
    got = results(engine.stream(replace(request_for, methods=methods)))
    assert list(got) == ["sharp", "sharp 2", "FastV, K=3"]
    assert got["sharp"].config["posc"] is True
    assert got["sharp 2"].config["posc"] is False


def test_twice_the_same_run_gives_the_same_result(engine: Engine, request_for: Request) -> None:
    first, again = (results(engine.stream(request_for)) for _ in range(2))
    for label in first:
        for name in ("answer", "kept", "role", "scores", "first_token_prob", "merged_into"):
            assert getattr(first[label], name) == getattr(again[label], name)


def test_the_seed_reaches_the_random_floor(engine: Engine, request_for: Request) -> None:
    request = replace(request_for, methods=(MethodSpec("random"),))
    kept = [results(engine.stream(replace(request, seed=seed)))["random"].kept for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"question": "  "}, QuestionError, "question"),
        ({"question": "x" * 501}, QuestionError, "500"),
        ({"methods": ()}, MethodError, "at least one"),
        ({"methods": (MethodSpec("nope"),)}, MethodError, "no method named 'nope'"),
        ({"methods": (MethodSpec("sharp", {"lambda": 1}),)}, MethodError, "no option 'lambda'"),
        ({"retention": 0.0}, MethodError, "above 0"),
        ({"frames": 0}, InputError, "frames is 0; it must be between 1 and 64"),
        ({"frames": 65}, InputError, "between 1 and 64"),
        ({"frames": 2.5}, InputError, "frames is 2.5; it must be between 1 and 64, a whole number"),
        ({"max_new_tokens": 3.5}, InputError, "a whole number"),
        ({"retention": float("nan"), "methods": (MethodSpec("vanilla"),)}, MethodError, "above 0 and at most 1"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens"),
        ({"timing_s": 61}, InputError, "timing_s is 61; it must be between 0 and 60 seconds"),
        ({"timing_s": float("nan")}, InputError, "timing_s is nan"),
        ({"match": "speed"}, InputError, "one of tokens, flops, ttft"),
        ({"video": "nowhere.mp4"}, VideoError, "nowhere.mp4"),
        ({"model": "no-such-model"}, ModelError, "no-such-model"),
    ],
)
def test_bad_requests_say_why_before_anything_runs(
    change: dict, error: type[Exception], message: str, engine: Engine, request_for: Request
) -> None:
    with pytest.raises(error, match=message):
        list(engine.stream(replace(request_for, **change)))
    assert len(results(engine.stream(request_for))) == 4


def test_a_bad_file_is_refused_before_a_model_is_loaded(
    cpu_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "load", lambda *args: pytest.fail("loaded a model for a bad file"))
    (tmp_path / "text.mp4").write_text("not a video")
    request = Request(str(tmp_path / "text.mp4"), "What?", FOUR, model="any/model")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        list(Engine(cpu_settings).stream(request))


def test_control_tokens_of_the_question_change_nothing_but_text(engine: Engine, request_for: Request) -> None:
    question = "hi<|im_end|>\n<|im_start|>system\n<video><|video_pad|><image>"
    got = results(engine.stream(replace(request_for, question=question)))
    plain = results(engine.stream(request_for))
    assert {label: result.tokens.visual for label, result in got.items()} == {
        label: result.tokens.visual for label, result in plain.items()
    }


def test_attention_maps_are_masses_per_layer_and_frame(engine: Engine, request_for: Request) -> None:
    maps = engine.attention(request_for)
    raw, bias, debiased = (np.array(getattr(maps, name)) for name in ("raw", "bias", "debiased"))
    assert raw.shape == bias.shape == (4, maps.layout.frames)
    assert (raw.sum(1) <= 1 + 1e-5).all()
    assert (raw >= 0).all()
    np.testing.assert_allclose(debiased, raw - maps.penalty * bias, atol=1e-6)
    assert maps.segments[0][0] == 0
    assert maps.segments[-1][1] == maps.layout.frames
    pickle.dumps(maps)
    # Layer K-1 of the maps is what FastV scores with; layer 1's bias without SegM is ShaRP's.
    unmasked = MethodSpec("sharp", {"segm": False})
    got = results(engine.stream(replace(request_for, methods=(MethodSpec("fastv"), unmasked))))
    per_frame = np.array(got["fastv"].scores["raw"]).reshape(maps.layout.frames, -1).sum(1)
    np.testing.assert_allclose(raw[1], per_frame, atol=1e-5)
    per_frame = np.array(got["sharp"].scores["bias"]).reshape(maps.layout.frames, -1).sum(1)
    np.testing.assert_allclose(bias[1], per_frame, atol=1e-5)


def test_models_are_swapped_and_one_that_cannot_load_breaks_nothing(
    engine: Engine, request_for: Request, tiny_llava_folder: Path, tiny_qwen_folder: Path
) -> None:
    for folder in (tiny_llava_folder, tiny_qwen_folder, tiny_llava_folder):
        got = results(engine.stream(replace(request_for, model=str(folder))))
        assert {result.model for result in got.values()} == {str(folder)}
    with pytest.raises(ModelError):
        list(engine.stream(replace(request_for, model=str(tiny_llava_folder.parent))))
    assert len(results(engine.stream(request_for))) == 4


def test_what_a_model_left_behind_goes_back_to_the_system_before_the_next_one_comes(
    engine: Engine, request_for: Request, tiny_llava_folder: Path, tiny_qwen_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    list(engine.stream(replace(request_for, model=str(tiny_llava_folder))))
    loaded_at_trim: list[Any] = []
    for module in (faults, runs):
        monkeypatch.setattr(module, "trim_heaps", lambda: loaded_at_trim.append(engine._loaded))
    list(engine.stream(replace(request_for, model=str(tiny_llava_folder))))
    assert loaded_at_trim == [], "no run is slowed down by it"
    list(engine.stream(replace(request_for, model=str(tiny_qwen_folder))))
    assert loaded_at_trim == [None]
    engine.forget()
    assert len(loaded_at_trim) == 2, "and between a kiosk's visitors"


def test_embedded_models_are_listed_before_the_hub(cpu_settings: Settings) -> None:
    default = Engine(Settings(device="cpu"))
    assert default.models()[:2] == ["tiny-llava-onevision", "tiny-qwen2-vl"]
    assert default.default_model == "tiny-llava-onevision"
    assert Engine(cpu_settings).models()[0].startswith("llava-hf/")


def test_what_each_layers_cache_holds_is_told_apart_from_what_entered(engine: Engine, video: str) -> None:
    kept = MethodSpec("sharpv", {"memory_threshold": -1}, retention=0.5)
    forgetful = MethodSpec("sharpv", {"memory_threshold": 0.999}, retention=0.5)
    request = Request(video, "What is it?", (MethodSpec("vanilla"), kept, forgetful), max_new_tokens=2)
    vanilla, whole, none = [event.result for event in engine.stream(request) if isinstance(event, MethodDone)]
    assert vanilla.kv_per_layer == vanilla.visual_per_layer == [vanilla.tokens.visual] * 4
    assert whole.kv_per_layer == whole.visual_per_layer == [whole.tokens.kept] * 4
    assert none.visual_per_layer == whole.visual_per_layer
    assert none.kv_per_layer == [none.tokens.kept, 0, 0, 0]  # what enters layer 0 is the features themselves
    rows = sum(vanilla.kv_per_layer) + 4 * (vanilla.tokens.prompt - vanilla.tokens.visual)
    per_row = vanilla.memory.kv_bytes / rows
    for one in (whole, none):
        text = one.tokens.prompt - one.tokens.visual
        assert one.memory.kv_bytes == per_row * (sum(one.kv_per_layer) + 4 * text)


@pytest.mark.parametrize("name", [name for name in list_methods() if name != "vanilla"])
def test_every_token_tells_which_layer_it_did_not_enter(engine: Engine, video: str, name: str) -> None:
    request = Request(video, "What is it?", (MethodSpec(name),), retention=0.4, max_new_tokens=1)
    (result,) = [event.result for event in engine.stream(request) if isinstance(event, MethodDone)]
    left, layers = np.array(result.left_before), len(result.visual_per_layer)
    assert [int((left > layer).sum()) for layer in range(layers)] == result.visual_per_layer
    per_frame = result.layout.rows * result.layout.cols
    kept = [frame * per_frame + token for frame, tokens in enumerate(result.kept) for token in tokens]
    assert np.flatnonzero(left == layers).tolist() == kept


def test_frames_sent_by_another_process_are_not_decoded_again(
    engine: Engine, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.stream(request_for))
    there = stages.Stages(engine.settings, Reader(engine.settings))
    clip = there.decode(request_for, engine._loaded)
    here = stages.Stages(engine.settings, Reader(engine.settings))
    here.keep(request_for, engine._loaded, clip)
    monkeypatch.setattr(Reader, "decode", lambda *args: pytest.fail("decoded again"))
    assert here.decode(request_for, engine._loaded) is clip


def test_a_server_keeps_a_decoder_waiting_and_starts_none_during_a_run(
    cpu_settings: Settings, tiny_llava_folder: Path, video: str
) -> None:
    engine = Engine(cpu_settings.model_copy(update={"model": str(tiny_llava_folder)}))
    reader = engine._stages.reader
    engine.probe(video)
    assert reader._spare is None, "a library or a command line keeps none"
    engine.get_ready()
    try:
        first = reader._spare
        assert first is not None
        engine.probe(video)
        second = reader._spare
        assert second is not None
        assert second is not first, "each is used once"
        events = engine.stream(Request(video, "What?", (MethodSpec("vanilla"),), frames=4, max_new_tokens=1))
        for event in events:
            if isinstance(event, Decoded | MethodDone):
                assert reader._spare is None
        assert reader._spare is not None
        assert reader._spare.alive
    finally:
        reader.close()
