"""Attention over pages of the KV cache that are decoded as they are read, in bf16 with fp32 sums.

A page holds the K and the V of one chunk, and has one scale for each: it is brought in after the
products. No decoded copy of the window is ever in memory.

Shape legend: N tokens of a chunk, H heads, D head dim; P pages of history, each as long as a chunk.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.decode import DECODED, decode_nvfp4
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError

LOG2_E = 1.4426950408889634
FORMATS = ("none", "fp8", "nvfp4")


@dataclass(frozen=True)
class Tile:
    """Queries of a block, keys of a step, warps, stages of loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


TILE = Tile(128, 64, 8, 2)
# sm_120a keeps sums in registers: it spills with 64 keys, and with 128 queries that are rotated.
TILE_SM120 = Tile(64, 32, 4, 2)


def paged_attention(
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
    """llvq.paged_attention on sm_90a, sm_100a and sm_103a, for bf16 and a positive scale.

    Raises TargetError for another dtype, or a format that has no kernel.
    """
    return _attend(launch, (q, k, v), pages, table, (cos, sin), scale, layer, kv_format, TILE)


def paged_attention_sm120(
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
    """llvq.paged_attention on sm_120a. Raises as `paged_attention`."""
    return _attend(launch, (q, k, v), pages, table, (cos, sin), scale, layer, kv_format, TILE_SM120)


def _attend(
    launch: Launcher,
    qkv: tuple[Tensor, Tensor, Tensor],
    pages: Sequence[Tensor],
    table: Tensor,
    rotation: tuple[Tensor | None, Tensor | None],
    scale: float | None,
    layer: int,
    kv_format: str,
    tile: Tile,
) -> Tensor:
    require_kernel(qkv[0].dtype, kv_format)
    q, k, v = (rows_of_heads(t) for t in qkv)
    _, tokens, heads, width = q.shape
    out = q.new_empty(q.shape)
    values, block_scales, page_scales = _parts(pages)
    launch(
        attend_window,
        (triton.cdiv(tokens, tile.queries), heads),
        *(q, k, v, values, block_scales, page_scales, table, *rotation, out),
        *(float(width**-0.5 if scale is None else scale) * LOG2_E, q.stride(1), k.stride(1)),
        # Integers that no multiple of 16 is likely among: a binary serves every layer and window.
        *(v.stride(1), 2 * layer + 1, table.shape[0] + 1, pages[0].shape[2], tokens, heads),
        FORMAT=kv_format,
        WIDTH=width,
        PADDED=max(16, triton.next_power_of_2(width)),
        ALL_WHOLE=tokens % tile.keys == 0,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        STAGES=tile.stages,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


def require_kernel(dtype: torch.dtype, kv_format: str) -> None:
    if kv_format not in FORMATS:
        raise TargetError(
            f"there is no attention kernel for pages in {kv_format}",
            because=f"kernels read {', '.join(FORMATS)}",
            fix="choose one of these as the KV cache format, or the target cpu",
        )
    if dtype != torch.bfloat16:
        raise TargetError(
            f"there is no attention kernel for {dtype}",
            because="its tensor cores multiply bf16",
            fix="run the model in bf16, or choose the target cpu",
        )


def rows_of_heads(x: Tensor) -> Tensor:
    """x [1, N, H, D] with its heads side by side; tokens may be apart, as in a joint projection."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


def _parts(pages: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values or codes, block scales, page scales: each format has one more than that before."""
    if len(pages) == 3:
        return pages[0], pages[1], pages[2]
    return pages[0], None, pages[1] if len(pages) == 2 else None


@triton.jit
def attend_window(
    q,
    k,
    v,
    values,
    block_scales,
    page_scales,
    table,
    cos,
    sin,
    out,
    scale,
    q_stride,
    k_stride,
    v_stride,
    plane,
    chunks,
    slots,
    N,
    H,
    FORMAT: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL_WHOLE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(1)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q_tile = load_rows(q + head * WIDTH, query, q_stride, N, WIDTH, PADDED, False)
    if cos is not None:
        q_tile = rotated(q_tile, cos, sin, (chunks - 1) * N, query, N, WIDTH, PADDED)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, PADDED), tl.float32)
    unit = 1.0  # What the values summed so far are yet to be multiplied by.
    for place in range(chunks - 1):
        slot = tl.load(table + place)
        k_page, v_page = (plane - 1) * slots + slot, plane * slots + slot
        k_unit, v_unit = 1.0, 1.0
        if page_scales is not None:
            k_unit, v_unit = tl.load(page_scales + k_page), tl.load(page_scales + v_page)
        if FORMAT == "nvfp4":
            k_unit, v_unit = k_unit * DECODED, v_unit * DECODED
        acc *= unit / v_unit
        unit = v_unit
        for start in tl.range(0, N, KEYS, num_stages=STAGES):
            key = start + tl.arange(0, KEYS)
            k_tile = load_page(
                values, block_scales, k_page, key, head, N, H, FORMAT, WIDTH, PADDED, ALL_WHOLE
            )
            if cos is not None:
                k_tile = rotated(k_tile, cos, sin, place * N, key, N, WIDTH, PADDED)
            v_tile = load_page(
                values, block_scales, v_page, key, head, N, H, FORMAT, WIDTH, PADDED, ALL_WHOLE
            )
            scores = tl.dot(q_tile, k_tile.T)
            acc, most, total = attend(
                acc, most, total, scores, v_tile, scale * k_unit, key, N, ALL_WHOLE
            )
    acc *= unit
    for start in tl.range(0, N, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        k_tile = load_rows(k + head * WIDTH, key, k_stride, N, WIDTH, PADDED, ALL_WHOLE)
        if cos is not None:
            k_tile = rotated(k_tile, cos, sin, (chunks - 1) * N, key, N, WIDTH, PADDED)
        v_tile = load_rows(v + head * WIDTH, key, v_stride, N, WIDTH, PADDED, ALL_WHOLE)
        scores = tl.dot(q_tile, k_tile.T)
        acc, most, total = attend(acc, most, total, scores, v_tile, scale, key, N, ALL_WHOLE)
    column = tl.arange(0, PADDED)
    to = (query.to(tl.int64) * H + head)[:, None] * WIDTH + column[None, :]
    inside = (query < N)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + to, (acc / total[:, None]).to(tl.bfloat16), mask=inside)


@triton.jit
def attend(acc, most, total, scores, v, scale, key, N, ALL_WHOLE: tl.constexpr):
    """One step of the online softmax: `most` is in units of log2, after the scale."""
    if not ALL_WHOLE:
        scores = tl.where((key < N)[None, :], scores, float("-inf"))
    now = tl.maximum(most, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - now[:, None])
    shrink = tl.exp2(most - now)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(tl.bfloat16), v, acc * shrink[:, None])
    return acc, now, total


@triton.jit
def load_page(
    values,
    block_scales,
    page,
    key,
    head,
    N,
    H,
    FORMAT: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL_WHOLE: tl.constexpr,
):
    """Rows of one head of a page as bf16 [KEYS, PADDED], without the scale of the page."""
    first = page.to(tl.int64) * N * H + head
    if FORMAT == "nvfp4":
        codes = load_head(values, first, key, N, H, 2, WIDTH, PADDED, ALL_WHOLE)
        scales = load_head(block_scales, first, key, N, H, 16, WIDTH, PADDED, ALL_WHOLE)
        return decode_nvfp4(codes, scales, key.shape[0], PADDED)
    else:
        rows = load_head(values, first, key, N, H, 1, WIDTH, PADDED, ALL_WHOLE)
        return rows.to(tl.bfloat16)


@triton.jit
def load_head(
    base,
    first,
    row,
    N,
    H,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL_WHOLE: tl.constexpr,
):
    """Rows [rows, PADDED / SHARE] of a head: SHARE channels an element, row 0 is `first` of all."""
    start, stride = base + first * (WIDTH // SHARE), H * (WIDTH // SHARE)
    return load_rows(start, row, stride, N, WIDTH // SHARE, PADDED // SHARE, ALL_WHOLE)


@triton.jit
def load_rows(
    base, row, stride, N, WIDTH: tl.constexpr, PADDED: tl.constexpr, ALL_WHOLE: tl.constexpr
):
    """Rows of WIDTH elements as [rows, PADDED]; what lies beyond is zero."""
    column = tl.arange(0, PADDED)
    at = base + row[:, None] * stride + column[None, :]
    if ALL_WHOLE and WIDTH == PADDED:
        return tl.load(at)
    else:
        return tl.load(at, mask=(row < N)[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def rotated(x, cos, sin, start, row, N, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Channel pairs of x [rows, PADDED] turned by their place in the window."""
    c = load_rows(cos + start * (WIDTH // 2), row, WIDTH // 2, N, WIDTH // 2, PADDED // 2, False)
    s = load_rows(sin + start * (WIDTH // 2), row, WIDTH // 2, N, WIDTH // 2, PADDED // 2, False)
    even, odd = tl.split(x.to(tl.float32).reshape(row.shape[0], PADDED // 2, 2))
    turned = tl.join(even * c - odd * s, even * s + odd * c)
    return turned.reshape(row.shape[0], PADDED).to(tl.bfloat16)
