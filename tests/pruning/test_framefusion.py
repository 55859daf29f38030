"""FrameFusion against a whole model run written as loops from its formulas, and toys by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from sharp_demo.backbones.load import Backbone
from sharp_demo.cost import paper_tflops, shape_named
from sharp_demo.engine.generation import decode_step, prefill, suppress_placeholders
from sharp_demo.errors import MethodError
from sharp_demo.pruning.framefusion import FIRST, FrameFusion, merge_runs, similarity_to_predecessor
from sharp_demo.pruning.outcome import Role, Run
from sharp_demo.pruning.registry import method_schedule
from sharp_demo.pruning.schedule import visual_per_layer
from tests.pruning.prompts import Prompt, embedded, scenes


@pytest.fixture
def prompt(tiny: Backbone) -> Prompt:
    return Prompt(tiny)


def still(tiny: Backbone) -> Prompt:
    """One frame, eight times."""
    return Prompt(tiny, scenes(8)[:1].repeat(8, 0))


@dataclass
class Naive:
    """The model with FrameFusion in it, token by token; `hidden` is what is left, by original row."""

    prompt: Prompt
    cost: float
    threshold: float
    lower: float = 0.1
    counts: list[int] = field(default_factory=list)
    merging: bool = True
    pruning: bool = True
    scores: dict[int, float] = field(default_factory=dict)

    def losses(self) -> list[float]:
        """The official code's list: the share that each call took."""
        before = [len(self.prompt.layout), *self.counts]
        return [1 - b / a for a, b in zip(before, self.counts, strict=False)]

    def ratio(self) -> float:
        """The share that has to go now, for a constant number from here on."""
        layers, left = 4, [math.prod(1 - loss for loss in self.losses()[: i + 1]) for i in range(len(self.counts))]
        now = left[-1] if left else 1.0
        bracket = (layers * self.cost - sum(left)) / ((layers - len(left)) * now)
        assert bracket >= 0
        return 0.0 if bracket > 1 else 1 - bracket

    @torch.no_grad()
    def run(self, answer: list[int]) -> tuple[Tensor, dict[int, int]]:
        """Logits after the prompt and after each token of `answer`, all in one pass; who went where, by slot."""
        model, lm, layout = self.prompt.model, self.prompt.model.model.language_model, self.prompt.layout
        text = lm.embed_tokens(torch.tensor([answer], dtype=torch.long))[0]
        whole = torch.cat((embedded(self.prompt)[0], text))
        n = self.prompt.length
        positions = self.prompt.tokens.get("position_ids", torch.arange(n)[None])
        positions = torch.cat((positions, positions[..., -1:] + 1 + torch.arange(len(answer))), -1)
        rotary = lm.rotary_emb(whole[None], positions[-3:] if positions.ndim == 3 else positions)
        self.cos, self.sin = (part[0] for part in rotary)
        self.first, each = int(layout.index[0]), layout.rows * layout.cols
        self.hidden = dict(enumerate(whole))
        self.into: dict[int, int] = {}
        self.video = [(row, (row - self.first) // each, (row - self.first) % each) for row in layout.index.tolist()]
        queries = list(range(n - (4 if "position_ids" in self.prompt.tokens else 1), n))
        self.call(None)
        for layer in lm.layers:
            attention = self.attend(layer, queries)
            self.call(attention)
            for row, state in self.hidden.items():
                self.hidden[row] = state + layer.mlp(layer.post_attention_layernorm(state))
        rows = [self.hidden[row] for row in range(n - 1, n + len(answer))]
        return model.lm_head(lm.norm(torch.stack(rows))), self.into

    def attend(self, layer: torch.nn.Module, queries: list[int]) -> dict[int, float]:
        """Attention with its residual; returns what each row gets from the queries, mean over heads and queries."""
        rows, block = list(self.hidden), layer.self_attn
        x = layer.input_layernorm(torch.stack(list(self.hidden.values())))
        cos, sin = self.cos[rows][:, None], self.sin[rows][:, None]
        q, k, v = (proj(x).view(len(rows), -1, block.head_dim) for proj in (block.q_proj, block.k_proj, block.v_proj))
        q, k = (t * cos + rotate_half(t) * sin for t in (q, k))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q, k) * block.head_dim**-0.5
        hidden_keys = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        weights = logits.masked_fill(hidden_keys, -torch.inf).softmax(-1)
        out = block.o_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        for place, row in enumerate(rows):
            self.hidden[row] = self.hidden[row] + out[place]
        at = [rows.index(query) for query in queries]
        scores = weights.mean(0)[at].mean(0)
        return {row: float(scores[place]) for place, row in enumerate(rows)}

    def call(self, attention: dict[int, float] | None) -> None:
        if len(self.counts) == 4:
            return
        if self.merging:
            self.merge()
        elif self.pruning:
            assert attention is not None
            self.pruning = False
            keep = round(len(self.video) * (1 - self.ratio()))
            self.scores = {row - self.first: attention[row] for row, _, _ in self.video}
            best = sorted(self.video, key=lambda token: (-attention[token[0]], token[0]))[:keep]
            for token in set(self.video) - set(best):
                del self.hidden[token[0]]
            self.video = sorted(best)
        self.counts.append(len(self.video))

    def merge(self) -> None:
        cosine: dict[tuple[int, int, int], float] = {}
        before: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        for token in self.video:
            earlier = [other for other in self.video if other[2] == token[2] and other[1] < token[1]]
            if earlier:
                before[token] = max(earlier, key=lambda other: other[1])
                both = (self.hidden[token[0]], self.hidden[before[token][0]])
                cosine[token] = float(torch.cosine_similarity(*both, dim=0))
        similar = [token for token in cosine if cosine[token] >= self.threshold]
        above, limit = len(similar) / len(self.video), self.ratio()
        if above < limit:
            self.merging = above >= self.lower
        else:
            similar = sorted(similar, key=lambda token: (-cosine[token], token))[: int(limit * len(self.video) + 1e-9)]
            self.merging = self.pruning = False
        runs: dict[tuple[int, int, int], list[Tensor]] = {}
        for token in sorted(similar, key=lambda token: token[1]):
            head = before[token]
            while head in similar:
                head = before[head]
            runs.setdefault(head, [self.hidden[head[0]]]).append(self.hidden[token[0]])
            self.into[token[0] - self.first] = head[0] - self.first
        for head, members in runs.items():
            self.hidden[head[0]] = torch.stack(members).mean(0)
        for token in similar:
            del self.hidden[token[0]]
        self.video = [token for token in self.video if token not in similar]


@torch.no_grad()
def fused(prompt: Prompt, method: FrameFusion, steps: int = 0) -> tuple[Run, list[int], Tensor]:
    """The run, greedy tokens, and the logits [steps + 1, vocab] before the placeholders are suppressed."""
    with method(prompt.model) as run:
        logits, cache, positions = prefill(prompt.model, prompt.inputs())
        rows, ids = [logits], []
        for _ in range(steps):
            ids.append(int(rows[-1].argmax()))
            positions = positions + 1
            rows.append(decode_step(prompt.model, ids[-1], cache, positions))
    return run, ids, torch.stack(rows)


CASES = [(0.5, 0.6), (0.45, 0.9), (0.35, 0.97), (0.7, 0.3), (0.6, 0.999), (0.9, 0.5)]


@pytest.mark.parametrize(("cost", "threshold"), CASES)
def test_equals_the_loops_in_prefill_and_decode(cost: float, threshold: float, prompt: Prompt) -> None:
    run, ids, logits = fused(prompt, FrameFusion(retention=cost, similarity=threshold), steps=3)
    naive = Naive(prompt, cost, threshold)
    expected, into = naive.run(ids)
    expected = torch.stack([suppress_placeholders(prompt.model, row) for row in expected])
    assert run.visual_per_layer == naive.counts
    assert run.kept.tolist() == [row - naive.first for row, _, _ in naive.video]
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=0)
    scores = run.scores.get("raw", torch.full((len(run.layout),), torch.nan))
    scored = {slot: float(score) for slot, score in enumerate(scores) if score.isfinite()}
    assert scored == pytest.approx(naive.scores, abs=1e-6)
    alive = set(run.kept.tolist())
    ends = {slot: end for slot in into if (end := follow(into, slot)) in alive}
    assert {slot: int(end) for slot, end in enumerate(run.merged_into) if end >= 0} == ends


