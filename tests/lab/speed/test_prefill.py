"""`bench prefill`: the imagined clip, the order of measuring, what is refused, the document and its tables."""

from __future__ import annotations

import copy
import json
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

from lab.speed import prefill, scale
from lab.speed.content import Content, clip_like
from lab.speed.memory import added_on_cpu, highest, peak_memory
from lab.speed.prefill import TABLE_4, Bench, Case, PrefillPlan, Sample, measure_prefill
from lab.speed.prefill_command import methods_of
from lab.speed.subject import Subject, build_subject, checkpoint_subject, make_prompt
from lab.speed.timing import torch_threads
from lab.tables import scale as scale_tables
from lab.tables import speed as tables
from lab.tables.names import PLAIN, label
from sharp_demo.backbones.families import published
from sharp_demo.cli import main
from sharp_demo.cost import exact_tflops, kv_bytes
from sharp_demo.errors import InputError, MethodError
from sharp_demo.pruning import attach as method_module
from sharp_demo.pruning.registry import list_methods
from sharp_demo.pruning.sharp.segments import frame_means, segment_frames
from sharp_demo.settings import Settings

CONTENT = Content(2, 0.5)
PLAN = PrefillPlan(retentions=(0.25,), contents=(CONTENT,), rounds=3, decode_tokens=2)


