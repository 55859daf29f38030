"""ToMe: what it asks of the vision tower, alone and before ShaRP; the merging itself is in tests/backbones."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.view import WHOLE, TowerMerging, VideoShape, View
from sharp_demo.errors import MethodError
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.tome import ToMe
from sharp_demo.pruning.video_floors import FewerFrames
from sharp_demo.pruning.with_sharp import ToMeShaRP
from tests.conftest import MERGING
from tests.pruning.prompts import Prompt, greedy

VIDEO = VideoShape(8, 14, 14, resizable=False)


@pytest.fixture(params=MERGING)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone]) -> Backbone:
    """One of each family whose patches can merge."""
    return tiny_of(request.param)


def merged_prompt(backbone: Backbone, merging: TowerMerging) -> Prompt:
    prompt = Prompt(backbone)
    prompt.features = encode_video(backbone.model, prompt.pixels, merging=merging)
    return prompt


def test_it_asks_for_a_tower_pass_of_its_own() -> None:
    assert ToMe(retention=0.3).view(VIDEO) == View(merging=TowerMerging(0.3))
    assert ToMe(retention=0.3, proportional=False).view(VIDEO) == View(merging=TowerMerging(0.3, False))
    assert ToMe(retention=1.0).view(VIDEO) == WHOLE
    assert ToMeShaRP(retention=0.2, patches=0.4).view(VIDEO) == View(merging=TowerMerging(0.4))
    assert ToMeShaRP(retention=1.0).view(VIDEO) == ToMeShaRP(patches=1.0).view(VIDEO) == WHOLE
    assert (ToMe(retention=0.3) + ShaRP(retention=0.2)).view(VIDEO) == View(merging=TowerMerging(0.3))
    with pytest.raises(MethodError, match="two of the combined methods"):
        (ToMe(retention=0.3) + FewerFrames(retention=0.5)).view(VIDEO)


@torch.no_grad()
def test_the_llm_sees_every_token_of_what_merged(tiny: Backbone) -> None:
    prompt, method = merged_prompt(tiny, TowerMerging(0.6)), ToMe(retention=0.6)
    plain = greedy(prompt, steps=3)
    with method(tiny.model) as run:
        seen = greedy(prompt, steps=3)
    assert seen[0] == plain[0]
    torch.testing.assert_close(seen[1], plain[1], rtol=0, atol=1e-5)
    assert run.visual_per_layer == [len(prompt.layout)] * 4
    assert not run.note


def test_features_that_did_not_merge_are_told(tiny: Backbone) -> None:
    with ToMe(retention=0.6)(tiny.model) as run, torch.no_grad():
        tiny.model(**Prompt(tiny).inputs())
    assert run.note == "The features were encoded without merging, so nothing merged in the vision tower."


@torch.no_grad()
def test_sharp_behind_it_is_sharp_on_merged_features(tiny: Backbone) -> None:
    both = ToMeShaRP(retention=0.4, patches=0.6)
    prompt = merged_prompt(tiny, TowerMerging(0.6))
    with both(tiny.model, tiny.processor) as run:
        seen = greedy(prompt, steps=3)[1]
    with ShaRP(retention=0.4)(tiny.model, tiny.processor) as alone:
        expected = greedy(prompt, steps=3)[1]
    assert torch.equal(run.kept, alone.kept)
    assert torch.equal(seen, expected)
    assert both.visual_per_layer(4, 100) == ShaRP(retention=0.4).visual_per_layer(4, 100)
    assert replace(both, penalty=0.3).parts[1] == ShaRP(retention=0.4, penalty=0.3)