def follow(into: dict[int, int], slot: int) -> int:
    while slot in into:
        slot = into[slot]
    return slot


def test_the_cases_cover_every_way_it_can_end(tiny_llava: Backbone) -> None:
    """Merging alone, a prune in layer 0, and a prune after several merges."""
    ways = set()
    for cost, threshold in CASES:
        run, _, _ = fused(Prompt(tiny_llava), FrameFusion(retention=cost, similarity=threshold))
        n = len(run.layout)
        steps = [b < a for a, b in zip([n, *run.visual_per_layer], run.visual_per_layer, strict=False)]
        ways.add(("pruned" if "raw" in run.scores else "merged", sum(steps)))
    assert {way for way, _ in ways} == {"pruned", "merged"}
    assert len({steps for _, steps in ways}) > 1


@pytest.mark.parametrize("cost", [0.3, 0.5, 0.8])
def test_a_still_video_merges_to_the_budget_before_any_layer(cost: float, tiny: Backbone) -> None:
    """No attention is read, and the means of equal tokens are those tokens."""
    prompt = still(tiny)
    n = len(prompt.layout)
    seen: list[Tensor] = []
    norm = prompt.model.model.language_model.layers[0].input_layernorm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    run, _, _ = fused(prompt, FrameFusion(retention=cost))
    hook.remove()
    kept = n - math.floor((1 - cost) * n + 1e-9)
    assert run.visual_per_layer == [kept] * 4
    assert run.scores == {}
    start = int(prompt.layout.index[0])
    assert torch.equal(seen[0][0, start : start + kept], prompt.features.features[run.kept])
    each = prompt.layout.rows * prompt.layout.cols
    assert run.kept[:each].tolist() == list(range(each))  # the first frame is always there


