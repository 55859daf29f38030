"""ShaRP behind another method: it sees the reduced prompt and nothing else, its black video included."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.features import black_features
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.errors import MethodError
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Role, Run, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import make_method
from sharp_demo.pruning.schedule import budget
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.sharp.segments import frame_means, segment_frames, token_bounds
from sharp_demo.pruning.vidcom2 import VidCom2
from sharp_demo.pruning.visionzip import VisionZip
from sharp_demo.pruning.with_sharp import BehindOther, HoliTomShaRP, VidCom2ShaRP, VisionZipShaRP
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, scenes

COMBINED = ("visionzip+sharp", "holitom+sharp", "vidcom2+sharp")


@dataclass(frozen=True)
class Pick(Method):
    """Keeps given slots before the LLM."""

    name = "pick"
    title = "Pick"
    retention: float = 0.5
    slots: tuple[int, ...] = ()
    compact: bool = False

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        return Selection(torch.tensor(self.slots), compact=self.compact) if layer == 0 else None


def tau_of(name: str, prompt: Prompt) -> dict:
    """Options under which about half of the patches are static."""
    layout = prompt.layout
    tokens = prompt.features.features[: len(layout)].float().view(layout.frames, layout.rows * layout.cols, -1)
    middle = float(torch.nn.functional.cosine_similarity(tokens[:-1], tokens[1:], dim=-1).median())
    return {"outer_tau": middle} if name == "holitom+sharp" else {}


def run(prompt: Prompt, method: Method, cache: BiasCache | None = None) -> Run:
    with method(prompt.model, prompt.backbone.processor, cache) as record, torch.no_grad():
        prompt.model(**prompt.inputs(), use_cache=True)
    return record


def entered(prompt: Prompt, method: Method) -> Tensor:
    """Slots that enter the LLM under a combination."""
    return run(prompt, method.fitted(4).parts[0]).kept


@torch.no_grad()
def black_run(prompt: Prompt, eager: Backbone, slots: Tensor, layer: int, *, compact: bool) -> Tensor:
    """Last token's attention in `layer` on a whole run of the reduced prompt with black tokens at `slots`."""
    model, layout = eager.model, prompt.layout
    hidden = model.get_input_embeddings()(prompt.tokens["input_ids"])
    hidden[prompt.tokens["input_ids"] == model.config.video_token_id] = prompt.features.features
    black = black_features(model, eager.processor.video, layout).features
    hidden[0, layout.index[slots]] = black[slots]
    stays = torch.ones(prompt.length, dtype=torch.bool)
    stays[layout.index] = False
    stays[layout.index[slots]] = True
    whole = prompt.tokens.get("position_ids", torch.arange(prompt.length)[None])
    at = torch.arange(int(stays.sum()))[None] if compact else whole[..., stays]
    lm = model.model.language_model
    output = lm(inputs_embeds=hidden[:, stays], position_ids=at, output_attentions=True, use_cache=True)
    start = int(layout.index[0])
    return output.attentions[layer][0].mean(0)[-1, start : start + len(slots)]


@pytest.fixture(scope="session")
def eager_llava(tiny_llava: Backbone, cpu_settings: Settings) -> Backbone:
    return load(str(tiny_llava.folder), cpu_settings.model_copy(update={"attention": "eager"}))


@pytest.fixture(scope="session")
def eager_qwen(tiny_qwen: Backbone, cpu_settings: Settings) -> Backbone:
    return load(str(tiny_qwen.folder), cpu_settings.model_copy(update={"attention": "eager"}))


@pytest.fixture
def eager(tiny: Backbone, eager_llava: Backbone, eager_qwen: Backbone) -> Backbone:
    return eager_llava if tiny.family == eager_llava.family else eager_qwen


def test_a_frame_without_tokens_continues_the_one_before() -> None:
    tokens = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    means = frame_means(tokens, torch.tensor([1, 1, 4]), 6)
    assert means.tolist() == [[2, 0], [2, 0], [2, 0], [2, 0], [0, 2], [0, 2]]
    segments = segment_frames(means, 0.9)
    assert segments == [(0, 4), (4, 6)]
    assert token_bounds(torch.tensor([1, 1, 4]), segments) == [(0, 2), (2, 3)]


