from dataclasses import replace

import pytest
from handmade import make_result

from sharp_demo import strings
from sharp_demo.records import AttentionMaps, Layout, Ratio, Result, Stage
from sharp_demo.settings import Settings
from sharp_demo.views import figures, summary
from sharp_demo.views.benchmark import Measured, load_benchmark, pack_benchmark
from sharp_demo.views.colors import method_color
from sharp_demo.views.evidence import Evidence, evidence_frames

BASIC = {"bar", "scatter"}
LATE = (Evidence(2.0, 3.0, (0.0, 0.0, 0.5, 0.5)),)


def test_stages_sum_to_the_total(results):
    for result in results:
        parts = figures.stage_breakdown(result)
        assert sum(part.ms for part in parts) == pytest.approx(result.latency_ms.total)
        assert {part.name for part in parts if part.shared} == {"decode video", "vision tower"}


def test_what_is_paid_once_stands_next_to_the_total():
    result = make_result()
    latency, once = result.latency_ms, Stage(3.0, False, "once")
    result.latency_ms = replace(latency, bias_setup=3.0, stages={**latency.stages, "bias_setup": once})
    parts = figures.stage_breakdown(result)
    setup = figures.Part("bias set-up (first use)", 3.0, False, "bias_setup")
    assert parts[-1] == setup
    assert sum(part.ms for part in parts[:-1]) == pytest.approx(result.latency_ms.total)
    assert figures.latency_bars([result]).data[-1].name == setup.name


def test_the_towers_scores_are_a_stage_of_their_own():
    result = make_result()
    latency, read = result.latency_ms, Stage(2.0, False)
    result.latency_ms = replace(latency, total=latency.total + 2.0, stages={**latency.stages, "vision_scores": read})
    parts = figures.stage_breakdown(result)
    assert figures.Part("vision-tower scores", 2.0, False, "vision_scores") in parts
    assert sum(part.ms for part in parts) == pytest.approx(result.latency_ms.total)


def test_time_no_stage_explains_is_shown_as_other():
    result = make_result()
    result.latency_ms = replace(result.latency_ms, total=result.latency_ms.total + 5.0)
    assert figures.Part("other", pytest.approx(5.0), False, "other") in figures.stage_breakdown(result)


def test_latency_bars_stack_to_the_totals(results):
    figure = figures.latency_bars(results)
    for row, result in enumerate(results):
        assert sum(trace.x[row] for trace in figure.data) == pytest.approx(result.latency_ms.total)
    assert figure.layout.barmode == "stack"
    names = [trace.name for trace in figure.data]
    assert names[-1] == "decode", "stages are stacked in the order they ran, also those vanilla lacks"


def test_speedup_is_against_vanilla_and_colours_are_the_methods(results):
    figure = figures.speedup_bars(results)
    first, measured, exact, paper = (trace for trace in figure.data if not trace.showlegend and trace.text)
    assert list(first.y) == pytest.approx([1.6] * 3)
    assert list(measured.y) == pytest.approx([2.5] * 3)
    assert list(measured.error_y.array) == list(measured.error_y.arrayminus) == pytest.approx([0.1] * 3)
    assert list(exact.y) == pytest.approx([3.0] * 3)
    assert list(paper.y) == pytest.approx([2.0] * 3)
    assert exact.error_y.array is None
    assert list(measured.marker.color) == [method_color(name) for name in ("fastv", "feather", "sharp")]


@pytest.mark.parametrize("methods", [("fastv",), ("vanilla",)])
def test_speedup_without_a_partner_says_why(methods):
    figure = figures.speedup_bars([make_result(method) for method in methods])
    assert not figure.data
    assert "vanilla" in figure.layout.annotations[0].text


def test_a_slower_method_shows_below_one():
    slow = with_prefill(Ratio(0.5, 0.4, 0.6, 3))
    assert figures.speedup_bars([make_result("vanilla"), slow]).data[2].y == (0.5,)
    assert shown_of(slow)["speedup"] == "0.50×"


def test_rounds_that_disagree_give_no_number():
    noisy = with_prefill(Ratio(None, 0.6, 2.1, 7, "spread 80%"))
    bar = figures.speedup_bars([make_result("vanilla"), noisy]).data[2]
    assert (bar.y, bar.text) == ((None,), ("too noisy",))
    shown = shown_of(noisy)
    assert shown["speedup"] == "0.6 to 2.1×, too noisy to say"
    assert shown["cpu"] == "2.50×", "processor time may still say"


def test_the_page_says_how_many_rounds():
    assert shown_of(make_result())["rounds"] == "2.40 to 2.60×, 3 rounds"
    assert shown_of(with_prefill(Ratio(2.0, 2.0, 2.0, 1)))["rounds"] == "1 round"