def test_first_frames_survive_merging(prompt: Prompt) -> None:
    run, _, _ = fused(prompt, FrameFusion(retention=0.5, similarity=1e-6))
    each = prompt.layout.rows * prompt.layout.cols
    assert "raw" not in run.scores  # everything resembles its predecessor: merging is enough
    assert set(range(each)) <= set(run.kept.tolist())
    assert (run.merged_into[:each] == -1).all()
    assert (run.kept.diff() > 0).all()


@pytest.mark.parametrize("cost", [0.3, 0.45, 0.6])
def test_without_similar_tokens_it_prunes_once_in_layer_0(cost: float, prompt: Prompt) -> None:
    run, _, _ = fused(prompt, FrameFusion(retention=cost, similarity=1.0))
    n = len(prompt.layout)
    kept = round(n * (4 * cost - 1) / 3)
    assert run.visual_per_layer == [n, kept, kept, kept]
    assert list(FrameFusion(retention=cost).schedule(4, n)) == [(1, kept)]
    assert (run.merged_into == -1).all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("cost", [0.28, 0.4, 0.6, 0.9])
def test_the_mean_over_layers_is_the_retention(cost: float, threshold: float, prompt: Prompt) -> None:
    run, _, _ = fused(prompt, FrameFusion(retention=cost, similarity=threshold))
    n = len(prompt.layout)
    assert sum(run.visual_per_layer) / 4 / n == pytest.approx(cost, abs=1 / n)


def test_where_merging_on_would_overrun_it_prunes_at_once(tiny_llava: Backbone) -> None:
    """Mean 0.26 of 4 layers: one full layer and 4 % of the tokens more; no call ever merges too little."""
    prompt = Prompt(tiny_llava)
    method = FrameFusion(retention=0.26, similarity=1.0, ratio_lower_bound=0.0)
    run, _, _ = fused(prompt, method)
    n = len(prompt.layout)
    assert run.visual_per_layer == [n, 1, 1, 1]
    assert "raw" in run.scores


def test_thresholds_of_the_families(tiny: Backbone) -> None:
    prompt, own = Prompt(tiny), 0.5 if "position_ids" in Prompt(tiny).tokens else 0.6
    by_default, _, _ = fused(prompt, FrameFusion(retention=0.6))
    said, _, _ = fused(prompt, FrameFusion(retention=0.6, similarity=own))
    assert by_default.kept.tolist() == said.kept.tolist()
    assert torch.equal(by_default.merged_into, said.merged_into)


def test_heads_are_marked(tiny: Backbone) -> None:
    run, _, _ = fused(still(tiny), FrameFusion(retention=0.5))
    targets = set(run.merged_into[run.merged_into >= 0].tolist())
    assert set(run.kept[run.role == Role.MERGED].tolist()) == targets
    assert targets


def test_chain_of_neighbours_becomes_one() -> None:
    """Four tokens of one place, 20 degrees apart: the ends are 60 degrees apart and still go together."""
    angles = torch.deg2rad(torch.tensor([0.0, 20, 40, 60]))
    hidden = torch.stack((angles.cos(), angles.sin()), 1)
    frame = torch.arange(4)
    similarity, order = similarity_to_predecessor(hidden, frame, torch.zeros(4, dtype=torch.long))
    assert similarity[0] == FIRST
    torch.testing.assert_close(similarity[1:], torch.full((3,), math.cos(math.radians(20))))
    rows, head = merge_runs(hidden, similarity >= 0.9, order)
    assert head.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(rows[0], hidden.mean(0))


