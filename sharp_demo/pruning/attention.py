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
from transformers.utils import is_flash_attn_2_available

Rotary = tuple[Tensor, Tensor]  # cos, sin, each [B, n, head_dim]


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate queries or keys.

    Parameters
    ----------
    x : [B, heads, n, head_dim].
    rotary : cos and sin of the same n rows, each [B, n, head_dim].
    """
    cos, sin = (part.unsqueeze(1) for part in rotary)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


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
    """Rows of one prompt: text prefix [0, start), visual segments, text suffix [end, n).

    Text between frames stands in `text`. Like the prefix it sees all that precedes it, and is seen by all that follows.
    """

    start: int
    segments: tuple[tuple[int, int], ...]  # absolute [a, b) rows, ascending, first a == start
    prefix_visible: bool = True  # may visual tokens look at the text before them?
    text: tuple[int, ...] = ()  # absolute rows in [start, end) that are text, within segments or between them

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
    if span.text:
        return _interleaved(attend, q, k, v, span)
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


def _interleaved(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """`segment_attention` where text stands in the video: one square per segment, one masked call for all text."""

    def rows_of(values: list[int]) -> Tensor:
        return to_device(values, torch.long, q.device)

    out, n, text = torch.empty_like(q), q.shape[2], set(span.text)
    for a, b in span.segments:
        visual = [row for row in range(a, b) if row not in text]
        before = [*range(span.start), *(row for row in span.text if row < visual[-1])] if span.prefix_visible else []
        rows = sorted(visual + before)
        query, key, value = (t.index_select(2, rows_of(rows)) for t in (q, k, v))
        place = {row: number for number, row in enumerate(rows)}
        own = rows_of([place[row] for row in visual])
        out[:, :, rows_of(visual)] = attend(query, key, value, is_causal=True).index_select(2, own)
    rest = rows_of([*range(span.start), *span.text, *range(span.end, n)])
    mask = torch.arange(n, device=q.device) <= rest[:, None]
    out[:, :, rest] = attend(q.index_select(2, rest), k, v, attn_mask=mask)
    return out


@dataclass(frozen=True, eq=False)
class Packing:
    """The same mask as one variable-length call: queries in place, keys gathered sequence by sequence.

    With bottom-right causal alignment, query j of a sequence with q queries and s keys sees s - q + j + 1 keys.
    """

    key_rows: Tensor  # [keys] row of each gathered key
    cu_q: Tensor  # [sequences + 1] int32
    cu_k: Tensor
    max_q: int
    max_k: int


def pack_segments(span: Span, n: int, device: torch.device | str = "cpu") -> Packing:
    """Lay `span` out on `device` for a varlen kernel, without waiting for it; n is the number of rows of the prompt."""
    prefix = span.start if span.prefix_visible else 0
    # Each sequence: number of queries, keys of the prefix it sees, its other keys as [a, b) rows.
    sequences = [(span.start, 0, 0, span.start)] if span.start else []
    sequences += [(b - a, prefix, a, b) for a, b in span.segments]
    if n > span.end:
        sequences.append((n - span.end, 0, 0, n))
    cu_q, cu_k = [0], [0]
    for queries, seen, a, b in sequences:
        cu_q.append(cu_q[-1] + queries)
        cu_k.append(cu_k[-1] + seen + b - a)
    table = [cu_k[:-1], [seen for _, seen, _, _ in sequences], [a - seen for _, seen, a, _ in sequences]]
    first, seen_keys, shift = to_device(table, torch.long, device)
    key = torch.arange(cu_k[-1], device=device)
    sequence = torch.searchsorted(first, key, right=True) - 1
    place = key - first[sequence]  # within the sequence
    counts = to_device([cu_q, cu_k], torch.int32, device)
    return Packing(
        key_rows=torch.where(place < seen_keys[sequence], place, place + shift[sequence]),
        cu_q=counts[0],
        cu_k=counts[1],
        max_q=max(queries for queries, _, _, _ in sequences),
        max_k=max(seen + b - a for _, seen, a, b in sequences),
    )


def to_device(values: list[int] | list[list[int]], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Copy through pinned memory, which CUDA needs not wait for."""
    pinned = torch.device(device).type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=pinned)


VarlenKernel = Callable[
    ..., Tensor
]  # (q, k, v [rows, heads, hd], cu_q, cu_k, max_q, max_k, scale) -> [rows_q, heads, hd]


def packed_segment_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float, kernel: VarlenKernel
) -> Tensor:
    """`segment_attention` as one varlen call of `kernel` (bottom-right causal); shapes as there, batch 1."""
    query = q[0].transpose(0, 1).contiguous()  # [n, heads, hd]
    key, value = (t[0].transpose(0, 1)[packing.key_rows] for t in (k, v))
    out = kernel(query, key, value, packing.cu_q, packing.cu_k, packing.max_q, packing.max_k, scaling)
    return out.transpose(0, 1).unsqueeze(0)


def varlen_kernel(device: torch.device, dtype: torch.dtype, backend: str) -> VarlenKernel | None:
    """Return the varlen kernel that goes with the model's attention backend, or None where there is none.

    flash-attn's where the model runs flash-attn, torch's own where it runs SDPA; none for eager and on GPUs older than
    compute capability 8.0.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or backend == "eager":
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if backend == "flash_attention_2" and is_flash_attn_2_available():
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


def packing_for(span: Span, hidden: Tensor, backend: str) -> Packing | None:
    """The packing of the rows hidden [B, n, d], where `segment_masked` will run a varlen kernel on them."""
    if span.text or hidden.shape[0] > 1 or varlen_kernel(hidden.device, hidden.dtype, backend) is None:
        return None
    return pack_segments(span, hidden.shape[1], hidden.device)


def segment_masked(
    self_attn: nn.Module, x: Tensor, rotary: Rotary, cache: Cache | None, span: Span, packing: Packing | None = None
) -> Tensor:
    """Run one attention module with the segment mask in place of the causal one.

    Parameters
    ----------
    x : [B, n, d], the layer's normed input.
    cache : the prefill's cache, updated as the module itself would.
    packing : `packing_for` of the span, made here where it is not given.

    Returns
    -------
    [B, n, d], the module's output.
    """
    shape = (*x.shape[:2], -1, self_attn.head_dim)
    q, k, v = (proj(x).view(shape).transpose(1, 2) for proj in (self_attn.q_proj, self_attn.k_proj, self_attn.v_proj))
    q, k = rotate(q, rotary), rotate(k, rotary)
    if cache is not None:
        k, v = cache.update(k, v, self_attn.layer_idx)
    backend = self_attn.config._attn_implementation
    kernel = varlen_kernel(x.device, x.dtype, backend) if x.shape[0] == 1 and not span.text else None
    if kernel is None:
        out = segment_attention(q, k, v, span, self_attn.scaling)
    else:
        packing = pack_segments(span, x.shape[1], x.device) if packing is None else packing
        out = packed_segment_attention(q, k, v, packing, self_attn.scaling, kernel)
    return self_attn.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))
