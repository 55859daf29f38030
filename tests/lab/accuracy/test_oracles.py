"""Oracles keep what they were told about, wherever the cut is, and draw the rest."""

from dataclasses import replace

import pytest

from lab.accuracy.asking import Asked, Film
from lab.accuracy.oracles import EvidenceOracle, SaliencyOracle, evidence_slots, slots_of
from lab.accuracy.variants import ABLATION, CORE, Subject, parse_variants
from lab.world.generate import clip_scenes, make_clip
from lab.world.records import GRID, INTERVALS, Question, SyntheticClip
from sharp_demo.errors import MethodError
from sharp_demo.pruning.sharp import ShaRP


class Grid:
    """As much of a layout as slots need."""

    def __init__(self, frames: int, rows: int, cols: int) -> None:
        self.frames, self.rows, self.cols = frames, rows, cols


def test_a_cell_is_a_slot_where_the_model_has_one_token_a_cell() -> None:
    layout = Grid(INTERVALS, GRID, GRID)
    assert slots_of([(0, 0, 0), (2, 3, 4), (15, 6, 6)], layout, GRID) == (0, 2 * 49 + 3 * 7 + 4, 16 * 49 - 1)


def test_a_cell_is_every_token_it_overlaps_in_other_layouts() -> None:
    assert slots_of([(0, 0, 0)], Grid(32, 14, 14), GRID) == (0, 1, 14, 15, 196, 197, 210, 211)
    assert slots_of([(0, 2, 0)], Grid(16, 3, 3), GRID) == (0, 3)  # rows 2/7 to 3/7 lie in the first and second third
    everything = [(i, row, col) for i in range(INTERVALS) for row in range(GRID) for col in range(GRID)]
    assert slots_of(everything, Grid(16, 3, 4), GRID) == tuple(range(16 * 12))


def question(cells: tuple = (), frames: tuple[int, int] = (3, 4)) -> Question:
    return Question("What color is the car?", "Red is its color.", "Red", "color_in", frames, cells, "early")


def test_where_no_cell_is_named_the_frames_are_the_evidence() -> None:
    layout = Grid(INTERVALS, GRID, GRID)
    assert evidence_slots(question(((5, 1, 1),)), layout, GRID) == (5 * 49 + 8,)
    assert evidence_slots(question(), layout, GRID) == tuple(range(3 * 49, 5 * 49))
    assert evidence_slots(question(frames=(0, INTERVALS)), layout, GRID) == tuple(range(16 * 49))


@pytest.mark.parametrize("oracle", [SaliencyOracle, EvidenceOracle])
@pytest.mark.parametrize("layer", [1, 2])
def test_told_slots_come_first(film: Film, oracle: type, layer: int) -> None:
    asked = Asked(film, "What color is the car?")
    told = (3, 77, 100)
    _, _, run = asked.prefill(oracle(0.1, layer=layer, slots=told, seed=5))
    assert len(run.kept) == round(0.1 * len(asked.layout))
    assert set(told) <= set(run.kept.tolist())
    assert run.visual_per_layer[layer - 1 : layer + 1] == [len(asked.layout), len(run.kept)]
    _, _, again = asked.prefill(oracle(0.1, layer=layer, slots=told, seed=5))
    _, _, other = asked.prefill(oracle(0.1, layer=layer, slots=told, seed=6))
    assert again.kept.tolist() == run.kept.tolist() != other.kept.tolist()
    _, _, few = asked.prefill(oracle(2 / len(asked.layout), layer=layer, slots=told))
    assert len(few.kept) == 2
    assert set(few.kept.tolist()) < set(told)
    _, _, blank = asked.prefill(oracle(0.1, layer=layer))
    assert len(blank.kept) == len(run.kept)


def test_a_slot_outside_the_video_is_refused(film: Film) -> None:
    asked = Asked(film, "What color is the car?")
    with pytest.raises(MethodError, match="outside 0"):
        asked.prefill(EvidenceOracle(0.1, slots=(len(asked.layout),)))


def test_what_oracles_know_of_a_generated_clip(film: Film, clip: SyntheticClip) -> None:
    layout = Grid(INTERVALS, GRID, GRID)
    things = clip.things
    items = [item for scene in clip_scenes(clip.seed, "validation") for item in scene.items]
    assert len(things) == sum(len(item.cells) for item in items)
    variants = {variant.name: variant for variant in CORE}
    for one in clip.questions:
        subject = Subject(clip, one)
        # Evidence is where a thing is; a question-blind oracle of the things therefore knows of it.
        assert set(one.evidence_cells) <= set(things)
        told = subject.knowledge(variants["evidence"], layout)["slots"]
        assert set(subject.evidence(layout)) <= set(told)
        assert subject.knowledge(variants["saliency:layer=1"], layout)["slots"] == slots_of(things, layout, GRID)
        assert subject.knowledge(variants["random"], layout) == {"seed": clip.seed}
        assert subject.knowledge(variants["sharp"], layout) == {}


def test_random_draws_another_subset_for_another_clip(film: Film, clip: SyntheticClip) -> None:
    asked, variant = Asked(film, "What color is the car?"), parse_variants("random")[0]
    kept = []
    for number in (7, 8):
        other = make_clip(number, "validation", size=40, frames=INTERVALS)
        knowledge = Subject(other, other.questions[0]).knowledge(variant, asked.layout)
        kept.append(asked.prefill(replace(variant.build(0.2), **knowledge))[2].kept.tolist())
    assert kept[0] != kept[1]


def test_variants_are_read_with_options_and_named_after_them() -> None:
    vanilla, cut, sharp = parse_variants("vanilla, fastv:layer=1,sharp:segm=false:score_layer=first")
    assert (vanilla.name, vanilla.group, vanilla.label) == ("vanilla", "reference", "Vanilla")
    assert (cut.name, cut.group, cut.label, cut.build(0.3).layer) == ("fastv:layer=1", "method", "FastV, K=1", 1)
    assert sharp.build(0.3) == ShaRP(0.3, segm=False, score_layer="first")
    assert [one.name for one in parse_variants(sharp.name)] == [sharp.name]
    assert parse_variants("core") == CORE
    assert {variant.group for variant in CORE} == {"reference", "method", "floor", "oracle"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no method was named"),
        ("nothing", "no method named 'nothing'"),
        ("fastv:", "cannot read the option"),
        ("fastv:layer", "write fastv:name=value"),
        ("fastv:depth=3", "no option 'depth'"),
        ("fastv:layer=0", "at least 1"),
        ("saliency:slots=1", "no option 'slots'"),
        ("random,random", "named twice"),
        ("all,fastv", "named twice"),
    ],
)
def test_wrong_variants_are_refused(text: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        parse_variants(text)


def test_ablation_rows_switch_what_they_say() -> None:
    built = {variant.label: variant.build(0.2) for variant in ABLATION}
    modules = {label: (m.posc, m.segm, m.regd) for label, m in built.items() if isinstance(m, ShaRP)}
    assert modules["Original"] == (False, False, False)
    assert modules["PosC"] == (True, False, False)
    assert modules["PosC+SegM"] == (True, True, False)
    assert modules["PosC+RegD"] == (True, False, True)
    assert modules["SegM+RegD"] == (False, True, True)
    assert built["All (ShaRP)"] == ShaRP(0.2)
    for option in ("score_layer", "score_space", "prefilter_absorb", "dedup_absorb"):
        values = {getattr(m, option) for m in built.values() if isinstance(m, ShaRP)}
        assert len(values) == 2, option
    assert len({variant.name for variant in ABLATION}) == len(ABLATION)
