"""Attention in FP8, over a window that is in FP8: of tensors or pages, written in bf16 or in FP8.

One warp group has 64 queries of one head and goes over all keys, 128 at a time. Two of them share a
multiprocessor: while one computes a softmax, the tensor cores work for the other.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.fp8_blocks import rotated
from llvq.backends.triton.fp8_scales import History, in_rows, largest, scale_for
from llvq.backends.triton.fp8_window import KEYS, Window, window_in_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.formats import fp8

QUERIES = 64  # of one program: the rows of one warp group's matrix instruction
STAGES = 3
LOG2_E = tl.constexpr(1.4426950408889634)
# Weights are at most 1. 256 times as large, the small ones are further from the end of E4M3.
LOG2_WEIGHT_SCALE = tl.constexpr(8.0)


def attention_fp8(
    launch: Launcher, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Attention over k and v [1, M, H, D] as they are."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _attend(launch, q, window_in_fp8(launch, k, v), scale, None, out)
    return out


def attention_quantize_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    q_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as values [1, N, E] and scales [1, N, 1]."""
    out = _packed_like(q)
    _attend(launch, q, window_in_fp8(launch, k, v), scale, None, *out, q_scale)
    return out


def paged_attention_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
) -> Tensor:
    """Attention over the pages of a table, then the chunk's own k and v."""
    rope = (cos, sin) if cos is not None and sin is not None else None
    window = window_in_fp8(launch, k, v, History(pages, table, layer, kv_format), rope)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _attend(launch, q, window, scale, rope, out)
    return out


def paged_attention_quantize_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as values [1, N, E] and scales [1, N, 1]."""
    rope = (cos, sin) if cos is not None and sin is not None else None
    window = window_in_fp8(launch, k, v, History(pages, table, layer, kv_format), rope, k_scale)
    out = _packed_like(q)
    _attend(launch, q, window, scale, rope, *out, q_scale)
    return out


def window_attention_quantize_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Tensor,
    keys: int,
    scale: float | None = None,
    q_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same over a window that `window_fp8` made."""
    out = _packed_like(q)
    _attend(launch, q, Window(k, v, scales, keys), scale, None, *out, q_scale)
    return out


def _packed_like(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = q.shape
    values = torch.empty((batch, tokens, heads * dim), dtype=fp8.DTYPE, device=q.device)
    return values, torch.empty((batch, tokens, 1), dtype=torch.float32, device=q.device)


def _attend(
    launch: Launcher,
    q: Tensor,
    window: Window,
    scale: float | None,
    rope: tuple[Tensor, Tensor] | None,
    out: Tensor,
    out_scales: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> None:
    """Writes out, in its dtype; where it has scales, each token's is that of V."""
    _, tokens, heads, dim = q.shape
    if q_scale is None:
        values, scales = _queries_in_fp8(launch, q, window.keys - tokens, rope)
    else:
        values, scales = q.contiguous(), q_scale
    launch(
        attend_kernel,
        (triton.cdiv(tokens, QUERIES), heads),
        values,
        scales,
        window.k,
        window.v,
        window.scales,
        out,
        out_scales,
        float(dim**-0.5 if scale is None else scale),
        tokens,
        window.keys,
        window.k.shape[1],
        heads,
        D=dim,
        QUERIES=QUERIES,
        KEYS=KEYS,
        STAGES=STAGES,
        PADDED=window.keys != window.k.shape[1],
        ONE_SCALE=q_scale is not None,
        stages=STAGES,
    )


def _queries_in_fp8(
    launch: Launcher, q: Tensor, first: int, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """e4m3 [N, H, D] and scales fp32 [N, H]; angles of the first query are at place `first`."""
    _, tokens, heads, dim = q.shape
    values = torch.empty((tokens, heads, dim), dtype=fp8.DTYPE, device=q.device)
    scales = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    rows = in_rows(q)
    launch(
        quantize_queries_kernel,
        (triton.cdiv(tokens, QUERIES), heads),
        rows,
        *(rope or (None, None)),
        values,
        scales,
        rows.stride(0),
        tokens,
        heads,
        first,
        D=dim,
        QUERIES=QUERIES,
    )
    return values, scales


@triton.jit
def quantize_queries_kernel(
    q,
    cos,
    sin,
    values,
    scales,
    stride,
    tokens,
    heads,
    first,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, D)
    inside = token < tokens
    at = token.to(tl.int64)[:, None] * stride + head * D + dims[None, :]
    x = tl.load(q + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if cos is not None:
        angle = (first + token)[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :]
        c = tl.load(cos + angle, mask=inside[:, None], other=1.0)
        s = tl.load(sin + angle, mask=inside[:, None], other=0.0)
        x = rotated(x, c, s, q.dtype.element_ty)
    scale = scale_for(largest(x, 1))
    coded = (x * (1.0 / scale)[:, None]).to(tl.float8e4nv)
    row = token.to(tl.int64) * heads + head
    tl.store(values + row[:, None] * D + dims[None, :], coded, mask=inside[:, None])
    tl.store(scales + token * heads + head, scale, mask=inside)


@triton.jit
def attend_kernel(
    q,
    q_scales,
    k,
    v,
    scales,
    out,
    out_scales,
    scale,
    tokens,
    keys,
    padded,
    heads,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    PADDED: tl.constexpr,
    ONE_SCALE: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    token = tile * QUERIES + tl.arange(0, QUERIES)
    inside = token < tokens
    first_key = head.to(tl.int64) * padded * D
    q_tiles = tl.make_tensor_descriptor(q + head * D, [tokens, D], [heads * D, 1], [QUERIES, D])
    k_tiles = tl.make_tensor_descriptor(k + first_key, [padded, D], [D, 1], [KEYS, D])
    v_tiles = tl.make_tensor_descriptor(v + first_key, [D, padded], [padded, 1], [D, KEYS])
    queries = q_tiles.load([tile * QUERIES, 0])
    # Scores in units of log2: softmax needs no base of its own.
    factor = tl.load(scales) * scale * LOG2_E
    if ONE_SCALE:
        factor = tl.full((QUERIES,), 1.0, tl.float32) * (tl.load(q_scales) * factor)
    else:
        factor = tl.load(q_scales + token * heads + head, mask=inside, other=1.0) * factor
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, D), tl.float32)
    for first in tl.range(0, padded, KEYS, num_stages=STAGES):
        scores = tl.dot(queries, k_tiles.load([first, 0]).T)
        if PADDED:
            real = first + tl.arange(0, KEYS) < keys
            scores = tl.where(real[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        shift = higher - LOG2_WEIGHT_SCALE
        weights = tl.math.exp2(scores * factor[:, None] - shift[:, None])
        shrink = tl.math.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(in_key_order(weights, QUERIES, KEYS), v_tiles.load([0, first]).T, acc)
        top = higher
    v_scale = tl.load(scales + 1)
    if out_scales is not None:
        acc = acc * (1.0 / total)[:, None]  # a mean of codes of V
        tl.store(out_scales + token, tl.zeros_like(total) + v_scale, mask=inside & (head == 0))
    else:
        acc = acc * (v_scale / total)[:, None]
    at = (token.to(tl.int64)[:, None] * heads + head) * D + tl.arange(0, D)[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def in_key_order(weights, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """E4M3 weights whose keys are at the places that V has them: names change, no data moves."""
    split = weights.to(tl.float8e4nv).reshape(QUERIES, KEYS // 16, 2, 4, 2)
    return split.permute(0, 1, 3, 2, 4).reshape(QUERIES, KEYS)
