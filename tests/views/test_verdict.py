"""The one line above the columns, over every way a comparison can end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from handmade import make_result

from sharp_demo.records import Layout, Ratio, Result, Speedup
from sharp_demo.views.evidence import Evidence
from sharp_demo.views.telling import telling_frame
from sharp_demo.views.verdict import verdict

NOISY = Ratio(None, 0.8, 2.9, 3, "spread")
LABELS = {"vanilla": "Vanilla", "fastv": "FastV", "feather": "Feather", "sharp": "ShaRP"}


def made(method: str, answer: str = "A red circle.", **over) -> Result:
    keep = over.pop("keep", 12)  # of 60: 80 % dropped
    return make_result(method, keep=keep, label=LABELS[method], answer=answer, **over)


def faster(wall: float | None, cpu: float | None = None) -> Speedup:
    ratios = (NOISY if value is None else Ratio(value, value, value, 3) for value in (wall, cpu))
    return Speedup(next(ratios), next(ratios), Ratio(1.1, 1.0, 1.2, 3), 1.3)


def failure(method: str, kind: str = "oom") -> dict[str, str]:
    return {"label": LABELS[method], "kind": kind, "message": "no memory"}


VANILLA, SHARP = made("vanilla"), made("sharp")
FASTV, FEATHER = made("fastv"), made("feather")
DROPPED = "80 % of the visual tokens dropped."
CASES = {
    "nothing": ([], (), ""),
    "methods part": (
        [VANILLA, made("fastv", "Blue."), made("feather", "Two."), SHARP],
        (),
        f"{DROPPED} ShaRP: same answer, prefill 2.5× faster. FastV and Feather: another answer.",
    ),
    "case and punctuation are no difference": (
        [VANILLA, made("sharp", "a RED circle")],
        (),
        f"{DROPPED} ShaRP: same answer, prefill 2.5× faster.",
    ),
    "a range": (
        [VANILLA, made("fastv", speedup=faster(2.0)), SHARP],
        (),
        f"{DROPPED} ShaRP and FastV: same answer, prefill 2.0 to 2.5× faster.",
    ),
    "noisy: by the processor": (
        [VANILLA, made("sharp", speedup=faster(None, 2.2))],
        (),
        f"{DROPPED} ShaRP: same answer, prefill 2.2× faster in processor time.",
    ),
    "too noisy": (
        [VANILLA, made("sharp", speedup=faster(None))],
        (),
        f"{DROPPED} ShaRP: same answer, prefill too noisy to time.",
    ),
    "one is too noisy": (
        [VANILLA, made("fastv", speedup=faster(2.0)), made("sharp", speedup=faster(None))],
        (),
        f"{DROPPED} ShaRP and FastV: same answer, prefill 2.0× faster (ShaRP: too noisy to time).",
    ),
    "not timed": ([VANILLA, made("sharp", speedup=None)], (), f"{DROPPED} ShaRP: same answer."),
    "slower": (
        [VANILLA, made("sharp", speedup=faster(0.5))],
        (),
        f"{DROPPED} ShaRP: same answer, prefill 2.0× slower.",
    ),
    "as fast": (
        [VANILLA, made("sharp", speedup=faster(1.02))],
        (),
        f"{DROPPED} ShaRP: same answer, prefill as fast.",
    ),
    "some slower, some faster": (
        [VANILLA, made("fastv", speedup=faster(0.5)), SHARP],
        (),
        f"{DROPPED} ShaRP and FastV: same answer, prefill 0.5 to 2.5× as fast.",
    ),
    "fewer frames have no speed": (
        [made("vanilla", frames=8), SHARP],
        (),
        f"{DROPPED} ShaRP: same answer.",
    ),
    "empty is never the same": (
        [made("vanilla", ""), made("sharp", " ")],
        (),
        f"{DROPPED} Vanilla gave an empty answer: there is nothing to compare with. "
        "ShaRP: empty answer, prefill 2.5× faster.",
    ),
    "only the pruned one is empty": (
        [VANILLA, made("sharp", "...")],
        (),
        f"{DROPPED} ShaRP: empty answer, prefill 2.5× faster.",
    ),
    "no vanilla": (
        [FASTV, SHARP],
        (),
        f"{DROPPED} Vanilla was not chosen: there is no full answer to compare with.",
    ),
    "vanilla failed": ([SHARP], (failure("vanilla"),), f"{DROPPED} Vanilla: failed."),
    "vanilla stopped": (
        [made("vanilla", status="stopped"), SHARP],
        (),
        f"{DROPPED} Vanilla was stopped: there is no full answer to compare with.",
    ),
    "vanilla alone": ([VANILLA], (), "Vanilla alone: choose a method that prunes to compare it with."),
    "the others failed, were stopped, were not run": (
        [VANILLA, made("fastv", "A", status="stopped")],
        (failure("feather"), failure("sharp", "not_run")),
        f"{DROPPED} FastV: stopped while answering. ShaRP: not run. Feather: failed.",
    ),
    "nothing dropped": (
        [VANILLA, made("sharp", keep=60, speedup=faster(1.0))],
        (),
        "No visual token dropped. ShaRP: same answer, prefill as fast.",
    ),
    "different shares": (
        [VANILLA, made("fastv", keep=30), SHARP],
        (),
        "50 to 80 % of the visual tokens dropped. ShaRP and FastV: same answer, prefill 2.5× faster.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    results, missing, text = CASES[case]
    assert verdict(results, missing) == text


def test_a_clip_that_the_model_does_not_know_is_said_last():
    assert verdict([VANILLA, SHARP], knows_little=True).endswith("its answers about other clips mean nothing.")


def test_the_first_frame_shown_is_the_evidence_or_where_methods_disagree_most():
    layout = SHARP.layout
    assert telling_frame([VANILLA, SHARP], layout, [Evidence(2.0, 3.0)]) == 2
    one, other = ([[0], [0, 1], [0], [1]], [[0], [0, 1], [1, 2], [1, 2]])
    pair = [replace(FASTV, kept=one), replace(SHARP, kept=other)]
    everywhere = [Evidence(0.0, 9.0)]
    assert telling_frame([VANILLA, *pair], layout, everywhere) == 2
    assert telling_frame([VANILLA], layout) == 0
    fewer = Layout(2, layout.rows, layout.cols, 1, (0.0, 3.0))
    halved = replace(SHARP, kept=[[0], [7, 8, 9]], layout=fewer)
    assert telling_frame([pair[0], halved], layout) in (2, 3)
