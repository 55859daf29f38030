"""Attention pieces that pruning needs and the model does not hand out.

The last query's row over the keys (no n x n map, whatever the attention backend), and the segment-masked
attention of ShaRP's SegM without an n x n mask.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb, rotate_half

Rotary = tuple[Tensor, Tensor]  # cos, sin, each [B, n, head_dim]


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate queries or keys.

    Parameters
    ----------
    x : [B, heads, n, head_dim].
    rotary : cos and sin of the same n rows, each [B, n, head_dim].
    """
    cos, sin = (part.unsqueeze(1) for part in rotary)
    return x * cos + rotate_half(x) * sin


def project_keys(self_attn: nn.Module, x: Tensor, rotary: Rotary | None) -> Tensor:
    """Return the keys [B, kv_heads, n, head_dim] of normed inputs x [B, n, d]; `rotary=None` leaves RoPE out."""
    keys = self_attn.k_proj(x).view(*x.shape[:2], -1, self_attn.head_dim).transpose(1, 2)
    return keys if rotary is None else rotate(keys, rotary)


def last_query_logits(self_attn: nn.Module, x_last: Tensor, rotary_last: Rotary | None, keys: Tensor) -> Tensor:
    """Scaled dot products of one query with all keys, in fp32.

    Parameters
    ----------
    self_attn : a decoder layer's attention module (its q_proj, head_dim and scaling are used).
    x_last : [B, 1, d], the layer's normed input of the last token.
    rotary_last : cos and sin of that token, each [B, 1, head_dim]; None leaves RoPE out (Feather).
    keys : [B, kv_heads, n, head_dim], rotated the same way.

    Returns
    -------
    [B, heads, n] pre-softmax logits, fp32 (bf16 scores tie often at thousands of tokens).
    """
    batch, kv_heads = keys.shape[:2]
    query = self_attn.q_proj(x_last).view(batch, 1, -1, self_attn.head_dim).transpose(1, 2)  # [B, heads, 1, hd]
    if rotary_last is not None:
        query = rotate(query, rotary_last)
    grouped = query.float().view(batch, kv_heads, -1, self_attn.head_dim)  # GQA: query heads of one kv head
    return ((grouped @ keys.float().transpose(-1, -2)) * self_attn.scaling).flatten(1, 2)


@dataclass(frozen=True)
class Span:
    """Contiguous rows of one prompt: text prefix [0, start), visual segments, text suffix [end, n)."""

    start: int
    segments: tuple[tuple[int, int], ...]  # absolute [a, b) rows, contiguous, first a == start
    prefix_visible: bool = True  # may visual tokens look at the text before the video?

    @property
    def end(self) -> int:
        return self.segments[-1][1]


