"""The benchmark on the rendered world: a stand-in films the plans, everything behind it is the real thing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lab.accuracy import worlds
from lab.accuracy.evaluate import Plan, choose_clips, evaluate
from lab.accuracy.front_door import front_door
from lab.accuracy.variants import Subject, parse_variants
from lab.accuracy.worlds import open_world, shipped_kinds, world_of
from lab.tabletop.plan import Plan as Scene
from lab.tabletop.questions import ALL_KINDS, UNANSWERABLE
from lab.tabletop.studio import Take
from lab.tabletop.truth import GRID, Track, Truth
from sharp_demo.backbones.load import load
from sharp_demo.cli import main
from sharp_demo.engine import Engine
from sharp_demo.errors import InputError
from sharp_demo.settings import Settings

LOOKS = ["color_of", "shape_of", "surface_of"]


class Stage:
    """Films a plan as a grey picture in which every thing of it stands in a cell of its own."""

    def shoot(self, plan: Scene, side: int, per_interval: int = 1, film: bool = False) -> Take:
        count = plan.length * (plan.ticks if film else per_interval)
        where = range(plan.length)
        tracks = tuple(
            Track(
                thing.color, thing.shape, "stand",
                dict.fromkeys(where, (n / GRID, 0.5, (n + 1) / GRID, 0.6)), dict.fromkeys(where, ((5, n),)),
            )
            for n, thing in enumerate(plan.things)
        )  # fmt: skip
        truth = Truth(plan.length, plan.seconds, plan.surface, plan.camera.move, tracks, ())
        grey = len(plan.things) * 20
        return Take(np.full((count, side, side, 3), grey, np.uint8), truth, np.zeros((plan.length, 20, 20), np.uint8))


@pytest.fixture(autouse=True)
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "Studio", Stage)


@pytest.fixture(scope="module")
def model(tiny_llava_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose card says that it was trained on the rendered world."""
    copied = tmp_path_factory.mktemp("cards") / "tabletop"
    shutil.copytree(tiny_llava_folder, copied)
    card = {"trained": False, "default_frames": 16, "kinds": [*LOOKS, UNANSWERABLE], "world": "tabletop"}
    (copied / "card.json").write_text(json.dumps(card))
    return copied


def plan(**changes) -> Plan:
    values = {"variants": parse_variants("vanilla,sharp,random,evidence,saliency"), "retentions": (0.3,)}
    return Plan(**{**values, "questions": 6, "per_clip": 3, "split": "validation", **changes})


def test_the_world_and_its_kinds_are_those_of_the_card(model: Path, folder: Path) -> None:
    assert (world_of(model), world_of(folder)) == ("tabletop", "drawn")
    assert shipped_kinds(model, "tabletop") == (*LOOKS, UNANSWERABLE)
    assert shipped_kinds(folder, "tabletop") == ALL_KINDS  # it was trained on none of them
    assert "bg_of" in shipped_kinds(model, "drawn")


def test_a_whole_evaluation_of_the_rendered_world(model: Path, cpu_settings: Settings) -> None:
    made = evaluate(str(model), cpu_settings, plan(), jobs=1)
    assert made["setup"]["world"] == "tabletop"
    assert made["setup"]["kinds"] == [*LOOKS, UNANSWERABLE]
    assert made["questions"]["n"] == 6
    assert set(made["questions"]["by_kind"]) <= {*LOOKS, UNANSWERABLE}
    assert {one["match"] for one in made["results"]} == {"tokens", "flops"}
    kept = {one["method"]: one["evidence_kept"] for one in made["results"] if one["match"] == "tokens"}
    assert kept["vanilla"] == kept["evidence"] == 1
    assert kept["random"] < 0.7


def test_evidence_and_things_are_cells_of_its_own_grid(model: Path, cpu_settings: Settings) -> None:
    backbone = load(str(model), cpu_settings)
    clip = choose_clips(backbone, plan())[0]
    assert clip.grid == GRID
    assert clip.frames.shape[:1] == (16,)
    assert clip.scenes[-1][1] == 16

    class Layout:
        frames, rows, cols = 16, GRID, GRID

    for question in clip.questions:
        subject = Subject(clip, question)
        slots = {(i * GRID + row) * GRID + col for i, row, col in question.evidence_cells}
        assert set(subject.evidence(Layout())) == slots
        assert set(question.evidence_cells) <= set(clip.things)
        assert all(row == 5 for _, row, _ in clip.things)


def test_no_clip_of_one_split_is_in_the_other(model: Path, cpu_settings: Settings) -> None:
    backbone = load(str(model), cpu_settings)
    asked = [[q.text for clip in choose_clips(backbone, plan(split=s)) for q in clip.questions] for s in SPLITS]
    assert asked[0] != asked[1]
    again = [q.text for clip in choose_clips(backbone, plan(split=SPLITS[0])) for q in clip.questions]
    assert again == asked[0]


SPLITS = ("validation", "heldout")


def test_its_films_go_through_the_front_door(model: Path, cpu_settings: Settings) -> None:
    engine = Engine(cpu_settings.model_copy(update={"model": str(model)}))
    seen = front_door(load(str(model), cpu_settings), engine, plan(questions=3))
    assert (seen["clips"], seen["questions"], seen["setup"]["world"]) == (1, 3, "tabletop")


def test_the_command_takes_a_world(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    asked = ["--questions", "2", "--split", "validation", "--jobs", "1", "--methods", "vanilla", "--match", "tokens"]
    assert main(["evaluate", "--model", str(folder), "--world", "tabletop", *asked, "--json", str(out)]) == 0
    (about,) = json.loads(out.read_text())["models"].values()
    assert about["setup"]["world"] == "tabletop"
    assert set(about["questions"]["by_kind"]) <= set(ALL_KINDS)


def test_without_a_renderer_the_world_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("rendering needs MuJoCo: pip install -r requirements-world.txt")

    monkeypatch.setattr(worlds, "Studio", missing)
    with pytest.raises(InputError, match="needs MuJoCo"):
        open_world("tabletop")
    assert open_world("drawn").name == "drawn"
