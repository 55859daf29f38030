import html
import json
import re

import pytest
from handmade import make_result

from sharp_demo import strings
from sharp_demo.records import MethodSpec, Request
from sharp_demo.views.benchmark import Measured
from sharp_demo.views.overlay import make_sprite
from sharp_demo.views.report import render_report, report_figures

HOSTILE = [
    "<img src=x onerror=window.__x=1>",
    "</script><script>window.__x=1</script>",
    "${window.__x=1}",
    "{{ 7 * 7 }}{{config}}",
    "{% for a in b %}",
    "\u202eback to front\u202c \u0007 مرحبا",
]


def request(question: str = "What moves?") -> dict:
    return Request("/secret/folder/clip.mp4", question, (MethodSpec("sharp"),)).to_dict()


@pytest.mark.parametrize("text", HOSTILE)
def test_question_answer_and_label_cannot_inject(clip, text):
    page = render_report(request(text), [make_result(answer=text, label=text, notes=[text])], clip)
    body = page.split("</head>", 1)[1]
    for tag in ("<img src=x", "</script><script>"):
        assert tag not in body
    assert text in html.unescape(body), "shown literally"
    embedded = re.search(r'id="comparison">(.*?)</script>', body, re.S)
    assert embedded
    assert json.loads(embedded[1])["results"][0]["answer"] == text


def test_report_is_self_contained_and_hides_server_paths(clip, results):
    page = render_report(request(), results, clip)
    assert "/secret/folder" not in page
    assert "clip.mp4" in page
    body = page.split("</head>", 1)[1]
    assert not re.findall(r'(?:src|href)="(?!data:)', body)
    assert page.count("plotly.js v") == 1
    for result in results:
        assert f'<h3 dir="auto">{result.label}</h3>' in page


def test_report_from_a_sprite_and_without_results(clip):
    assert "data:image/jpeg" in render_report(request(), [make_result()], make_sprite(clip))
    assert "No method finished" in render_report(request(), [], clip)


def test_report_marks_what_differs_from_vanilla(clip):
    page = render_report(request(), [make_result("vanilla"), make_result(answer="A blue circle.")], clip)
    assert re.findall(r"<mark>(.*?)</mark>", page) == ["blue"]
    assert page.count("Differs from vanilla") == 1
    assert "90.0% sure" in page


def test_report_has_the_stored_accuracies_with_this_run(clip):
    stored = [
        Measured("tiny", method, method, "tokens", share, share, accuracy, (accuracy - 0.1, accuracy + 0.1), 50, share)
        for method, share, accuracy in (("vanilla", 1.0, 0.9), ("fastv", 0.1, 0.4), ("fastv", 0.5, 0.8))
    ]
    results = [make_result("vanilla", model="tiny"), make_result("fastv", keep=18, model="tiny")]
    titles = [figure.layout.title.text for figure in report_figures(results, benchmark=stored)]
    assert titles.count(strings.CHART_ACCURACY) == 1
    page = render_report(request(), results, clip, benchmark=stored)
    assert strings.CHART_ACCURACY in page
    assert strings.CHART_ACCURACY_RUN.format(label="Fastv") in page
    assert strings.CHART_ACCURACY not in render_report(request(), results, clip), "none without stored results"


def test_report_names_its_marks(clip):
    result = make_result(role=[["filled", "foveal"]], kept=[[0, 3]], frames=1, keep=2, merged_into=[[1, 0]])
    page = render_report(request(), [result], clip)
    assert re.findall(r"<li><b>(.)</b> (.*?)</li>", page) == [
        ("○", "filled in"), ("F", "foveal"), ("╱", "merged into another"),
    ]  # fmt: skip


def test_report_of_a_stopped_answer_compares_nothing(clip):
    stopped = make_result(answer="A blue", status="stopped")
    page = render_report(request(), [make_result("vanilla"), stopped], clip)
    assert "Differs from vanilla" not in page
    assert "<mark>" not in page


def test_report_lists_what_has_no_answer_and_says_that_it_was_stored(clip):
    failed = [
        {"label": "FastV", "kind": "out_of_memory", "message": "Too many <b>frames</b>."},
        {"label": "Feather", "kind": "not_run", "message": "stopped before it began"},
    ]
    page = render_report(request(), [make_result("vanilla")], clip, failed=failed, stored=True)
    assert "Failed: Too many &lt;b&gt;frames&lt;/b&gt;." in page
    assert "Not run: stopped before it began" in page
    assert "stored result" in page
    embedded = re.search(r'id="comparison">(.*?)</script>', page, re.S)
    assert embedded
    data = json.loads(embedded[1])
    assert [failure["label"] for failure in data["failed"]] == ["FastV", "Feather"]
    assert data["stored"] is True