def segment_attention(q: Tensor, k: Tensor, v: Tensor, span: Span, scaling: float) -> Tensor:
    """Segment-aware causal attention (ShaRP Sec. 4.1, Eq. 4), one square causal SDPA per segment.

    Visual tokens see the text prefix (unless `span.prefix_visible` is False) and, causally, their own segment;
    text sees everything before it.

    Parameters
    ----------
    q : [B, heads, n, head_dim]; k, v : [B, kv_heads, n, head_dim].

    Returns
    -------
    [B, heads, n, head_dim].
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, **mask: bool | Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **mask)

    out = torch.empty_like(q)
    if span.start:
        rows = slice(0, span.start)
        out[:, :, rows] = attend(q[:, :, rows], k[:, :, rows], v[:, :, rows], is_causal=True)
    seen = span.start if span.prefix_visible else 0
    for a, b in span.segments:
        # The few prefix queries are computed again so that the causal square stays a square.
        query, key, value = (torch.cat((t[:, :, :seen], t[:, :, a:b]), 2) if seen else t[:, :, a:b] for t in (q, k, v))
        out[:, :, a:b] = attend(query, key, value, is_causal=True)[:, :, seen:]
    suffix = q.shape[2] - span.end
    if suffix:
        mask = torch.ones(suffix, q.shape[2], dtype=torch.bool, device=q.device).tril(span.end)
        out[:, :, span.end :] = attend(q[:, :, span.end :], k, v, attn_mask=mask)
    return out


@dataclass(frozen=True)
class Packing:
    """The same mask as one variable-length call: queries in place, keys gathered sequence by sequence.

    With bottom-right causal alignment, query j of a sequence with q queries and s keys sees s - q + j + 1 keys.
    """

    key_rows: tuple[int, ...]
    cu_q: tuple[int, ...]
    cu_k: tuple[int, ...]
    max_q: int
    max_k: int


def pack_segments(span: Span, n: int) -> Packing:
    """Lay `span` out for a varlen kernel; n is the number of rows of the prompt."""
    prefix = list(range(span.start)) if span.prefix_visible else []
    sequences: list[tuple[int, list[int]]] = [(span.start, list(range(span.start)))] if span.start else []
    sequences += [(b - a, [*prefix, *range(a, b)]) for a, b in span.segments]
    if n > span.end:
        sequences.append((n - span.end, list(range(n))))
    cu_q, cu_k = [0], [0]
    for queries, keys in sequences:
        cu_q.append(cu_q[-1] + queries)
        cu_k.append(cu_k[-1] + len(keys))
    return Packing(
        key_rows=tuple(row for _, keys in sequences for row in keys),
        cu_q=tuple(cu_q),
        cu_k=tuple(cu_k),
        max_q=max(queries for queries, _ in sequences),
        max_k=max(len(keys) for _, keys in sequences),
    )


VarlenKernel = Callable[
    ..., Tensor
]  # (q, k, v [rows, heads, hd], cu_q, cu_k, max_q, max_k, scale) -> [rows_q, heads, hd]


def packed_segment_attention(
    q: Tensor, k: Tensor, v: Tensor, span: Span, scaling: float, kernel: VarlenKernel
) -> Tensor:
    """`segment_attention` as one varlen call of `kernel` (bottom-right causal); shapes as there, batch 1."""
    packing = pack_segments(span, q.shape[2])
    rows = torch.tensor(packing.key_rows, device=q.device)
    cu_q, cu_k = (torch.tensor(cu, dtype=torch.int32, device=q.device) for cu in (packing.cu_q, packing.cu_k))
    query = q[0].transpose(0, 1).contiguous()  # [n, heads, hd]
    key, value = (t[0].transpose(0, 1)[rows] for t in (k, v))
    out = kernel(query, key, value, cu_q, cu_k, packing.max_q, packing.max_k, scaling)
    return out.transpose(0, 1).unsqueeze(0)


def varlen_kernel(device: torch.device, dtype: torch.dtype) -> VarlenKernel | None:
    """Return the varlen kernel this machine can run (flash-attn, else torch's own), or None."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        def flash(q, k, v, cu_q, cu_k, max_q, max_k, scale):  # type: ignore[no-untyped-def]
            return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True)

        return flash
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        if "window_size" not in inspect.signature(varlen_attn).parameters:  # older releases align causal masks top-left
            return None

        def native(q, k, v, cu_q, cu_k, max_q, max_k, scale):  # type: ignore[no-untyped-def]
            # varlen_attn groups kv heads only in recent releases; repeating them is right in all.
            groups = q.shape[1] // k.shape[1]
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
            return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=(-1, 0))

        return native
    return None


def segment_masked(self_attn: nn.Module, x: Tensor, rotary: Rotary, cache: Cache | None, span: Span) -> Tensor:
    """Run one attention module with the segment mask in place of the causal one.

    Parameters
    ----------
    x : [B, n, d], the layer's normed input.
    cache : the prefill's cache, updated as the module itself would.

    Returns
    -------
    [B, n, d], the module's output.
    """
    shape = (*x.shape[:2], -1, self_attn.head_dim)
    q, k, v = (proj(x).view(shape).transpose(1, 2) for proj in (self_attn.q_proj, self_attn.k_proj, self_attn.v_proj))
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    if cache is not None:
        k, v = cache.update(k, v, self_attn.layer_idx)
    kernel = varlen_kernel(x.device, x.dtype) if x.shape[0] == 1 else None
    if kernel is None:
        out = segment_attention(q, k, v, span, self_attn.scaling)
    else:
        out = packed_segment_attention(q, k, v, span, self_attn.scaling, kernel)
    return self_attn.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))
