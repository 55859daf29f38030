"""A cache with room gives the logits of one that copies its rows for every token, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from sharp_demo.backbones import reserve
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.reserve import ReservedLayer
from sharp_demo.engine import generation
from sharp_demo.pruning.registry import make_method
from tests.pruning.prompts import Prompt, greedy


@pytest.mark.parametrize("method", ["vanilla", "sharp", "pdrop"])
def test_the_logits_are_those_of_a_copied_cache(tiny: Backbone, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt(tiny)
    monkeypatch.setattr(reserve, "ROOM", 3)  # the second turn alone is longer
    with make_method(method, 0.3, {})(tiny.model, tiny.processor):
        ids, logits, cache = greedy(prompt)
        monkeypatch.setattr(generation, "reserve", lambda cache: None)
        expected_ids, expected, plain = greedy(prompt)
    assert all(isinstance(layer, ReservedLayer) for layer in cache.layers)
    assert ids == expected_ids
    assert torch.equal(logits, expected)
    for layer, other in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


def test_rows_are_written_in_place_until_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "ROOM", 2)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    reserve.reserve(cache)
    places = []
    for number in range(5):
        cache.update(torch.full((1, 1, 1, 4), 1.0 + number), torch.full((1, 1, 1, 4), -1.0 - number), 0)
        places.append(cache.layers[0].keys.data_ptr())
    assert places[0] == places[1] == places[2] != places[3] == places[4]
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert cache.layers[0].values[0, 0, :, 0].tolist() == [0, 0, 0, -1, -2, -3, -4, -5]


def test_a_cropped_cache_goes_on_from_its_new_end() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    reserve.reserve(cache)
    for number in (1.0, 2.0):
        cache.update(torch.full((1, 1, 1, 4), number), torch.full((1, 1, 1, 4), number), 0)
    before = copy.deepcopy(cache)
    cache.crop(-2)
    cache.update(torch.full((1, 1, 1, 4), 7.0), torch.full((1, 1, 1, 4), 7.0), 0)
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 0, 7]
    assert before.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2], "a copy has rows of its own"


def test_rows_that_were_dropped_do_not_come_back() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    reserve.reserve(cache)
    layer = cache.layers[0]
    cache.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
    cache.update(torch.full((1, 1, 1, 4), 2.0), torch.full((1, 1, 1, 4), 2.0), 0)
    assert layer.keys[0, 0, :, 0].tolist() == layer.values[0, 0, :, 0].tolist() == [0, 1, 2]


def test_layers_of_another_kind_stay_as_they_are() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=4)]
    cache.layers[0].update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    reserve.reserve(cache)
    assert type(cache.layers[0]) is DynamicSlidingWindowLayer
