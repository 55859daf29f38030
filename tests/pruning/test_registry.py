"""A method is one class and one line of the registry: menus, command line, colours and documentation follow."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from sharp_demo.cli import main
from sharp_demo.page.menu import described, method_choices
from sharp_demo.pruning import registry
from sharp_demo.pruning.method import SingleStage, knob
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods, make_method
from sharp_demo.views.colors import method_color
from tests.test_docs import ROOT, generate

__all__ = ["generate"]


@dataclass(frozen=True)
class Toy(SingleStage):
    """Keep the first tokens, for the sake of the example."""

    name = "toy"
    title = "Toy method"
    paper = "https://example.org/toy"
    year = 2031
    summary = "Scores nothing; drops before layer K=1."
    color = "#123456"

    layer: int = knob(1, "K: tokens are dropped before decoder layer K", low=0, costs=True)
    pepper: float = knob(0.5, "how much pepper", high=1.0)

    def select(self, prefill: Prefill, k: int) -> Selection:
        return Selection(prefill.rows.new_tensor(range(k)))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, Toy))


@pytest.mark.usefixtures("toy")
def test_one_class_and_one_line_are_enough_for_menus_and_commands(capsys: pytest.CaptureFixture) -> None:
    assert list_methods()[-1] == "toy"
    assert make_method("toy", 0.3, {"pepper": "0.25"}) == Toy(retention=0.3, pepper=0.25)
    assert ("Toy method", "toy") in method_choices()
    assert any("Toy method" in line for _, lines in described() for line in lines)
    assert method_color("toy") == "#123456"
    assert main(["methods"]) == 0
    assert "toy: Toy method, 2031, https://example.org/toy\n" in capsys.readouterr().out
    assert main(["flops", "--method", "toy", "--tokens", "1000", "--option", "layer=3"]) == 0
    assert "3 x 1000, 25 x 200" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_one_class_and_one_line_are_enough_for_the_documentation(generate) -> None:
    assert "| [Toy method](https://example.org/toy) | `toy` | 2031 | inside the LLM |" in generate.method_table()
    page = generate.methods_page((ROOT / "docs/methods.md").read_text("utf-8"))
    section = "## Toy method\n\n[2031](https://example.org/toy). Keep the first tokens, for the sake of the example.\n"
    assert page.count(section) == 1
    assert "### Toy method\n" in page
    assert "| `pepper` | `0.5` | how much pepper |" in page
    assert generate.methods_page(page) == page


def test_sections_by_hand_are_not_written_twice(generate) -> None:
    assert generate.method_sections((ROOT / "docs/methods.md").read_text("utf-8")) == ""


def test_what_an_engine_offers_has_its_flag_on_the_page(capsys: pytest.CaptureFixture) -> None:
    page = (ROOT / "docs/deployed.md").read_text("utf-8")
    offered = [method for method in registry.METHODS if method.engines]
    rows = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert sorted(rows) == sorted(method.name for method in offered)
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    for method in offered:
        assert f"offered by {method.engines}\n" in listed
        assert all(engine.strip() in page for engine in method.engines.split(","))
