"""FastVID against loops over tokens on random features and states of the embedded models, and toys by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.fastvid import FastVID, anchors, blend
from sharp_demo.pruning.frames import cut_at_dips
from sharp_demo.pruning.outcome import Role, Run, Selection
from sharp_demo.pruning.schedule import floor_share
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, scenes, with_frames
from tests.pruning.test_holitom import naive_peaks


def test_anchors_by_hand() -> None:
    assert anchors(0, 1, 4) == [0]
    assert anchors(3, 9, 4) == [4, 8]
    assert anchors(0, 9, 4) == [0, 4, 8]


def test_cuts_by_hand() -> None:
    """Frame means at these angles: cosines .99, .5, .99, .98; the cut below .9, then the lowest of the others."""
    angles = torch.tensor([0.0, 8, 68, 76, 87]).deg2rad()
    frames = torch.stack((angles.cos(), angles.sin()), 1)[:, None].expand(-1, 3, -1)
    assert cut_at_dips(frames, 0.9, 1) == [(0, 2), (2, 5)]
    assert cut_at_dips(frames, 0.9, 3) == [(0, 2), (2, 4), (4, 5)]
    assert cut_at_dips(frames, 0.999, 1) == cut_at_dips(frames, 0.9, 99) == [(at, at + 1) for at in range(5)]
    assert cut_at_dips(frames[:1], 0.9, 8) == [(0, 1)]
    assert cut_at_dips(frames[:1].expand(4, -1, -1), 0.9, 2) == [(0, 1), (1, 4)]  # ties: the earlier


def test_blend_by_hand() -> None:
    """Target 0 has itself and row 1, target 3 itself and row 2 and 4."""
    pool = torch.tensor([[2.0, 0], [4, 0], [0, 3], [0, 6], [0, 9]])
    rows, nearest = blend(pool, torch.tensor([0, 3]), 0.0)
    assert nearest.tolist() == [0, 0, 1, 1, 1]
    third, quarter = 1 / 3, 1 / 4
    assert rows.flatten().tolist() == pytest.approx([third * 2 + 2 * third * 3, 0, 0, quarter * 6 + 3 * quarter * 6])
    heavy, _ = blend(pool, torch.tensor([0, 3]), 0.6)
    assert heavy.flatten().tolist() == pytest.approx([0.6 * 2 + 0.4 * 3, 0, 0, 6])
    alone, _ = blend(torch.eye(3), torch.arange(3), 0.6)
    assert torch.equal(alone, torch.eye(3))
    assert blend(torch.ones(3, 2), torch.tensor([0, 2]), 0.6)[1].tolist() == [0, 0, 1]  # a target keeps itself


def naive(
    tokens: Tensor, received: Tensor, method: FastVID
) -> tuple[dict[int, Tensor], dict[int, Role], dict[int, int]]:
    """Rows by kept slot, their roles, and where every other token that was blended is said to have gone."""
    count, size = tokens.shape[:2]
    k = max(1, int(method.retention * size + 1e-9))
    context = int(k * method.context + 1e-9)
    generator = torch.Generator().manual_seed(method.seed)
    rows: dict[int, Tensor] = {}
    roles: dict[int, Role] = {}
    into: dict[int, int] = {}
    rest: list[list[int]] = []
    for frame in range(count):
        order = sorted(range(size), key=lambda i, f=frame: (-float(received[f, i]), i))  # type: ignore[misc]
        for i in order[: k - context]:
            rows[frame * size + i], roles[frame * size + i] = tokens[frame, i], Role.DOMINANT
        rest.append(sorted(order[k - context :]))
    means = tokens.mean(1)
    cosine = [float(torch.cosine_similarity(means[i], means[i + 1], dim=0)) for i in range(count - 1)]
    lowest = sorted(range(count - 1), key=lambda i: (cosine[i], i))[: method.segments - 1]
    cuts = sorted({*lowest, *(i for i in range(count - 1) if cosine[i] < method.tau)})
    edges = [0, *(i + 1 for i in cuts), count]
    for first, end in pairwise(edges):
        chosen = [frame for frame in range(first, end) if (end - 1 - frame) % method.anchor_step == 0]
        targets = min(context * (end - first) // len(chosen), len(rest[first]))
        pool = [(frame, i) for frame in range(first, end) for i in rest[frame]]
        for anchor in chosen if targets else []:
            own = torch.stack([tokens[anchor, i] for i in rest[anchor]])
            centres = [rest[anchor][c] for c in naive_peaks(own, targets, 4, generator)[0]]
            members: dict[int, list[Tensor]] = {c: [tokens[anchor, c]] for c in centres}
            for frame, i in pool:
                if (frame, i) in [(anchor, c) for c in centres]:
                    continue
                alike = [float(torch.cosine_similarity(tokens[frame, i], tokens[anchor, c], dim=0)) for c in centres]
                best = centres[alike.index(max(alike))]
                members[best].append(tokens[frame, i])
                if frame <= anchor:
                    into.setdefault(frame * size + i, anchor * size + best)
            for c, group in members.items():
                weight = max(1 / (len(group) + 1), method.beta)
                rows[anchor * size + c] = weight * tokens[anchor, c] + (1 - weight) * torch.stack(group).mean(0)
                roles[anchor * size + c] = Role.CONTEXTUAL
    return rows, roles, {slot: target for slot, target in into.items() if slot not in rows}


def run(prompt: Prompt, method: FastVID, frames: Tensor | None = None) -> tuple[Run, Selection]:
    chosen: list[Selection] = []
    original = FastVID._select

    def noted(self: FastVID, prefill: object) -> Selection:
        chosen.append(original(self, prefill))  # type: ignore[arg-type]
        return chosen[-1]

    with pytest.MonkeyPatch.context() as patch, with_frames(prompt, frames_of(prompt) if frames is None else frames):
        patch.setattr(FastVID, "_select", noted)
        with method(prompt.model) as record:
            greedy(prompt, steps=1)
    return record, chosen[0]


def agree(prompt: Prompt, method: FastVID, frames: Tensor | None = None) -> Run:
    record, selection = run(prompt, method, frames)
    tokens = frames_of(prompt) if frames is None else frames
    received = prompt.features.signals.received.view(tokens.shape[:2])  # type: ignore[union-attr]
    rows, roles, into = naive(tokens, received, method)
    assert record.kept.tolist() == sorted(rows)
    assert record.role.tolist() == [int(roles[slot]) for slot in sorted(rows)]
    expected = torch.stack([rows[slot] for slot in sorted(rows)])
    torch.testing.assert_close(selection.hidden, expected, atol=1e-5, rtol=1e-4)
    assert {slot: int(to) for slot, to in enumerate(record.merged_into) if to >= 0} == into
    return record


@pytest.mark.parametrize("retention", [0.05, 0.35, 0.7, 0.97])
@pytest.mark.parametrize("options", [{}, {"segments": 2, "tau": 0.2}, {"context": 1.0, "segments": 3, "beta": 0.0}])
def test_equals_loops(tiny: Backbone, retention: float, options: dict) -> None:
    prompt = Prompt(tiny, scenes(10))
    layout = prompt.layout
    d = prompt.features.features.shape[1]
    random = random_rows(len(layout), d).view(layout.frames, -1, d) + 0.5 * random_rows(1, d, 5)
    for frames in (None, random):
        record = agree(prompt, FastVID(retention=retention, **options), frames)
        size = layout.rows * layout.cols
        assert len(record.kept) <= layout.frames * max(1, floor_share(retention, size))


def test_on_states_of_the_embedded_models(world: Prompt) -> None:
    agree(world, FastVID(retention=0.1))
    agree(world, FastVID(retention=0.15, segments=4, tau=0.5))


def test_an_average_of_equal_rows_is_the_row(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    size, count = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    still = random_rows(size, prompt.features.features.shape[1])[None].expand(count, -1, -1)
    _, selection = run(prompt, FastVID(retention=0.6, segments=1, beta=0.0), still)
    original = still.flatten(0, 1)[selection.kept]
    alone = F.cosine_similarity(selection.hidden, original)
    assert float(alone.min()) < 1 - 1e-3  # others were blended in
    everything = FastVID(retention=1 - 1e-9, segments=1, beta=0.0)
    record, selection = run(prompt, everything, torch.ones_like(still))
    torch.testing.assert_close(selection.hidden, torch.ones_like(selection.hidden))
    assert len(record.kept) <= len(prompt.layout)


def test_the_seed_decides_ties(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    kept = [run(prompt, FastVID(retention=0.4, seed=seed))[0].kept.tolist() for seed in (1, 1)]
    assert kept[0] == kept[1]


def test_positions_stay_unless_asked(tiny_llava: Backbone) -> None:
    prompt, logits = Prompt(tiny_llava), []
    for reindex in (False, True):
        with FastVID(retention=0.3, reindex_positions=reindex)(prompt.model):
            logits.append(greedy(prompt, steps=1)[1])
    assert not torch.equal(*logits)