def small(name: str, settings: Settings, vision: bool = False) -> Subject:
    """A published configuration made narrow and short, with random weights."""
    config = copy.deepcopy(published(name).config)
    text = config.get("text_config", config)
    text |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 152_000,
        "initializer_range": 0.15,
    }
    if "rope_scaling" in text:
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    tower = config["vision_config"]
    if "image_size" in tower:
        tower |= {"image_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        tower["num_attention_heads"] = 2
    else:
        tower |= {"hidden_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return build_subject(f"small {name}", config, settings, vision=vision)


@pytest.fixture(scope="module")
def llava(cpu_settings: Settings) -> Subject:
    return small("llava-onevision-0.5b", cpu_settings)


@pytest.fixture(scope="module")
def document(llava: Subject) -> dict[str, Any]:
    return measure_prefill(llava, replace(PLAN, tokens=8 * llava.per_frame))


def faked(times: Callable[[Case, int], float]) -> Callable[[Case], Sample]:
    """A measure that answers `times(case, round)` milliseconds, whatever the machine does."""
    seen: dict[Case, int] = {}

    def measure(case: Case) -> Sample:
        seen[case] = seen.get(case, -1) + 1
        ms = times(case, seen[case])
        return Sample(ms, {"scores": 0.01 * ms}, [ms / 10], kv_bytes=1000, peak_bytes=None, added_bytes=None)

    return measure


# -- the imagined clip -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 8, 32])
@pytest.mark.parametrize("duplicates", [0.0, 0.5, 0.95])
def test_clips_have_the_segments_and_the_repetition_asked_for(segments: int, duplicates: float) -> None:
    frames, cells = 32, 49
    rows = clip_like(Content(segments, duplicates), frames, cells, 896)
    found = segment_frames(frame_means(rows, torch.arange(frames).repeat_interleave(cells), frames), 0.9)
    assert [first for first, _ in found] == [math.ceil(i * frames / segments) for i in range(segments)]
    if segments == 1:
        video = rows.view(frames, cells, -1)
        alike = F.cosine_similarity(video[1:], video[:-1], dim=-1)
        assert (alike > 0.95).float().mean().item() == pytest.approx(duplicates, abs=0.05)
        if not duplicates:
            assert alike.mean().item() == pytest.approx(0.65, abs=0.02)
            across = F.cosine_similarity(video[:, 1:], video[:, :-1], dim=-1)
            assert across.mean().item() == pytest.approx(0.25, abs=0.05)


def test_clips_repeat_with_the_seed_and_differ_without() -> None:
    one, again, other = (clip_like(CONTENT, 4, 4, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_the_highest_sum_of_changes_is_the_peak() -> None:
    assert highest([5, -5, 3, 4, -2, 1, -6]) == 7
    assert highest([-5, 3]) == 0
    assert highest([]) == 0


def test_added_memory_is_counted_tensor_by_tensor() -> None:
    with added_on_cpu() as peak:
        first = torch.ones(1 << 20)  # 4 MiB
        del first
        second = torch.ones(1 << 19)
        third = torch.ones(1 << 18)
        del second, third
    assert peak.added == pytest.approx(4 << 20, abs=4096)
    assert peak.bytes is None


def test_memory_is_not_told_where_no_counter_tells_it() -> None:
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(1 << 20)
    assert (peak.bytes, peak.added) == (None, None)


def test_pruning_shows_in_the_memory_a_prefill_adds(document: dict[str, Any], llava: Subject) -> None:
    added = {result["method"]: result["added_bytes"] for result in document["results"]}
    assert added["sharp"] < added["fastv"] < added["vanilla"]
    assert added["vanilla"] == pytest.approx(added[PLAIN], rel=0.02)
    bench = Bench(llava, replace(PLAN, tokens=8 * llava.per_frame))
    case = Case("vanilla", 1.0, CONTENT, "sdpa")
    assert bench.added_bytes(case) == pytest.approx(added["vanilla"], rel=0.01), "the same every time"
    assert added["vanilla"] > document["results"][1]["kv_bytes"], "activations come on top of keys and values"


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# -- order and refusal, with times made up ---------------------------------------------------------------------------


def test_rounds_run_forwards_and_backwards_over_all_cases(llava: Subject) -> None:
    order: list[Case] = []
    measure = faked(lambda case, number: 1.0)
    plan = replace(PLAN, tokens=2 * llava.per_frame)
    measure_prefill(llava, plan, measure=lambda case: (order.append(case), measure(case))[1])
    cases = plan.cases(["sdpa"])
    assert [case.method for case in cases] == [PLAIN, "vanilla", "fastv", "feather", "sharp"]
    assert order == [*cases, *reversed(cases), *cases]


def test_speed_up_reached_share_and_refusal_come_from_the_samples(llava: Subject) -> None:
    def times(case: Case, number: int) -> float:
        if case.method == "feather":
            return (10.0, 40.0, 20.0)[number]
        return {PLAIN: 100.0, "vanilla": 101.0, "fastv": 25.25, "sharp": 20.2}[case.method]

    document = measure_prefill(llava, replace(PLAN, tokens=8 * llava.per_frame), measure=faked(times))
    by_method = {result["method"]: result for result in document["results"]}
    assert by_method["fastv"]["speedup"]["value"] == pytest.approx(4)
    assert by_method["sharp"]["speedup"]["value"] == pytest.approx(5)
    assert by_method["sharp"]["beside_forward"]["share_of_vanilla"] == pytest.approx(0.01 * 20.2 / 101)
    assert by_method["feather"]["speedup"]["value"] is None
    assert by_method["feather"]["share_of_flops_ratio"] is None
    assert document["attached_overhead"]["sdpa"]["value"] == pytest.approx(1.01)
    page = tables.markdown(document)
    assert "n/a (spread" in page
    assert "4.00x (4.00 to 4.00)" in page
    assert "Vanilla attached / plain model: sdpa 1.01x (1.01 to 1.01)" in page


# -- real measurements of small models -------------------------------------------------------------------------------


def test_document_says_what_was_measured(document: dict[str, Any], llava: Subject) -> None:
    assert json.loads(json.dumps(document)) == document
    setup = document["setup"]
    assert setup["visual_tokens"] == 8 * llava.per_frame
    assert (setup["dtype"], setup["device"], list(setup["attention"])) == ("float32", "cpu", ["sdpa"])
    assert {"threads", "machine", "versions", "commit", "seed", "contains"} <= setup.keys()
    assert platform.node() not in json.dumps(document)
    n, layers = setup["visual_tokens"], llava.shape.layers
    for result in document["results"]:
        assert len(result["prefill_ms"]["samples"]) == 3
        assert result["prefill_ms"]["min"] > 0
        assert 0 < result["cpu_time_ms"]["min"] < 2 * max(result["prefill_ms"]["samples"])
        pruned = result["method"] not in (PLAIN, "vanilla")
        kept = round(0.25 * n) if pruned else n
        assert result["tokens"]["kept"] == kept
        first = {"sharp": 1, "fastv": 2, "feather": 2}.get(result["method"], layers)
        counts = [n] * first + [kept] * (layers - first)
        assert result["kv_bytes"] == kv_bytes(llava.shape, [count + 40 for count in counts], 4)
        full = exact_tflops(llava.shape, [n] * layers, 40)
        assert result["flops"]["ratio"] == pytest.approx(full / exact_tflops(llava.shape, counts, 40))
        assert (result["bias_setup_ms"] or 0) > 0 if result["method"] == "sharp" else not result["bias_setup_ms"]
        if pruned:
            columns = result["table_4"]
            assert set(columns) == {*TABLE_4, "other", "forward", "total"}
            assert set(result["stages_ms"]) <= {stage for stages in TABLE_4.values() for stage in stages}
            assert 0 < columns["forward"] < columns["total"]
    sharp = document["results"][-1]
    assert sharp["tokens"]["segments"] == 2
    assert all(columns > 0 for columns in (sharp["table_4"][name] for name in TABLE_4))
    assert sharp["prefill_cold_ms"] == sharp["prefill_ms"]["median"] + sharp["bias_setup_ms"]
    assert sharp["flops"]["executed_ratio"] != sharp["flops"]["ratio"]


def test_tables_show_every_case_once(document: dict[str, Any]) -> None:
    page = tables.markdown(document)
    for section in tables.sections(document):
        assert f"# {section.title}" in page
        assert all(len(row) == len(section.header) for row in section.rows)
        wanted = ["Vanilla", "FastV 25.0%", "Feather 25.0%", "ShaRP 25.0%"]
        assert [row[0] for row in section.rows if row[0] != "plain model"] == wanted
    assert "one-layer stand-in" not in page  # `small` gives no notes of its own
    assert document["setup"]["versions"]["torch"] in page


def test_qwen2_vl_with_its_tower_timed(cpu_settings: Settings) -> None:
    subject = small("qwen2-vl-2b", cpu_settings, vision=True)
    assert subject.per_frame == 180
    plan = replace(PLAN, methods=("vanilla", "sharp"), tokens=360, vision=1)
    document = measure_prefill(subject, plan)
    assert document["setup"]["layout"] == [2, 10, 18]
    first = document["results"][-1]["first_token_ms"]
    assert first["with_vision"] == first["without_vision"] + document["vision_ms"]["median"]
    assert 0 < first["vision_share"] < 1


def test_reading_the_tower_is_paid_by_those_who_choose_by_it(cpu_settings: Settings) -> None:
    subject = small("qwen2-vl-2b", cpu_settings, vision=True)
    plan = replace(PLAN, methods=("vanilla", "sharp", "visionzip", "visionzip+sharp"), tokens=360, vision=2)
    document = measure_prefill(subject, plan)
    reading = document["vision_scores_ms"]["median"]
    assert reading > 0
    by_method = {result["method"]: result for result in document["results"]}
    for name, result in by_method.items():
        first, tower = result["first_token_ms"], document["vision_ms"]["median"]
        pays = name in ("visionzip", "visionzip+sharp")
        assert result["vision_scores"] == (
            {"ms": reading, "share_of_vanilla": reading / by_method["vanilla"]["prefill_ms"]["median"]}
            if pays
            else None
        )
        assert first["with_vision"] == pytest.approx(first["without_vision"] + tower + pays * reading)
    stages = tables.stages(document)
    assert stages.header[-2:] == ["tower's scores", "of vanilla"]
    assert [row[0] for row in stages.rows if row[-2]] == ["VisionZip 25.0%", "VisionZip + ShaRP 25.0%"]
    unread = measure_prefill(subject, replace(plan, methods=("vanilla", "sharp")))
    assert unread["vision_scores_ms"] is None
    assert "tower's scores" not in tables.markdown(unread)


@pytest.mark.parametrize("name", ["llava-onevision-0.5b", "qwen2-vl-2b"])
def test_the_first_token_has_the_tower_of_its_round_and_a_ceiling(name: str, cpu_settings: Settings) -> None:
    subject = small(name, cpu_settings, vision=True)
    plan = replace(
        PLAN, methods=("vanilla", "visionzip", "sharp"), tokens=2 * subject.per_frame, ttft=True, plain=False
    )
    document = measure_prefill(subject, plan)
    tower, reading = (document[key]["samples"] for key in ("vision_ms", "vision_scores_ms"))
    assert len(tower) == len(reading) == plan.rounds
    by_method = {result["method"]: result for result in document["results"]}
    whole = [ms + own for ms, own in zip(tower, by_method["vanilla"]["prefill_ms"]["samples"], strict=True)]
    for method, result in by_method.items():
        before = [ms + extra for ms, extra in zip(tower, reading, strict=True)] if method == "visionzip" else tower
        timed = result["ttft"]
        own = [ms + prefill for ms, prefill in zip(before, result["prefill_ms"]["samples"], strict=True)]
        assert timed["ms"]["samples"] == pytest.approx(own)
        for figure, below in (("speedup", own), ("ceiling", before)):
            assert timed[figure]["low"] == pytest.approx(min(a / b for a, b in zip(whole, below, strict=True)))
        assert timed["ceiling"]["high"] > timed["speedup"]["high"]
    page = tables.markdown(document)
    assert "Time to the first token" in page
    assert len(tables.first_token(document).rows) == 3


def test_all_stands_for_every_method() -> None:
    assert methods_of("sharp, all") == ("sharp", *(name for name in list_methods() if name != "sharp"))
    assert methods_of("fastv,sharp") == ("fastv", "sharp")


def test_a_stand_in_tower_is_never_timed(llava: Subject) -> None:
    with pytest.raises(InputError, match="not built"):
        measure_prefill(llava, replace(PLAN, vision=1, tokens=2 * llava.per_frame))


def test_backends_and_contents_stand_side_by_side(llava: Subject) -> None:
    plan = replace(
        PLAN,
        methods=("vanilla", "sharp"),
        contents=(CONTENT, Content(1, 0.95)),
        attentions=("auto", "sdpa", "eager"),
        tokens=8 * llava.per_frame,
    )
    used: list[str] = []
    bench = Bench(llava, plan)

    def measure(case: Case) -> Sample:
        sample = bench.measure(case)
        used.append(llava.model.config._attn_implementation)
        assert used[-1] == case.attention
        return sample

    document = measure_prefill(llava, plan, measure=measure)
    llava.model.set_attn_implementation("sdpa")
    assert set(used) == {"sdpa", "eager"}
    labels = [label(result, document) for result in document["results"]]
    assert len(set(labels)) == len(labels) == 8
    assert "ShaRP 25.0%, 1 segment, 95% repeated, eager" in labels
    assert set(document["attached_overhead"]) == {"sdpa", "eager"}


def test_the_plain_model_has_nothing_attached(llava: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(llava, replace(PLAN, tokens=llava.per_frame * 2))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("attached")

    monkeypatch.setattr(method_module, "attached", refuse)
    sample = bench.measure(Case(PLAIN, 1.0, CONTENT, "sdpa"))
    assert sample.run is None
    assert sample.stages == {}
    with pytest.raises(AssertionError, match="attached"):
        bench.measure(Case("vanilla", 1.0, CONTENT, "sdpa"))


def test_processor_time_is_told_for_one_thread_only(llava: Subject) -> None:
    bench = Bench(llava, replace(PLAN, tokens=llava.per_frame * 2))
    case = Case("vanilla", 1.0, CONTENT, "sdpa")
    assert bench.measure(case).cpu_ms is not None
    with torch_threads(2):
        assert bench.measure(case).cpu_ms is None


def test_the_bias_is_cold_once_and_warm_in_every_round(llava: Subject) -> None:
    bench = Bench(llava, replace(PLAN, tokens=llava.per_frame * 2))
    case = Case("sharp", 0.25, CONTENT, "sdpa")
    assert prefill.COLD in bench.warm_up([case], lambda line: None)[case].stages
    assert prefill.COLD not in bench.measure(case).stages


def test_profile_names_operators_of_every_case(llava: Subject) -> None:
    text = prefill.profiled(llava, replace(PLAN, methods=("vanilla", "sharp"), tokens=llava.per_frame * 2), rows=8)
    assert text.count("aten::") >= 8
    for part in ("Prefill", f"{PLAN.decode_tokens} decoded tokens"):
        assert f"{part}, sharp, retention 0.25" in text
        assert f"{part}, vanilla, retention 1" in text


def test_a_checkpoint_can_be_measured(tiny_llava_folder: Path, cpu_settings: Settings) -> None:
    subject = checkpoint_subject(str(tiny_llava_folder), cpu_settings)
    document = measure_prefill(subject, replace(PLAN, methods=("vanilla", "sharp"), tokens=36, vision=1))
    assert document["setup"]["layout"] == [4, 3, 3]
    assert document["results"][-1]["tokens"]["kept"] == 9


# -- lengths ---------------------------------------------------------------------------------------------------------


def test_exponents_are_those_of_the_points() -> None:
    assert scale.exponent([(n, 3 * n**1.5) for n in (100, 200, 400)]) == pytest.approx(1.5)
    assert scale.exponent([(100, 1), (200, 2)]) is None


def test_scale_measures_every_length_and_draws_it(llava: Subject) -> None:
    def timed(subject: Subject, plan: PrefillPlan, progress: Any) -> dict[str, Any]:
        def times(case: Case, number: int) -> float:
            assert plan.tokens is not None
            return (plan.tokens / 16) ** (2 if case.method in (PLAIN, "vanilla") else 1.5)

        return measure_prefill(subject, plan, progress, faked(times))

    plan = replace(PLAN, methods=("vanilla", "sharp"))
    document = scale.measure_scale(llava, plan, (2, 4, 8), measure=timed)
    assert [run["setup"]["layout"][0] for run in document["runs"]] == [2, 4, 8]
    assert document["fits"]["prefill"] == {"Vanilla": pytest.approx(2), "ShaRP 25.0%": pytest.approx(1.5)}
    page, picture = scale_tables.markdown(document), scale_tables.svg(document)
    assert "| Vanilla |" in page
    assert " 2.00 |" in page
    assert len(picture) < 100_000
    root = ElementTree.fromstring(picture)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Vanilla: n^2.00" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 6


def test_a_measure_known_at_one_length_only_is_not_drawn(llava: Subject) -> None:
    document = measure_prefill(
        llava, replace(PLAN, tokens=2 * llava.per_frame), measure=faked(lambda case, number: 1.0)
    )
    picture = scale_tables.svg({"runs": [document], "fits": scale.fits([document])})
    assert "circle" not in picture
    ElementTree.fromstring(picture)


# -- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --model"),
        (["--model", "a", "--config", "b"], "give either --model"),
        (["--config", "nonsense"], "unknown configuration 'nonsense'"),
        (["--config", "llava-onevision-0.5b", "--retention", "1.5"], "above 0 and below 1"),
        (["--config", "llava-onevision-0.5b", "--retention", "much"], "cannot read retention"),
        (["--config", "llava-onevision-0.5b", "--methods", "magic"], "no method named 'magic'"),
        (["--config", "llava-onevision-0.5b", "--duplicates", "2"], "duplicates is 2"),
        (["--config", "llava-onevision-0.5b", "--segments", "0"], "segments is 0"),
        (["--config", "llava-onevision-0.5b", "--rounds", "0"], "rounds is 0"),
        (["--config", "llava-onevision-0.5b", "--layers", "1"], "can be built with 2 to 24"),
        (["--config", "llava-onevision-0.5b", "--attention", "magic"], "attention is 'magic'"),
        (["--config", "llava-onevision-0.5b", "--dtype", "int3"], "dtype is 'int3'"),
        (["--config", "llava-onevision-0.5b", "--attention", "flash_attention_2"], "needs CUDA"),
        (["--config", "llava-onevision-0.5b", "--svg", "x.svg"], "--scale"),
        (["--config", "llava-onevision-0.5b", "--scale", "0,2"], "at least 1"),
        (["--config", "llava-onevision-0.5b", "--scale", "2", "--tokens", "196"], "in place of --tokens"),
        (["--model", "/nowhere/at/all", "--device", "cpu"], "unknown model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert main(["bench", "prefill", *arguments, *device]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"methods": ()}, InputError),
        ({"methods": ("sharp", "sharp")}, InputError),
        ({"methods": ("magic",)}, MethodError),
        ({"vision": -1}, InputError),
    ],
)
def test_plans_out_of_range_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        replace(PLAN, **change)


def test_tokens_that_make_no_whole_frame_and_short_prompts_are_refused(llava: Subject) -> None:
    with pytest.raises(InputError, match=f"try {2 * llava.per_frame}"):
        llava.frames(2 * llava.per_frame + 1)
    with pytest.raises(InputError, match="at least 6"):
        make_prompt(llava, 2, CONTENT, text_tokens=3)
    with pytest.raises(InputError, match="do not fit"):
        make_prompt(llava, 2, Content(3, 0.5))


def test_command_writes_what_it_prints(tiny_llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    json_file, page_file, profile = (tmp_path / name for name in ("out.json", "out.md", "profile.txt"))
    arguments = ["--model", str(tiny_llava_folder), "--device", "cpu", "--tokens", "18", "--rounds", "3"]
    arguments += ["--methods", "sharp", "--retention", "0.5", "--segments", "1", "--json", str(json_file)]
    assert main(["bench", "prefill", *arguments, "--markdown", str(page_file), "--profile", str(profile)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == page_file.read_text().strip()
    document = json.loads(json_file.read_text())
    assert [result["method"] for result in document["results"]] == [PLAIN, "vanilla", "sharp"]
    assert "aten::" in profile.read_text()


def test_command_sweeps_lengths(tiny_llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "out.svg"
    arguments = ["--model", str(tiny_llava_folder), "--device", "cpu", "--scale", "1,2,4", "--rounds", "1"]
    arguments += ["--methods", "sharp", "--retention", "0.5", "--segments", "1", "--svg", str(picture)]
    assert main(["bench", "prefill", *arguments]) == 0
    assert "n = 36" in capsys.readouterr().out
    ElementTree.fromstring(picture.read_text())


def test_a_bench_asks_the_model_which_attention_it_runs(llava: Subject) -> None:
    """Another bench over the same subject may have left a backend behind; at the end the model has its own again."""
    plan = replace(PLAN, tokens=llava.per_frame * 2, rounds=1, decode_tokens=0, attentions=("sdpa", "eager"))
    first, second = Bench(llava, plan), Bench(llava, plan)
    first.measure(Case("vanilla", 1.0, CONTENT, "eager"))
    second.measure(Case("vanilla", 1.0, CONTENT, "sdpa"))
    assert prefill.running_attention(llava.model) == "sdpa"
    measure_prefill(llava, replace(plan, methods=("vanilla",)))
    assert prefill.running_attention(llava.model) == "sdpa"


def test_the_plain_model_and_vanilla_are_warmed_up_as_well(llava: Subject) -> None:
    bench = Bench(llava, replace(PLAN, tokens=llava.per_frame * 2))
    cases = [Case(name, 1.0, CONTENT, "sdpa") for name in (PLAIN, "vanilla")]
    assert list(bench.warm_up(cases, lambda line: None)) == cases