@pytest.mark.parametrize("score_layer", ["first", "lookahead"])
@pytest.mark.parametrize("name", COMBINED)
def test_cached_bias_is_a_whole_black_run_on_the_reduced_prompt(
    name: str, score_layer: str, tiny: Backbone, eager: Backbone
) -> None:
    """For two questions of equal length that share the cached rows."""
    cache = BiasCache()
    for number, question in enumerate(("What color is the car?", "What color is the dog?")):
        prompt = Prompt(tiny, scenes(12), question)
        method = make_method(name, 0.4, {"score_layer": score_layer, **tau_of(name, prompt)}).fitted(4)
        inner = method.parts[-1]
        record = run(prompt, method, cache)
        assert record.bias_cold is (number == 0)
        assert len(cache) == 1
        slots = entered(prompt, method)
        assert len(slots) == record.visual_per_layer[0] < len(prompt.layout)
        layer = inner.layer - (score_layer == "first")
        expected = black_run(prompt, eager, slots, layer, compact=tiny.family == "llava-onevision")
        torch.testing.assert_close(record.scores["bias"][slots], expected, atol=1e-5, rtol=0)
        gone = torch.ones(len(prompt.layout), dtype=torch.bool)
        gone[slots] = False
        assert record.scores["bias"][gone].isnan().all()


def test_the_cache_tells_slots_and_renumbering_apart(tiny_llava: Backbone, eager_llava: Backbone) -> None:
    prompt, cache = Prompt(tiny_llava), BiasCache(8)
    some, others = tuple(range(0, 72, 2)), tuple(range(1, 72, 2))
    biases = {}
    for slots in (some, others):
        for compact in (True, False):
            method = Pick(slots=slots, compact=compact) + ShaRP(retention=0.2)
            record = run(prompt, method, cache)
            assert record.bias_cold
            bias = record.scores["bias"][list(slots)]
            expected = black_run(prompt, eager_llava, torch.tensor(slots), 1, compact=compact)
            torch.testing.assert_close(bias, expected, atol=1e-5, rtol=0)
            assert not run(prompt, method, cache).bias_cold
            biases[slots, compact] = bias
    assert len(cache) == 4
    assert run(prompt, ShaRP(retention=0.2), cache).bias_cold
    assert (biases[some, True] - biases[some, False]).abs().max() > 1e-5


def test_whole_frames_renumbered_are_a_shorter_video(tiny_llava: Backbone) -> None:
    """ShaRP behind a method that keeps the first half of the frames is ShaRP on that half."""
    frames = scenes(12)
    whole, half = Prompt(tiny_llava, frames), Prompt(tiny_llava, frames[:6])
    n = len(half.layout)
    for options in ({}, {"layer": 3, "segm_layers": (2,), "score_layer": "first"}, {"prune_layer0_kv": True}):
        behind = Pick(slots=tuple(range(n)), compact=True) + ShaRP(retention=0.15, **options)
        alone = ShaRP(retention=0.3, **options)
        results = []
        for prompt, method in ((whole, behind), (half, alone)):
            with method(tiny_llava.model, tiny_llava.processor) as record:
                logits = greedy(prompt, steps=3, second_turn=2)[1]
            results.append((record.kept.tolist(), record.role.tolist(), record.segment_tokens, logits[:3]))
        assert results[0][:3] == results[1][:3]
        torch.testing.assert_close(results[0][3], results[1][3], atol=2e-5, rtol=0)


def test_frames_that_kept_nothing_do_no_harm(tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(12))
    per_frame = prompt.layout.rows * prompt.layout.cols
    frames = prompt.layout.frames
    for keeps in ((1, 3), (0, frames - 1), (frames - 2,)):
        slots = tuple(f * per_frame + i for f in keeps for i in range(0, per_frame, 2))
        method = Pick(slots=slots) + ShaRP(retention=4 / len(prompt.layout), tau_seg=0.999)
        with method(tiny.model, tiny.processor) as record:
            _, logits, _ = greedy(prompt, steps=2)
        assert not logits.isnan().any()
        assert len(record.kept) == 4
        assert set(record.kept.tolist()) <= set(slots)
        assert sum(record.segment_tokens) == len(slots)
        assert not record.scores["debiased"][list(slots)].isnan().any()


@pytest.mark.parametrize("retention", [0.15, 0.4])
def test_holitom_with_sharp_halves_what_holitom_left(retention: float, tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(12))
    method = make_method("holitom+sharp", retention, tau_of("holitom+sharp", prompt))
    record = run(prompt, method)
    outer = len(entered(prompt, method))
    assert record.visual_per_layer == [outer] * 3 + [round(outer / 2)]
    assert len(record.kept) == round(outer / 2)
    assert set(record.role.tolist()) <= {int(Role.REGISTER), int(Role.MERGED), int(Role.FILLED)}
    assert set(record.merged_into[record.merged_into >= 0].tolist()) <= set(record.kept.tolist())
    assert set(record.scores) == {"raw", "bias", "debiased"}
    assert record.method.layer == 3
    assert record.segments[0][0] == 0
    assert record.segments[-1][1] == prompt.layout.frames


