"""FlashVID against loops over tokens on random features and states of the embedded models, and toys by hand."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
import torch
from torch import Tensor

from sharp_demo.backbones.load import Backbone
from sharp_demo.cost import paper_tflops, shape_named
from sharp_demo.pruning.flashvid import FlashVID, attended_and_diverse, clustered, flashvid_layer, parents, tree_means
from sharp_demo.pruning.outcome import Role, Run, Selection
from tests.pruning.prompts import Prompt, frames_of, greedy, random_rows, scenes, with_frames
from tests.pruning.test_holitom import naive_peaks


def test_picks_by_hand() -> None:
    """Directions at 0, 90, 100 degrees and at 180: by distance alone 0 and 180; weight makes 100 the second."""
    angles = torch.tensor([0.0, 90, 100, 180]).deg2rad()
    frame = torch.stack((angles.cos(), angles.sin()), 1)[None]
    assert attended_and_diverse(frame, torch.tensor([[1.0, 1, 1, 1]]), 2).tolist() == [[0, 3]]
    assert attended_and_diverse(frame, torch.tensor([[2.0, 1, 3, 1]]), 2).tolist() == [[0, 2]]
    assert attended_and_diverse(torch.ones(1, 4, 3), torch.ones(1, 4), 3).tolist() == [[0, 1, 2]]


def test_parents_by_hand() -> None:
    """The most similar token anywhere in the frame before, if it is free and similar enough."""
    x, y, z = torch.eye(3)
    frames = torch.stack((torch.stack((x, y, z)), torch.stack((y, x + 0.1 * y, z)), torch.stack((z, z, x + y))))
    free = torch.ones(3, 3, dtype=torch.bool)
    assert parents(frames, free, 0.8, 0).tolist() == [[-1] * 3, [1, 0, 2], [2, 2, -1]]
    free[1, 2] = False  # picked: no parent, and nobody's
    assert parents(frames, free, 0.8, 0).tolist() == [[-1] * 3, [1, 0, -1], [-1] * 3]
    # At most one may merge: above the highest cosine there is none, so the strict threshold lets none pass.
    assert parents(frames, free, 0.8, 8).tolist() == [[-1] * 3] * 3
    assert parents(frames, free, 0.8, 9).tolist() == [[-1] * 3] * 3
    assert parents(frames, free, 0.8, 7).tolist() == [[-1] * 3, [1, 0, -1], [-1] * 3]


def test_a_tree_is_the_mean_of_its_tokens() -> None:
    """A chain of three and a token with two children: sizes count, not children."""
    frames = torch.tensor([[[1.0], [10]], [[2], [3]], [[6], [8]]])
    parent = torch.tensor([[-1, -1], [0, -1], [0, 0]])
    means, root = tree_means(frames, parent)
    assert means[0].flatten().tolist() == [(1 + 2 + 6 + 8) / 4, 10]
    assert float(means[1, 1]) == 3
    assert root.tolist() == [[0, 1], [0, 3], [0, 0]]
    equal, _ = tree_means(torch.full((4, 1, 2), 7.0), torch.tensor([[-1], [0], [0], [0]]))
    assert equal[0].tolist() == [[7, 7]]


def test_clusters_are_plain_means() -> None:
    blobs = torch.tensor([[0.0, 0], [0, 1], [9, 0], [9, 1], [9, 2]])
    centers, means, nearest = clustered(blobs, 2, torch.Generator().manual_seed(0))
    assert [int(c) // 2 > 0 for c in centers] == [False, True]
    assert means.tolist() == [[0, 0.5], [9, 1]]
    assert nearest.tolist() == [0, 0, 1, 1, 1]


def test_retention_is_the_mean_over_layers() -> None:
    shape = shape_named("llava-onevision-7b")
    counts = FlashVID(retention=0.2).visual_per_layer(28, 6272, 32)
    assert counts == [32 * 49] * 20 + [ceil(0.3 * 32 * 49)] * 8
    assert sum(counts) / 28 / 6272 == pytest.approx(0.2, abs=2e-4)
    assert paper_tflops(shape, counts) < 9
    assert [flashvid_layer(layers) for layers in (28, 4, 24)] == [20, 3, 17]
    assert FlashVID(retention=0.2, inner=1.0).visual_per_layer(28, 6272, 32) == [32 * 49] * 28


def naive_picks(frame: Tensor, weight: list[float], count: int) -> list[int]:
    size = len(frame)
    apart = [[max(0.0, 1 - float(torch.cosine_similarity(u, v, dim=0))) for v in frame] for u in frame]
    order: list[int] = []
    for _ in range(count):
        merit = {
            j: min(weight[j] * apart[i][j] for i in (order or range(size)) if i != j)
            for j in range(size)
            if j not in order
        }
        order.append(max(merit, key=lambda j: (merit[j], -j)))
    return order


def naive(
    tokens: Tensor, received: Tensor, method: FlashVID
) -> tuple[dict[int, Tensor], dict[int, Role], dict[int, int]]:
    """Rows by kept slot, their roles, and where every other token that was merged went."""
    count, size = tokens.shape[:2]
    budget = min(size, ceil(method.retention * method.expansion * size - 1e-9))
    picks = ceil(method.alpha * budget - 1e-9)
    rows: dict[int, Tensor] = {}
    roles: dict[int, Role] = {}
    into: dict[int, int] = {}
    means = tokens.mean(1)
    cosine = [float(torch.cosine_similarity(means[i], means[i + 1], dim=0)) for i in range(count - 1)]
    cuts = {i for i in range(count - 1) if cosine[i] < method.segment_tau}
    for i in sorted(range(count - 1), key=lambda i: (cosine[i], i)):
        if len(cuts) + 1 < method.segments:
            cuts.add(i)
    edges = [0, *(i + 1 for i in sorted(cuts)), count]
    generator = torch.Generator().manual_seed(method.seed)
    for first, end in pairwise(edges):
        free = {}
        for frame in range(first, end):
            middle = means[first:end].mean(0)
            weight = [float(received[frame, i]) * float(tokens[frame, i] @ middle) for i in range(size)]
            picked = naive_picks(tokens[frame], weight, picks)
            free[frame] = [i for i in range(size) if i not in picked]
            for i in picked:
                rows[frame * size + i], roles[frame * size + i] = tokens[frame, i], Role.DOMINANT
        if budget == picks:
            continue
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for frame in range(first + 1, end):
            for i in free[frame]:
                before, token = free[frame - 1], tokens[frame, i]
                alike = {j: float(torch.cosine_similarity(token, tokens[frame - 1, j], dim=0)) for j in before}
                j = max(alike, key=lambda j: (alike[j], -j))
                best[frame, i] = (alike[j], j)
        merges = {token: j for token, (value, j) in best.items() if value > method.merge_tau}
        most = (size - budget) * (end - first)
        if len(merges) > most:
            soft = sorted((value for value, _ in best.values()), reverse=True)[most - 1] if most else 2.0
            merges = {token: j for token, (value, j) in best.items() if value > soft}
        trees: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for frame in range(first, end):
            for i in free[frame]:
                root = (frame, i)
                while root in merges:
                    root = (root[0] - 1, merges[root])
                trees.setdefault(root, []).append((frame, i))
        share = (budget - picks) * (end - first) / len(trees)
        for frame in range(first, end):
            own = [root for root in sorted(trees) if root[0] == frame]
            averaged = [torch.stack([tokens[at] for at in trees[root]]).mean(0) for root in own]
            groups = [[place] for place in range(len(own))]
            heads = list(range(len(own)))
            if share < 1 and own:
                clusters = ceil(share * len(own) - 1e-9)
                heads, apart = naive_peaks(torch.stack(averaged), clusters, min(7, clusters), generator)
                groups = [[head] for head in heads]
                for place in range(len(own)):
                    if place not in heads:
                        distances = [float(apart[place, head]) for head in heads]
                        groups[distances.index(min(distances))].append(place)
            for head, group in zip(heads, groups, strict=True):
                slot = frame * size + own[head][1]
                rows[slot] = torch.stack([averaged[place] for place in group]).mean(0)
                roles[slot] = Role.CONTEXTUAL
                for place in group:
                    into.update({f * size + i: slot for f, i in trees[own[place]]})
    return rows, roles, {slot: to for slot, to in into.items() if slot != to}


def run(prompt: Prompt, method: FlashVID, frames: Tensor | None = None) -> tuple[Run, Selection]:
    chosen: list[Selection] = []
    original = FlashVID._outer

    def noted(self: FlashVID, prefill: object) -> Selection:
        chosen.append(original(self, prefill))  # type: ignore[arg-type]
        return chosen[-1]

    with pytest.MonkeyPatch.context() as patch, with_frames(prompt, frames_of(prompt) if frames is None else frames):
        patch.setattr(FlashVID, "_outer", noted)
        with method(prompt.model) as record:
            greedy(prompt, steps=1)
    return record, chosen[0]


def agree(prompt: Prompt, method: FlashVID, frames: Tensor | None = None) -> None:
    record, selection = run(prompt, method, frames)
    tokens = frames_of(prompt) if frames is None else frames
    received = prompt.features.signals.received.view(tokens.shape[:2])  # type: ignore[union-attr]
    rows, roles, into = naive(tokens, received, method)
    kept = sorted(rows)
    assert selection.kept.tolist() == kept
    assert selection.role.tolist() == [int(roles[slot]) for slot in kept]  # type: ignore[union-attr]
    torch.testing.assert_close(selection.hidden, torch.stack([rows[slot] for slot in kept]), atol=2e-5, rtol=1e-4)
    assert {slot: int(to) for slot, to in enumerate(selection.merged_into) if to >= 0} == into  # type: ignore[arg-type]
    layers = len(prompt.model.model.language_model.layers)
    at = flashvid_layer(layers)
    inner = ceil(0.3 * len(kept) - 1e-9) if method.inner < 1 else len(kept)
    assert record.visual_per_layer == [len(kept)] * at + [inner] * (layers - at)


OPTIONS = [
    {},
    {"segments": 2, "segment_tau": 0.1, "merge_tau": 0.3},
    {"alpha": 0.0, "segments": 3},
    {"alpha": 1.0, "inner": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("retention", [0.05, 0.3, 0.7])
def test_equals_loops(tiny: Backbone, retention: float, options: dict) -> None:
    prompt = Prompt(tiny, scenes(10))
    layout = prompt.layout
    d = prompt.features.features.shape[1]
    random = random_rows(len(layout), d).view(layout.frames, -1, d) + 1.5 * random_rows(layout.rows * layout.cols, d, 5)
    for frames in (None, random):
        agree(prompt, FlashVID(retention=retention, **options), frames)


def test_on_states_of_the_embedded_models(world: Prompt) -> None:
    agree(world, FlashVID(retention=0.1))


def test_equal_frames_leave_every_row_as_it_is(tiny: Backbone) -> None:
    """Trees of equal rows are the row, whatever their size."""
    prompt = Prompt(tiny)
    size, count = prompt.layout.rows * prompt.layout.cols, prompt.layout.frames
    still = random_rows(size, prompt.features.features.shape[1])[None].expand(count, -1, -1).clone()
    _, selection = run(prompt, FlashVID(retention=0.4, alpha=0.0, segments=1), still)
    whole = FlashVID(retention=0.4, alpha=0.0, segments=1).budgets(size)[0] * count
    assert len(selection.kept) >= whole - count
    assert (selection.merged_into >= 0).any()  # type: ignore[operator]
    means = selection.hidden
    assert means is not None
    rows = still[0]
    closest = torch.cdist(means, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(closest[selection.kept < size].median()) < 1e-5


def test_the_same_seed_gives_the_same_tokens(tiny: Backbone) -> None:
    prompt = Prompt(tiny)
    one, other = (run(prompt, FlashVID(retention=0.3, seed=3))[0].kept.tolist() for _ in range(2))
    assert one == other
    assert len(set(one)) == len(one)