def test_places_of_a_frame_do_not_mix_and_survivors_are_neighbours() -> None:
    """Two places; the token of frame 1 at place 1 is gone, so frames 0 and 2 are compared there."""
    frame, patch = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 0, 1])
    hidden = torch.tensor([[1.0, 0], [0, 2], [0, 3], [0, 1], [0, 5]])
    similarity, order = similarity_to_predecessor(hidden, frame, patch)
    assert similarity.tolist() == [FIRST, FIRST, 0, 1, 1]
    rows, head = merge_runs(hidden, similarity >= 0.9, order)
    assert head.tolist() == [0, 1, 2, 2, 1]
    assert rows[[0, 1, 2]].tolist() == [[1, 0], [0, 3.5], [0, 2]]


def test_a_run_longer_than_bf16_can_count() -> None:
    hidden = torch.arange(400, dtype=torch.float32)[:, None].expand(-1, 2).contiguous().bfloat16()
    absorbed = torch.arange(400) > 0
    rows, head = merge_runs(hidden, absorbed, torch.arange(400))
    assert (head == 0).all()
    torch.testing.assert_close(rows[0], hidden.float().mean(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 7, 33])
def test_a_run_is_the_mean_of_all_of_it(size: int) -> None:
    hidden = torch.randn(size, 5, generator=torch.Generator().manual_seed(size))
    rows, _ = merge_runs(hidden, torch.arange(size) > 0, torch.arange(size))
    torch.testing.assert_close(rows[0], hidden.double().mean(0).float(), atol=1e-6, rtol=0)


def test_zero_vectors_resemble_nothing() -> None:
    similarity, _ = similarity_to_predecessor(torch.zeros(3, 4), torch.arange(3), torch.zeros(3, dtype=torch.long))
    assert similarity.tolist() == [FIRST, 0, 0]


@pytest.mark.parametrize("retention", [0.25, 0.1])
def test_a_mean_below_one_full_layer_is_refused(retention: float, prompt: Prompt) -> None:
    with pytest.raises(MethodError, match=r"above 1/4 = 0\.25"):
        fused(prompt, FrameFusion(retention=retention))
    FrameFusion(retention=retention).check(28)


def test_black_video_stays_finite(tiny: Backbone) -> None:
    run, _, logits = fused(Prompt(tiny, np.zeros((8, 60, 80, 3), np.uint8)), FrameFusion(retention=0.4))
    assert not logits.isnan().any()
    assert run.visual_per_layer[-1] < len(run.layout)


@pytest.mark.parametrize(("printed", "asked"), [("31", 0.25), ("26", 0.20), ("21", 0.15), ("16", 0.10)])
def test_the_papers_percentages_are_fastvs_layer_means(printed: str, asked: float) -> None:
    """Table 1 gives FrameFusion 31, 26, 21 and 16 %: two full layers of 28, the others at FastV's share."""
    mean = (2 + 26 * asked) / 28
    assert abs(100 * mean - float(printed)) < 0.7
    shape = shape_named("llava-onevision-7b")
    cost = {
        name: paper_tflops(shape, visual_per_layer(28, 6272, method_schedule(name, retention, 6272)))
        for name, retention in (("fastv", asked), ("framefusion", mean))
    }
    # the same layer mean on one full layer and not two: fewer pairs, a little cheaper
    assert 0.96 < cost["framefusion"] / cost["fastv"] < 1


@pytest.mark.parametrize(("printed", "asked"), [("25.7", 0.2), ("16.4", 0.1)])
def test_the_papers_percentages_on_qwen2_vl_to_the_digit(printed: str, asked: float) -> None:
    assert f"{100 * (2 + 26 * asked) / 28:.1f}" == printed


def test_only_layers_that_it_looks_inside_run_in_two_steps(prompt: Prompt) -> None:
    """Nothing is similar here, so it prunes inside layer 0 and later layers run once, as they do untouched."""
    runs = [0] * 4

    def count(at: int) -> None:
        runs[at] += 1

    layers = prompt.model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(lambda *_, at=at: count(at)) for at, layer in enumerate(layers)]
    with FrameFusion(retention=0.5, similarity=1.0)(prompt.model), torch.no_grad():
        prompt.model(**prompt.inputs(), use_cache=True)
    for hook in hooks:
        hook.remove()
    assert runs == [2, 1, 1, 1]