def test_what_was_not_timed_says_so_and_what_is_to_be_timed_waits():
    plain = make_result()
    plain = replace(plain, latency_ms=replace(plain.latency_ms, rounds=[], cpu_rounds=[]), speedup=None)
    assert (shown_of(plain)["speedup"], shown_of(plain)["prefill"]) == ("not timed", "8.0 ms")
    pending = shown_of(plain, pending=True)
    assert {pending[key] for key in ("first_token_speedup", "speedup", "prefill", "first_token", "total")} == {"…"}
    assert (pending["kept"], pending["flops_ratio"]) == ("7 / 60 (11.7%)", "3.00×")
    assert shown_of(make_result(), pending=True)["speedup"] == "2.50×"


def with_prefill(ratio: Ratio) -> Result:
    """A result whose prefill speed-up is this one."""
    result = make_result("fastv")
    return replace(result, speedup=replace(result.speedup, prefill=ratio))


def shown_of(result: Result, **how: bool) -> dict[str, str]:
    """Its figures as shown next to vanilla."""
    return {figure.key: figure.value for figure in summary.figures_of(result, make_result("vanilla"), **how)}


def test_attention_sums_scores_and_marks_cuts():
    result = make_result()
    figure = figures.attention_per_frame(result)
    assert [trace.name for trace in figure.data] == list(strings.SCORES.values())
    assert sum(figure.data[0].y) == pytest.approx(sum(result.scores["raw"]))
    assert [shape.x0 for shape in figure.layout.shapes] == [0.5]


def test_attention_by_layer_shows_one_layer_at_a_time():
    layers = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    maps = AttentionMaps(Layout(2, 1, 1, 1, (0.0, 1.0)), 0.6, layers, layers, layers, [[0, 1], [1, 2]])
    assert [list(trace.y) for trace in figures.attention_by_layer(maps).data] == [layers[1]] * 3
    for layer in range(3):
        figure = figures.attention_by_layer(maps, layer=layer)
        assert [list(trace.y) for trace in figure.data] == [layers[layer]] * 3
        assert f"in layer {layer} " in figure.layout.title.text
        assert not figure.layout.sliders, "plotly's own cannot be moved by keyboard"
    assert figures.attention_by_layer(maps, layer=99).data[0].y == tuple(layers[2])


def test_a_race_replays_the_first_token_and_nothing_else(results):
    for result in results:
        parts = dict(summary.race_of(result))
        assert list(parts) == ["read", "see", "prefill"]
        assert parts["prefill"] == result.latency_ms.prefill
        assert sum(parts.values()) == pytest.approx(result.latency_ms.first_token)


def test_charts_are_basic_and_transparent(results):
    charts = [
        figures.latency_bars(results),
        figures.speedup_bars(results),
        figures.kept_over_time(results),
        figures.kept_by_layer(results),
    ]
    for figure in [*charts, figures.attention_per_frame(results[-1])]:
        assert {trace.type for trace in figure.data} <= BASIC
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_a_spare_colour_never_moves():
    assert method_color("of-a-host") == method_color("of-a-host")


def test_figures_report_what_was_achieved(results):
    baseline = summary.baseline_of(results)
    assert baseline is results[0]
    shown = {figure.key: figure.value for figure in summary.figures_of(results[3], baseline)}
    assert shown["kept"] == "7 / 60 (11.7%)"
    assert "peak" not in shown, "a CPU has none"
    assert shown["kv"] == "0.1 MB"
    assert shown["speedup"] == "2.50×"
    assert shown["flops_ratio"] == "3.00×"
    assert shown["first_token_speedup"] == "1.60×, at most 2.67×"
    assert shown["parts"] == "8.0 ms + 4.0 ms + 8.0 ms"
    assert shown["before_prefill"] == "12.0 ms"
    assert "speedup" not in {figure.key for figure in summary.figures_of(results[0], baseline)}
    assert "speedup" not in {figure.key for figure in summary.figures_of(results[3], None)}


def test_first_token_says_how_much_of_it_the_vision_tower_took():
    shown = {figure.key: figure.value for figure in summary.figures_of(make_result(), None)}
    assert shown["vision"] == "20%"  # 4 of 8 + 4 + 8 ms