def test_prune_layer0_kv_knows_which_rows_were_cached(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    logits = {}
    for also in (True, False):
        method = HoliTomShaRP(retention=0.4, prune_layer0_kv=also)
        with method(tiny.model, tiny.processor) as record:
            _, rows, cache = greedy(prompt, steps=2)
        lengths = [layer.get_seq_length() - 7 - (prompt.length - len(prompt.layout)) for layer in cache.layers]
        assert lengths == ([len(record.kept)] * 4 if also else record.visual_per_layer)
        logits[also] = rows[0]
    assert torch.equal(logits[True], logits[False])


@pytest.mark.parametrize("retention", [0.1, 0.124, 0.3])
def test_visionzip_with_sharp_keeps_two_shares(retention: float, tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(12))
    n, frames = len(prompt.layout), prompt.layout.frames
    record = run(prompt, VisionZipShaRP(retention=retention))
    outer = run(prompt, VisionZip(retention=retention * 20 / 12.4))
    kept = min(budget(retention, n), len(outer.kept))
    assert record.visual_per_layer == [len(outer.kept), kept, kept, kept]
    assert record.visual_per_layer == VisionZipShaRP(retention=retention).visual_per_layer(4, n, frames)
    assert set(record.kept.tolist()) <= set(outer.kept.tolist())
    assert set(record.role.tolist()) <= {int(Role.REGISTER), int(Role.MERGED), int(Role.FILLED)}


def test_visionzip_stays_out_where_its_share_would_be_all(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    record, alone = (run(prompt, method) for method in (VisionZipShaRP(retention=0.7), ShaRP(retention=0.7)))
    assert record.visual_per_layer == alone.visual_per_layer
    assert record.kept.tolist() == alone.kept.tolist()
    assert not VisionZipShaRP(retention=0.7).parts[0].active


def test_the_papers_shares_of_visionzip_with_sharp() -> None:
    method = VisionZipShaRP(retention=0.124)
    assert method.parts[0].retention == pytest.approx(0.2)
    assert method.schedule(28, 6272, 32) == [(0, 1248), (1, 778)]
    assert VisionZipShaRP(retention=0.7).schedule(28, 6272) == [(1, 4390)]
    options = {"layer": 3, "outer_ratio": 1.0}
    assert make_method("visionzip+sharp", 0.5, options).schedule(28, 100) == [(0, 50), (3, 50)]


def test_depth_and_defaults() -> None:
    method = HoliTomShaRP(retention=0.15)
    assert method.schedule(28, 6272, 32) == [(0, 960), (18, 480)]
    outer, inner = method.fitted(24).parts
    assert (inner.layer, inner.segm_layers, inner.score_layer, inner.retention) == (15, (14,), "first", 0.5)
    assert (outer.tau, outer.drop, outer.retention) == (0.8, 0.0, 0.15)
    assert make_method("holitom+sharp", 0.2, {"layer": "5", "segm_layers": "0,1"}).parts[1].segm_layers == (0, 1)


@pytest.mark.parametrize("name", COMBINED)
def test_options_are_sharps_and_reach_it(name: str) -> None:
    method = make_method(name, 0.2, {"penalty": 0.3, "regd": "false", "tau_merge": 0.5})
    assert isinstance(method, BehindOther)
    inner = method.parts[-1]
    assert isinstance(inner, ShaRP)
    assert (inner.penalty, inner.regd, inner.tau_merge) == (0.3, False, 0.5)
    with pytest.raises(MethodError, match=r"there is no option 'lambda'"):
        make_method(name, 0.2, {"lambda": 1})


def test_refusals(tiny: Backbone) -> None:
    with pytest.raises(MethodError, match=r"holitom\+sharp: PosC makes a black video and needs the processor"):
        HoliTomShaRP()(tiny.model)
    with pytest.raises(MethodError, match="SegM needs at least one layer before layer 2"):
        HoliTomShaRP(layer=2, segm_layers=(5,))
    prompt = Prompt(tiny)
    with (
        HoliTomShaRP(layer=9)(tiny.model, tiny.processor),
        pytest.raises(MethodError, match="before layer 9, but this model has"),
    ):
        prompt.model(**prompt.inputs(), use_cache=True)
    assert not replace(HoliTomShaRP(), retention=1.0).active


def test_vidcom2_and_sharp_are_the_two_one_after_the_other(tiny: Backbone) -> None:
    prompt, n = Prompt(tiny), len(Prompt(tiny).layout)
    together = run(prompt, VidCom2ShaRP(retention=0.2))
    share = 0.2 * VisionZipShaRP().outer_ratio
    apart = run(prompt, VidCom2(retention=share) + ShaRP(retention=0.2))
    assert together.kept.tolist() == apart.kept.tolist()
    assert together.visual_per_layer == [budget(share, n)] + [budget(0.2, n)] * 3
    alone = run(prompt, VidCom2ShaRP(retention=0.2, outer_ratio=9.0))
    assert alone.kept.tolist() == run(prompt, ShaRP(retention=0.2)).kept.tolist()
