"""Attention over NVFP4 pages whose scores are products of NVFP4: Blackwell multiplies codes.

Codes and block scales of K go from a page to the tensor core as they lie there. V is decoded as it
is read, and multiplied in bf16: the weights of a softmax have no blocks of 16 to share a scale.

Shape legend: N tokens of a chunk, H heads, D head dim; P pages of history, each as long as a chunk.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.decode import DECODED
from llvq.backends.triton.paged_attention import (
    LOG2_E,
    Tile,
    attend,
    load_head,
    load_page,
    load_rows,
    require_kernel,
    rows_of_heads,
)
from llvq.backends.triton.quantize import quantize
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.fp4_attention_ops import BLOCK_RULE, KV_FORMAT

# Chosen by what the compiler gives, not by the clock: no such chip was at hand.
TILE = Tile(128, 128, 8, 2)
TILE_SM120 = Tile(64, 32, 4, 2)
# Channels that one instruction reduces.
INSTRUCTION_K = 64


def paged_attention_fp4(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    scale: float | None,
    layer: int,
) -> Tensor:
    """llvq.paged_attention_fp4 on sm_100a and sm_103a, for bf16 and a positive scale.

    Raises TargetError for another dtype.
    """
    return _attend(launch, q, k, v, pages, table, scale, layer, TILE)


def paged_attention_fp4_sm120(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    scale: float | None,
    layer: int,
) -> Tensor:
    """llvq.paged_attention_fp4 on sm_120a. Raises as `paged_attention_fp4`."""
    return _attend(launch, q, k, v, pages, table, scale, layer, TILE_SM120)


def _attend(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    scale: float | None,
    layer: int,
    tile: Tile,
) -> Tensor:
    require_kernel(q.dtype, KV_FORMAT)
    held_q, held_k = quantize(launch, q, BLOCK_RULE), quantize(launch, k, BLOCK_RULE)
    v = rows_of_heads(v)
    _, tokens, heads, width = q.shape
    out = q.new_empty(q.shape)
    launch(
        attend_codes,
        (triton.cdiv(tokens, tile.queries), heads),
        *(*held_q, *held_k, v, *pages, table, out),
        # The compiler of Triton 3.6 fails on sums that start from a constant zero on sm_100a.
        *(float(width**-0.5 if scale is None else scale) * LOG2_E, 0.0, v.stride(1)),
        # Integers that no multiple of 16 is likely among: a binary serves every layer and window.
        *(2 * layer + 1, table.shape[0] + 1, pages[0].shape[2], tokens, heads),
        WIDTH=width,
        PADDED=max(INSTRUCTION_K, triton.next_power_of_2(width)),
        ALL_WHOLE=tokens % tile.keys == 0,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        STAGES=tile.stages,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


@triton.jit
def attend_codes(
    q_codes,
    q_scales,
    q_global,
    k_codes,
    k_scales,
    k_global,
    v,
    codes,
    block_scales,
    page_scales,
    table,
    out,
    scale,
    zero,
    v_stride,
    plane,
    chunks,
    slots,
    N,
    H,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ALL_WHOLE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(1)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q = load_head(q_codes, head, query, N, H, 2, WIDTH, PADDED, False)
    q_scale = load_head(q_scales, head, query, N, H, 16, WIDTH, PADDED, False)
    scale *= tl.load(q_global)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, PADDED), tl.float32)
    unit = 1.0  # What the values summed so far are yet to be multiplied by.
    for place in range(chunks - 1):
        slot = tl.load(table + place)
        k_page, v_page = (plane - 1) * slots + slot, plane * slots + slot
        k_unit, v_unit = tl.load(page_scales + k_page), tl.load(page_scales + v_page) * DECODED
        acc *= unit / v_unit
        unit = v_unit
        first = k_page.to(tl.int64) * N * H + head
        for start in tl.range(0, N, KEYS, num_stages=STAGES):
            key = start + tl.arange(0, KEYS)
            k = load_head(codes, first, key, N, H, 2, WIDTH, PADDED, ALL_WHOLE)
            k_scale = load_head(block_scales, first, key, N, H, 16, WIDTH, PADDED, ALL_WHOLE)
            v_tile = load_page(
                codes, block_scales, v_page, key, head, N, H, "nvfp4", WIDTH, PADDED, ALL_WHOLE
            )
            scores = multiply(q, q_scale, k, k_scale, zero)
            acc, most, total = attend(
                acc, most, total, scores, v_tile, scale * k_unit, key, N, ALL_WHOLE
            )
    acc *= unit
    k_unit = tl.load(k_global)
    for start in tl.range(0, N, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        k = load_head(k_codes, head, key, N, H, 2, WIDTH, PADDED, ALL_WHOLE)
        k_scale = load_head(k_scales, head, key, N, H, 16, WIDTH, PADDED, ALL_WHOLE)
        v_tile = load_rows(v + head * WIDTH, key, v_stride, N, WIDTH, PADDED, ALL_WHOLE)
        scores = multiply(q, q_scale, k, k_scale, zero)
        acc, most, total = attend(
            acc, most, total, scores, v_tile, scale * k_unit, key, N, ALL_WHOLE
        )
    column = tl.arange(0, PADDED)
    to = (query.to(tl.int64) * H + head)[:, None] * WIDTH + column[None, :]
    inside = (query < N)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + to, (acc / total[:, None]).to(tl.bfloat16), mask=inside)


@triton.jit
def multiply(q, q_scale, k, k_scale, zero):
    """Scores fp32 [QUERIES, KEYS], without the global scales."""
    sums = tl.full((q.shape[0], k.shape[0]), 0.0, tl.float32) + zero
    return tl.dot_scaled(q, q_scale, "e2m1", k.T, k_scale, "e2m1", sums)