def test_evidence_is_shaded_where_it_is_and_only_if_it_is_not_everywhere(results):
    for figure in (figures.attention_per_frame(results[-1], LATE), figures.kept_over_time(results, LATE)):
        assert [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"] == [(2.0, 3.0)]
        assert figure.data[-1].name == "evidence"
    everywhere = figures.kept_over_time(results, [Evidence(0.0, 9.0)])
    assert not [shape for shape in everywhere.layout.shapes if shape.type == "rect"]
    assert evidence_frames(LATE, [1.9, 2.0, 2.9, 3.0]) == [1, 2]


def test_evidence_stays_while_the_layer_changes():
    layers = [[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]]
    maps = AttentionMaps(Layout(3, 1, 1, 1, (0.0, 1.0, 2.0)), 0.6, layers, layers, layers, [[0, 3]])
    for layer in range(2):
        figure = figures.attention_by_layer(maps, LATE, layer)
        assert figure.data[-1].name == strings.EVIDENCE


def test_the_map_holds_every_layer_and_frame_as_a_share_of_the_layer():
    raw, debiased = [[0.1, 0.3], [0.0, 0.0]], [[0.05, -0.1], [0.2, 0.2]]
    maps = AttentionMaps(Layout(2, 1, 1, 1, (0.0, 1.0)), 0.6, raw, raw, debiased, [[0, 2]])
    before, after = figures.attention_map(maps).data
    assert [list(row) for row in before.z] == [pytest.approx([0.25, 0.75]), [0.0, 0.0]]
    assert [list(row) for row in after.z] == [pytest.approx([0.125, -0.25]), [0.2, 0.2]]
    assert before.coloraxis == after.coloraxis, "one scale for both"


def stored(method: str, share: float, accuracy: float, match: str = "tokens") -> Measured:
    return Measured("tiny", method, method.title(), match, share, share, accuracy, (accuracy, accuracy), 9, share)


def test_accuracy_is_the_stored_one_and_the_ring_is_this_runs_share():
    rows = [stored("vanilla", 1.0, 0.9), stored("fastv", 0.4, 0.6), stored("fastv", 0.2, 0.5)]
    rows += [stored("fastv", 0.3, 0.1, "flops"), stored("fastv:layer=1", 0.3, 0.2)]
    figure = figures.accuracy_by_retention(rows, [make_result("fastv", keep=18, model="tiny")])
    curve, ring = figure.data
    assert (list(curve.x), list(curve.y)) == ([0.2, 0.4, 1.0], [0.5, 0.6, 0.9])
    assert (ring.x[0], ring.y[0]) == (pytest.approx(0.3), pytest.approx(0.55))
    elsewhere = figures.accuracy_by_retention(rows, [make_result("fastv", model="another")])
    assert "No stored benchmark" in elsewhere.layout.annotations[0].text


def test_stored_benchmark_covers_both_embedded_models(tmp_path):
    rows = load_benchmark(Settings().assets)
    assert {row.model for row in rows} == set(Settings().embedded)
    assert all(row.ci95[0] <= row.accuracy <= row.ci95[1] for row in rows)
    assert load_benchmark(tmp_path) == []
    line = {"model": "m", "method": "a", "label": "A", "match": "tokens", "retention": 0.2, "kept_share": 0.2}
    packed = pack_benchmark([{**line, "accuracy": 0.5, "ci95": [0.4, 0.6], "n": 3, "tflops_ratio": 0.3, "right": "1"}])
    assert dict(zip(packed["fields"], packed["rows"][0], strict=True))["flops_share"] == 0.3


@pytest.mark.parametrize(
    ("answer", "reference", "marked"),
    [
        ("A is the letter.", "A is the letter.", []),
        ("a is the  letter", "A is the letter.", []),
        ("T is the letter.", "A is the letter.", ["T"]),
        ("A big red fox", "A red fox", ["big"]),
        ("", "A red fox", []),
        ("... <b>", "A red fox", ["<b>"]),
    ],
)
def test_words_that_differ_are_marked_and_nothing_is_lost(answer, reference, marked):
    pieces = summary.differing_words(answer, reference)
    assert "".join(piece for piece, _ in pieces) == answer
    assert [piece for piece, differs in pieces if differs] == marked
    assert summary.same_answer(answer, reference) is (not marked and bool(answer))


def test_a_result_with_fewer_frames_has_no_speed_up():
    less = make_result("fastv", frames=2)
    figure = figures.speedup_bars([make_result("vanilla"), make_result("sharp"), less])
    assert {label for bar in figure.data for label in bar.x} - {None} == {"Sharp"}
    alone = figures.speedup_bars([make_result("vanilla"), less])
    assert not alone.data


def test_tokens_by_layer_are_the_runs_own(results):
    figure = figures.kept_by_layer(results)
    for trace, result in zip(figure.data, results, strict=True):
        assert [round(share * result.tokens.visual) for share in trace.y] == result.visual_per_layer
        assert list(trace.x) == list(range(len(result.visual_per_layer)))
