import pytest
from handmade import make_result

from sharp_demo.records import AttentionMaps, Layout
from sharp_demo.views import figures, summary
from sharp_demo.views.colors import METHOD_COLORS, method_color

BASIC = {"bar", "scatter"}


def test_stages_sum_to_the_total(results):
    for result in results:
        parts = figures.stage_breakdown(result)
        assert sum(part.ms for part in parts) == pytest.approx(result.latency_ms["total"])
        assert {part.name for part in parts if part.shared} == {"decode video", "vision encoder"}


def test_a_cold_bias_is_a_stage_of_its_own():
    result = make_result()
    result.latency_ms["bias_setup"] = 3.0
    result.latency_ms["total"] += 3.0
    parts = figures.stage_breakdown(result)
    assert figures.Part("bias set-up (first use)", 3.0, False, "bias_setup") in parts
    assert sum(part.ms for part in parts) == pytest.approx(result.latency_ms["total"])


def test_time_no_stage_explains_is_shown_as_other():
    result = make_result()
    result.latency_ms["total"] += 5.0
    assert figures.Part("other", pytest.approx(5.0), False, "other") in figures.stage_breakdown(result)


def test_latency_bars_stack_to_the_totals(results):
    figure = figures.latency_bars(results)
    for row, result in enumerate(results):
        assert sum(trace.x[row] for trace in figure.data) == pytest.approx(result.latency_ms["total"])
    assert figure.layout.barmode == "stack"
    names = [trace.name for trace in figure.data]
    assert names[-1] == "decode", "stages are stacked in the order they ran, also those vanilla lacks"


def test_speedup_is_against_vanilla_and_colours_are_the_methods(results):
    figure = figures.speedup_bars(results)
    measured, exact, paper = (trace for trace in figure.data if not trace.showlegend and trace.text)
    assert list(measured.y) == pytest.approx([2.5] * 3)
    assert list(exact.y) == pytest.approx([3.0] * 3)
    assert list(paper.y) == pytest.approx([2.0] * 3)
    assert list(measured.marker.color) == [METHOD_COLORS[name] for name in ("fastv", "feather", "sharp")]


@pytest.mark.parametrize("methods", [("fastv",), ("vanilla",)])
def test_speedup_without_a_partner_says_why(methods):
    figure = figures.speedup_bars([make_result(method) for method in methods])
    assert not figure.data
    assert "vanilla" in figure.layout.annotations[0].text


def test_a_slower_method_shows_below_one():
    slow = make_result("fastv")
    slow.latency_ms["prefill"] = 40.0
    figure = figures.speedup_bars([make_result("vanilla"), slow])
    assert figure.data[0].y[0] == pytest.approx(0.5)
    shown = {figure.key: figure.value for figure in summary.figures_of(slow, make_result("vanilla"))}
    assert shown["speedup"] == "0.50×"


def test_attention_sums_scores_and_marks_cuts():
    result = make_result()
    figure = figures.attention_per_frame(result)
    assert [trace.name for trace in figure.data] == list(figures.SCORE_LABELS.values())
    assert sum(figure.data[0].y) == pytest.approx(sum(result.scores["raw"]))
    assert [shape.x0 for shape in figure.layout.shapes] == [0.5]


def test_attention_by_layer_shows_one_layer_at_a_time():
    layers = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    maps = AttentionMaps(Layout(2, 1, 1, 1, (0.0, 1.0)), 0.6, layers, layers, layers, [[0, 1], [1, 2]])
    figure = figures.attention_by_layer(maps)
    assert sum(bool(trace.visible) for trace in figure.data) == 3
    for layer, step in enumerate(figure.layout.sliders[0].steps):
        shown = [trace for trace, visible in zip(figure.data, step.args[0]["visible"], strict=True) if visible]
        assert [list(trace.y) for trace in shown] == [layers[layer]] * 3


def test_charts_are_basic_and_transparent(results):
    charts = [figures.latency_bars(results), figures.speedup_bars(results), figures.kept_over_time(results)]
    for figure in [*charts, figures.attention_per_frame(results[-1])]:
        assert {trace.type for trace in figure.data} <= BASIC
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_method_colours_are_distinct_and_stable():
    assert len(set(METHOD_COLORS.values())) == len(METHOD_COLORS)
    assert method_color("pdrop") == method_color("pdrop")


def test_figures_report_what_was_achieved(results):
    baseline = summary.baseline_of(results)
    assert baseline is results[0]
    shown = {figure.key: figure.value for figure in summary.figures_of(results[3], baseline)}
    assert shown["kept"] == "7 / 60 (11.7%)"
    assert shown["peak"] == "n/a"
    assert shown["kv"] == "0.1 MB"
    assert shown["speedup"] == "2.50×"
    assert shown["flops_ratio"] == "3.00×"
    assert "speedup" not in {figure.key for figure in summary.figures_of(results[0], baseline)}
    assert "speedup" not in {figure.key for figure in summary.figures_of(results[3], None)}


def test_first_token_says_how_much_of_it_the_vision_encoder_took():
    shown = {figure.key: figure.value for figure in summary.figures_of(make_result(), None)}
    assert shown["first_token"].endswith("(20% vision)")  # 4 of 8 + 4 + 8 ms
