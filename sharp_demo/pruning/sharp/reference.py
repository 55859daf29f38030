"""ShaRP from top to bottom (Xia et al., arXiv 2512.05385), to be read and to test against: plain loops, no speed.

The product's ShaRP (`method.py`, `bias.py`, `regd.py`) keeps the same tokens and is quick; this file says what that
is. It has the default options only; docs/sharp.md lists what the paper leaves open and how it is read here.

Symbols: n rows of the prompt, N of them visual tokens, d features. A token is its number 0..N-1 in the video.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_demo.pruning.outcome import Role

TAU_SEG = 0.9  # cosine of frame means below which a segment ends (Eq. 3)
PENALTY = 0.6  # lambda, weight of the bias (Eq. 5)
TAU_FILTER = 0.7  # cosine to a register above which a token is pre-filtered
TAU_MERGE = 0.8  # cosine to the pivot above which a register is deduplicated
TAU_CLUSTER = 0.4  # cosine to its cluster's first token above which a token joins it
BETA = 0.008  # weight of the cluster size (Eq. 6)

Kept = dict[int, tuple[Role, Tensor]]  # token -> why it is kept, and the row [d] that goes on in its place
Cluster = tuple[float, int, Tensor]  # diversity, first token, mean row


@torch.no_grad()
def sharp(
    lm: nn.Module, prompt: Tensor, black: Tensor, positions: Tensor, visual: list[int], frames: list[int], share: float
) -> Kept:
    """Return the tokens that ShaRP keeps of one prompt before decoder layer 1.

    Parameters
    ----------
    lm : the text model, with `layers` and `rotary_emb`. prompt : [n, d] its input. black : [N, d] what a black video
    has in the visual rows. positions : [1, n], or [3, 1, n] with M-RoPE. visual : row of each token, ascending.
    frames : frame of each token, ascending. share : of the N tokens to keep.
    """
    # 1. SegM (Eq. 3): a segment ends where the mean of a frame differs from that of the frame before.
    segments = cut(prompt[visual], frames)

    # 2. SegM (Eq. 4): run layer 0; visual tokens of different segments do not see each other.
    states = run_layer_0(lm, prompt, positions, visual, segments)

    # 3. Score each visual token by the attention that the last row of the prompt pays it in layer 1.
    raw = last_row(lm, states, positions)[visual]

    # 4. PosC (Eq. 5): subtract what a black video, which is one segment, gets at the same place.
    dark = prompt.clone()
    dark[visual] = black
    bias = last_row(lm, run_layer_0(lm, dark, positions, visual, [list(range(len(visual)))]), positions)[visual]
    scores = raw - PENALTY * bias

    # 5. The K best tokens are the registers; of equal scores the earlier token wins.
    k = min(len(visual), max(1, round(share * len(visual))))
    registers = sorted(sorted(range(len(visual)), key=lambda token: (-float(scores[token]), token))[:k])

    # 6. RegD: replace registers that say the same by tokens that say something else; K stays K.
    return deduplicate(states[visual], segments, scores, registers)


def cut(tokens: Tensor, frames: list[int]) -> list[list[int]]:
    """The tokens [N, d] of each segment."""
    means = [tokens[[i for i, f in enumerate(frames) if f == frame]].float().mean(0) for frame in sorted(set(frames))]
    segments: list[list[int]] = [[]]
    for token, frame in enumerate(frames):
        begins = token > 0 and frame != frames[token - 1]
        if begins and cosine(means[frame - 1], means[frame]) < TAU_SEG:
            segments.append([])
        segments[-1].append(token)
    return segments


def run_layer_0(lm: nn.Module, rows: Tensor, positions: Tensor, visual: list[int], segments: list[list[int]]) -> Tensor:
    """The states [n, d] that layer 0 leaves under the causal, segment-aware mask."""
    sees = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    for one in segments:
        for other in segments:
            if one is not other:
                sees[[[visual[token]] for token in one], [visual[token] for token in other]] = False
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    rotary = lm.rotary_emb(rows[None], positions)
    return lm.layers[0](rows[None], attention_mask=mask[None, None], position_embeddings=rotary)[0]


def last_row(lm: nn.Module, states: Tensor, positions: Tensor) -> Tensor:
    """Attention [n] that the last row pays every row in layer 1, averaged over heads."""
    layer = lm.layers[1]
    normed, attention = layer.input_layernorm(states), layer.self_attn
    cos, sin = (part[0] for part in lm.rotary_emb(states[None], positions))
    width = attention.head_dim
    queries = attention.q_proj(normed[-1:]).view(1, -1, width)
    keys = attention.k_proj(normed).view(len(states), -1, width)
    total, heads = torch.zeros(len(states)), queries.shape[1]
    for head in range(heads):
        query = rotate(queries[:, head], cos[-1:], sin[-1:])[0].float()
        key = rotate(keys[:, head * keys.shape[1] // heads], cos, sin).float()  # heads share keys (GQA)
        total += (key @ query / width**0.5).softmax(0)
    return total / heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x [rows, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def deduplicate(states: Tensor, segments: list[list[int]], scores: Tensor, registers: list[int]) -> Kept:
    """RegD, segment by segment: exactly as many of the tokens with states [N, d] as there are registers."""
    rows, kept, spare = states.float(), Kept(), list[Cluster]()
    for segment in segments:
        inside = [token for token in segment if token in registers]
        if not inside:
            continue

        # 6a. Pre-filter: tokens that resemble a register of their segment are not candidates.
        others = [token for token in segment if token not in inside]
        pool = [t for t in others if max(cosine(rows[t], rows[r]) for r in inside) <= TAU_FILTER]

        # 6b. Deduplicate: a register that resembles the pivot before it is averaged into that pivot.
        pivots = []
        for group in runs(rows, inside, TAU_MERGE):
            pivots.append(rows[group].mean(0))
            kept[group[0]] = (Role.MERGED if len(group) > 1 else Role.REGISTER, pivots[-1])

        # 6c. Cluster the pool in order; a cluster is worth how little it resembles the pivots, and its size (Eq. 6).
        clusters: list[Cluster] = []
        for group in runs(rows, pool, TAU_CLUSTER):
            mean = rows[group].mean(0)
            likeness = sum(cosine(mean, pivot) for pivot in pivots) / len(pivots)
            clusters.append((1 - likeness + BETA * len(group), group[0], mean))

        # 6d. Fill the places that came free in this segment with the most diverse clusters.
        clusters.sort(key=lambda cluster: (-cluster[0], cluster[1]))
        free = len(inside) - len(pivots)
        kept |= {token: (Role.FILLED, mean) for _, token, mean in clusters[:free]}
        spare += clusters[free:]

    # 6e. Places that no cluster of the segment could fill go to the most diverse ones of all segments, ...
    spare.sort(key=lambda cluster: (-cluster[0], cluster[1]))
    kept |= {token: (Role.FILLED, mean) for _, token, mean in spare[: len(registers) - len(kept)]}

    # ... and then to the best scores: exactly K tokens stay.
    rest = sorted(set(range(len(rows))) - kept.keys(), key=lambda token: (-float(scores[token]), token))
    kept |= {token: (Role.FILLED, rows[token]) for token in rest[: len(registers) - len(kept)]}
    return dict(sorted(kept.items()))


def runs(rows: Tensor, tokens: list[int], tau: float) -> list[list[int]]:
    """Group tokens in order: each joins the current run where its cosine to the run's first token exceeds tau."""
    groups: list[list[int]] = []
    for token in tokens:
        if groups and cosine(rows[token], rows[groups[-1][0]]) > tau:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors [d]."""
    return float(F.cosine_similarity(one, other, dim=0, eps=1e-12))
