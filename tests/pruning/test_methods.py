"""Registry, options, selections and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import StaticCache

from sharp_demo.backbones.compat import cache_in, with_cache
from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import MethodError, UnsupportedError
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.feather import Feather, budgeted_grid, uniform_grid
from sharp_demo.pruning.floors import Latest, Random, Uniform
from sharp_demo.pruning.method import Method, top_k
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods, make_method, method_class
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.sharp import ShaRP
from tests.pruning.prompts import Prompt, greedy, scenes


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def forward(prompt: Prompt, **changes) -> None:
    with torch.no_grad():
        prompt.model(**{"use_cache": True, **prompt.inputs(), **changes})


def test_methods_are_listed_with_the_reference_first_and_the_floors_last() -> None:
    names = list_methods()
    assert names[:4] == ["vanilla", "fastv", "feather", "sharp"]
    assert names[-5:] == ["random", "uniform", "latest", "fewer_frames", "smaller_frames"]
    assert len(set(names)) == len(names)
    for name in names:
        assert method_class(name).title
        assert method_class(name).summary


@pytest.mark.parametrize(
    ("name", "retention", "options", "message"),
    [
        ("fastvee", 0.2, {}, "no method named 'fastvee'; the methods are vanilla, fastv"),
        ("fastv", 0.0, {}, "retention is 0; it must be above 0 and at most 1"),
        ("fastv", 1.5, {}, "at most 1"),
        ("fastv", float("nan"), {}, "retention is nan"),
        ("fastv", 0.2, {"depth": 3}, "no option 'depth'; its options are layer"),
        ("vanilla", 0.2, {"layer": 3}, "it has no options"),
        ("fastv", 0.2, {"layer": 0}, "layer is 0; it must be at least 1"),
        ("fastv", 0.2, {"layer": "two"}, "must be a whole number"),
        ("sharp", 0.2, {"posc": "maybe"}, "must be true or false"),
        ("sharp", 0.2, {"penalty": "-1"}, "penalty is -1; it must be at least 0"),
        ("sharp", 0.2, {"penalty": "nan"}, "penalty is nan; it must be a finite number"),
        ("sharp", 0.2, {"score_layer": "second"}, "one of lookahead, first"),
        ("sharp", 0.2, {"segm_layers": "0;1"}, "whole numbers separated by commas"),
        ("sharp", 0.2, {"segm_layers": "1,2"}, "segm_layers is 1, 2; SegM needs at least one layer before layer 1"),
    ],
)
def test_bad_options_are_named_in_one_line(name: str, retention: float, options: dict, message: str) -> None:
    with pytest.raises(MethodError) as error:
        make_method(name, retention, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_may_be_text() -> None:
    method = make_method("sharp", 0.2, {"posc": "off", "penalty": "0.4", "segm_layers": "0,1", "layer": "2"})
    assert method == ShaRP(retention=0.2, posc=False, penalty=0.4, segm_layers=(0, 1), layer=2)


def test_a_prune_beyond_the_model_is_refused(prompt: Prompt) -> None:
    with FastV(layer=4)(prompt.model), pytest.raises(MethodError, match="layers 0 to 3"):
        forward(prompt)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=32), st.integers(1, 32))
def test_top_k_prefers_the_lower_index_of_a_tie(scores: list[int], k: int) -> None:
    k = min(k, len(scores))
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    assert top_k(torch.tensor(scores), k).tolist() == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 400))
def test_budgeted_grid_is_the_densest_that_fits(frames: int, rows: int, cols: int, limit: int) -> None:
    grid = budgeted_grid(frames, rows, cols, limit)
    assert len(grid) <= limit
    assert grid.unique().tolist() == grid.tolist()
    assert len(grid) == 0 or int(grid[-1]) < frames * rows * cols
    strides = range(1, max(rows, cols) + 1)
    fitting = [s for s in strides if len(uniform_grid(frames, rows, cols, s)) <= limit]
    if fitting:
        assert torch.equal(grid, uniform_grid(frames, rows, cols, fitting[0]))
    else:
        assert len(grid) == limit  # fewer than one a frame: frames are thinned evenly
        assert len(set((grid // (rows * cols)).tolist())) == limit


def test_uniform_grid_starts_in_the_corner() -> None:
    assert uniform_grid(1, 4, 5, 2).tolist() == [0, 2, 4, 10, 12, 14]
    assert uniform_grid(2, 2, 2, 3).tolist() == [0, 4]


def test_feather_covers_every_frame_whatever_the_scores(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """All score mass in the last frame: the grid's tokens of the other frames survive."""
    prompt = Prompt(tiny_llava)
    n = len(prompt.layout)
    last = torch.arange(n) >= n - 9
    monkeypatch.setattr(Prefill, "unrotated_logits", lambda self, layer: last.float()[None] * 50)
    with Feather(retention=0.3)(prompt.model) as run:
        forward(prompt)
    k = budget(0.3, n)
    assert len(run.kept) == k
    frames = set((run.kept // 9).tolist())
    assert frames == set(range(8))
    grid = budgeted_grid(8, 3, 3, k // 2)
    assert set(grid.tolist()) <= set(run.kept.tolist())
    assert run.kept[run.role == Role.GRID].tolist() == grid.tolist()


def test_floors_choose_what_they_say(prompt: Prompt) -> None:
    n = len(prompt.layout)
    kept = {}
    for method in (
        Random(retention=0.25),
        Random(retention=0.25, seed=1),
        Uniform(retention=0.25),
        Latest(retention=0.25),
    ):
        with method(prompt.model) as run:
            forward(prompt)
        kept[method] = run.kept.tolist()
        assert len(run.kept) == budget(0.25, n)
    first, second, uniform, latest = kept.values()
    assert first != second
    assert latest == list(range(n - len(latest), n))
    gaps = {b - a for a, b in pairwise(uniform)}
    assert max(gaps) - min(gaps) <= 1


def test_refusals_say_why(prompt: Prompt) -> None:
    model, inputs = prompt.model, prompt.inputs()
    ids = inputs["input_ids"]
    with FastV(retention=0.3)(model):
        padded = torch.ones_like(ids)
        padded[0, 0] = 0
        with pytest.raises(UnsupportedError, match="unpadded"):
            forward(prompt, attention_mask=padded)
        static = StaticCache(config=model.config.get_text_config(), max_cache_len=256)
        with pytest.raises(UnsupportedError, match="DynamicCache"):
            forward(prompt, **with_cache(static))
        with pytest.raises(UnsupportedError, match="use_cache=True"):
            forward(prompt, use_cache=False)
        with pytest.raises(UnsupportedError, match=r"run\.scores"):
            forward(prompt, output_attentions=True)
        other = ids.clone()
        other[0, -1] -= 1
        with pytest.raises(UnsupportedError, match="same prompt in every row"), torch.no_grad():
            model(**{**inputs, "input_ids": torch.cat((ids, other))})
        with pytest.raises(UnsupportedError, match="needs input_ids"), torch.no_grad():
            model(inputs_embeds=torch.zeros(1, 12, 64))
        with pytest.raises(UnsupportedError, match="already attached"), FastV()(model):
            pass
        forward(prompt)


@pytest.mark.parametrize("parts", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 90}])
def test_prompts_that_come_in_parts_are_refused(parts: dict, prompt: Prompt) -> None:
    """Candidates after the prompt, or a piece of it, would end in another last token than the one that scores."""
    answer = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": -1, **parts}
    expected = prompt.model.generate(**prompt.inputs(), **answer)
    with FastV(retention=1.0)(prompt.model):
        assert torch.equal(prompt.model.generate(**prompt.inputs(), **answer), expected)
    with FastV(retention=0.3)(prompt.model), pytest.raises(UnsupportedError, match="in one pass"):
        prompt.model.generate(**prompt.inputs(), **answer)
    assert "_validate_generation_mode" not in vars(prompt.model)


def test_a_prompt_that_ends_with_its_video_is_refused(tiny_qwen: Backbone) -> None:
    prompt = Prompt(tiny_qwen)
    end = int(prompt.layout.index[-1]) + 1
    inputs = prompt.inputs()
    cut = {name: inputs[name][..., :end] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with FastV(retention=0.3)(prompt.model), pytest.raises(UnsupportedError, match="text must follow the video"):
        forward(prompt, **cut, position_ids=inputs["position_ids"][..., :end])


@pytest.mark.parametrize("method", [Uniform(retention=0.9, layer=0), ShaRP(retention=0.9, prune_layer0_kv=True)])
def test_a_cache_whose_length_is_short_is_continued_right_or_not_at_all(method: Method, prompt: Prompt) -> None:
    """`generate` slices a longer conversation by the first layer's length, and would feed old tokens again."""
    model = prompt.model
    with method(model, prompt.backbone.processor):
        greedy(prompt)  # steps and a second turn with positions of their own go on
        first = model.generate(
            **prompt.inputs(), max_new_tokens=3, do_sample=False, return_dict_in_generate=True, eos_token_id=-1
        )
        turn = torch.cat((first.sequences, torch.arange(5)[None] + 9), 1)
        with pytest.raises(UnsupportedError, match="new tokens only and their position_ids"):
            model.generate(input_ids=turn, **with_cache(cache_in(first)), max_new_tokens=2, do_sample=False)
        with pytest.raises(UnsupportedError, match="new tokens only"), torch.no_grad():
            model(input_ids=turn[:, -6:-5], **with_cache(cache_in(first)))


@dataclass(frozen=True)
class MergeTwice(Method):
    """Before layer 1 every odd token goes into the one before it; before layer 2 slot 0 into slot 2; slot 4 is lost."""

    name = "merge-twice"
    title = "Merge twice"

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        v = torch.arange(len(prefill.rows))
        if layer == 1:
            return Selection(v[::2], merged_into=torch.where(v % 2 == 1, v - 1, -1))
        if layer == 2:
            return Selection(v[[1, *range(3, len(v))]], merged_into=torch.where(v == 0, 1, -1))
        return None


def test_merges_of_several_stages_name_the_token_that_lives(prompt: Prompt) -> None:
    with MergeTwice()(prompt.model) as run:
        forward(prompt)
    assert run.merged_into[:8].tolist() == [2, 2, -1, 2, -1, -1, -1, 6]
    assert set(run.merged_into[run.merged_into >= 0].tolist()) <= set(run.kept.tolist())


def test_different_videos_in_one_batch_are_refused(tiny_llava: Backbone) -> None:
    one, other = Prompt(tiny_llava), Prompt(tiny_llava, scenes(seed=1))
    ids = one.tokens["input_ids"].repeat(2, 1)
    videos = torch.cat((one.pixels["pixel_values_videos"], other.pixels["pixel_values_videos"]))
    with FastV(retention=0.3)(one.model), pytest.raises(UnsupportedError, match="same video"), torch.no_grad():
        one.model(input_ids=ids, pixel_values_videos=videos)


def test_a_second_video_in_a_later_turn_is_refused(prompt: Prompt) -> None:
    with FastV(retention=0.3)(prompt.model):
        _, _, cache = greedy(prompt)
        with pytest.raises(UnsupportedError, match="first turn"):
            forward(prompt, **with_cache(cache))


def test_text_without_a_video_runs_untouched(prompt: Prompt) -> None:
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = prompt.model(input_ids=ids).logits
        with FastV(retention=0.3)(prompt.model) as run:
            assert torch.equal(prompt.model(input_ids=ids).logits, expected)
    assert run.layout is None


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Linear is not a LLaVA-OneVision"), FastV()(torch.nn.Linear(2, 2)):
        pass
