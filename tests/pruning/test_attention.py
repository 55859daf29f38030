"""Segment-masked attention against a dense mask, and its packing against a plain loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_demo.pruning.attention import Span, pack_segments, packed_segment_attention, segment_attention, varlen_kernel

SPANS = [
    Span(3, ((3, 7), (7, 8), (8, 15))),
    Span(3, ((3, 15),)),
    Span(0, ((0, 6), (6, 15))),
    Span(3, ((3, 7), (7, 15)), prefix_visible=False),
]


def dense_mask(span: Span, n: int) -> Tensor:
    """Eq. 4 written down cell by cell: True where query i may look at key j."""
    segment = [-1] * n
    for number, (a, b) in enumerate(span.segments):
        segment[a:b] = [number] * (b - a)
    visible = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(i + 1):
            both_visual = segment[i] >= 0 and segment[j] >= 0
            hidden_prefix = not span.prefix_visible and segment[i] >= 0 and segment[j] < 0
            visible[i, j] = not (both_visual and segment[i] != segment[j]) and not hidden_prefix
    return visible


def varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    """What a flash varlen kernel computes: per sequence, causal, aligned bottom-right."""
    out = torch.empty_like(q)
    for i in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        n, s = rows.stop - rows.start, keys.stop - keys.start
        assert n <= max_q
        assert s <= max_k
        mask = torch.ones(n, s, dtype=torch.bool).tril(int(s - n))
        part = (t[part].transpose(0, 1)[None] for t, part in ((q, rows), (k, keys), (v, keys)))
        out[rows] = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(
            0, 1
        )
    return out


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, heads, 19, 8, generator=generator) for heads in (4, 2, 2))


@pytest.mark.parametrize("span", SPANS)
def test_segment_attention_is_the_dense_mask(span: Span, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    mask = dense_mask(span, 19)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(segment_attention(q, k, v, span, 0.3), expected, atol=1e-6, rtol=0)
    packed = packed_segment_attention(q, k, v, pack_segments(span, 19), 0.3, varlen)
    torch.testing.assert_close(packed, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("end", [15, 19])
def test_packing_covers_every_query_once(end: int) -> None:
    packing = pack_segments(Span(3, ((3, 7), (7, end))), 19)
    assert packing.cu_q[-1] == 19
    assert packing.cu_k[-1] == len(packing.key_rows)
    assert packing.key_rows[3:10].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_no_varlen_kernel_without_cuda() -> None:
    assert varlen_kernel(torch.device("cpu"), torch.bfloat16, "sdpa") is None
    assert varlen_kernel(torch.device("cuda"), torch.float32, "sdpa") is None
