"""W4A4 linears that do what follows them before anything is stored: the GEMM of
`block_scaled_gemm` with epilogues of their own.

A tile of sums leaves tensor memory in strips, so that registers hold one strip and what is made of
it; a thread has a part of a row, and with it whole blocks of 16 columns.

Shape legend: M rows of x, N features, K the reduction dim, W columns of a strip.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.backends.triton.block_scaled_gemm import block_sums, scaled_sums
from llvq.backends.triton.blocks import BLOCK, HALF, amax_of_blocks, store_blocks
from llvq.backends.triton.gate_residual import gated
from llvq.backends.triton.gelu import gelu
from llvq.backends.triton.gemm import grouped_tile
from llvq.backends.triton.global_scale import scale_of_amax
from llvq.backends.triton.norm import rounded
from llvq.backends.triton.quantize import store_quantized


@triton.constexpr_function
def _dtype(name):
    return getattr(tl, name)


@triton.jit
def strips_of(acc, STRIPS: tl.constexpr):
    """The columns of a tile in 1, 2 or 4 strips, from left to right."""
    if STRIPS == 1:
        strips = (acc,)
    elif STRIPS == 2:
        strips = _halves(acc)
    else:
        left, right = _halves(acc)
        first, second = _halves(left)
        third, fourth = _halves(right)
        strips = (first, second, third, fourth)  # type: ignore[assignment]
    return strips


@triton.jit
def _halves(acc):
    left, right = tl.split(acc.reshape(acc.shape[0], 2, acc.shape[1] // 2).permute(0, 2, 1))
    return left, right


@triton.jit
def activated(y, smooth, column, N, APPROXIMATE: tl.constexpr, TO: tl.constexpr):
    """What `gelu_quantize` quantizes of the output of a linear, rounded at each step."""
    y = rounded(gelu(rounded(y, TO), APPROXIMATE), TO)
    if smooth is not None:
        factor = tl.load(smooth + column, mask=column < N, other=0.0).to(tl.float32)
        y = rounded(y * factor[None, :], TO)
    return y


@triton.jit
def gelu_quantize_gemm(
    x_codes,
    x_atoms,
    x_global,
    w_codes,
    w_atoms,
    w_global,
    bias,
    smooth,
    given,
    codes,
    scales,
    used,
    M,
    N,
    K,
    SEGMENTS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RULE: tl.constexpr,
    DTYPE: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    operands = (x_codes, x_atoms, w_codes, w_atoms)
    acc = block_sums(operands, tile_m, tile_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    strips = strips_of(acc, STRIPS)
    W: tl.constexpr = BLOCK_N // STRIPS
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    g = tl.load(given)
    for i in tl.static_range(STRIPS):
        first = tile_n * BLOCK_N + i * W
        column = first + tl.arange(0, W)
        y = scaled_sums(strips[i], x_global, w_global, bias, column, N, SEGMENTS)
        y = activated(y, smooth, column, N, APPROXIMATE, _dtype(DTYPE))
        low, high = blocks_of(y)
        block, inside = places_of(row, first, M, N, W)
        store_quantized(codes, scales, block, low, high, g, inside, RULE)
    if tl.program_id(0) == 0:
        tl.store(used, g)


@triton.jit
def blocks_of(y):
    """The blocks of 16 columns of a strip, each in halves, [B, 8]."""
    low, high = tl.split(y.reshape(y.shape[0] * y.shape[1] // BLOCK, 2, HALF).permute(0, 2, 1))
    return low, high


@triton.jit
def places_of(row, first, M, N, W: tl.constexpr):
    """The numbers of those blocks in a row-major tensor, and whether it has them, [B]."""
    BLOCKS: tl.constexpr = W // BLOCK
    column = first // BLOCK + tl.arange(0, BLOCKS)
    block = row[:, None] * (N // BLOCK) + column[None, :]
    inside = (row < M)[:, None] & (column < N // BLOCK)[None, :]
    return block.reshape(row.shape[0] * BLOCKS), inside.reshape(row.shape[0] * BLOCKS)


@triton.jit
def gelu_gemm(
    x_codes,
    x_atoms,
    x_global,
    w_codes,
    w_atoms,
    w_global,
    bias,
    smooth,
    out,
    state,
    used,
    M,
    N,
    K,
    SEGMENTS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RULE: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    operands = (x_codes, x_atoms, w_codes, w_atoms)
    acc = block_sums(operands, tile_m, tile_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    strips = strips_of(acc, STRIPS)
    W: tl.constexpr = BLOCK_N // STRIPS
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    most = tl.zeros((BLOCK_M * W // BLOCK,), tl.int32)
    for i in tl.static_range(STRIPS):
        first = tile_n * BLOCK_N + i * W
        column = first + tl.arange(0, W)
        y = scaled_sums(strips[i], x_global, w_global, bias, column, N, SEGMENTS)
        y = activated(y, smooth, column, N, APPROXIMATE, out.dtype.element_ty)
        low, high = blocks_of(y)
        block, inside = places_of(row, first, M, N, W)
        store_blocks(out, block * BLOCK, low, high, inside)
        amax = tl.where(inside, amax_of_blocks(low, high), 0.0)
        most = tl.maximum(most, amax.to(tl.int32, bitcast=True))
    agree_on_scale(tl.max(most, 0), state, used, RULE)


@triton.jit
def agree_on_scale(bits, state, used, RULE: tl.constexpr):
    """The global scale of the largest magnitude that any program found, stored by the last one.

    `state` int32 [2], zeros at first: that magnitude in bits, and how many programs are done.
    """
    tl.atomic_max(state, bits, sem="relaxed")
    done = tl.atomic_add(state + 1, 1, sem="acq_rel")
    if done == tl.num_programs(0) - 1:
        tl.store(used, scale_of_amax(tl.atomic_max(state, 0, sem="relaxed"), RULE))


@triton.jit
def gate_residual_gemm(
    x_codes,
    x_atoms,
    x_global,
    w_codes,
    w_atoms,
    w_global,
    bias,
    residual,
    gate,
    out,
    M,
    N,
    K,
    rows,
    residual_stride,
    gate_stride,
    SEGMENTS: tl.constexpr,
    DTYPE: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`rows` share a vector of the gate."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    operands = (x_codes, x_atoms, w_codes, w_atoms)
    acc = block_sums(operands, tile_m, tile_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    strips = strips_of(acc, STRIPS)
    W: tl.constexpr = BLOCK_N // STRIPS
    TO: tl.constexpr = _dtype(DTYPE)
    row = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    for i in tl.static_range(STRIPS):
        column = tile_n * BLOCK_N + i * W + tl.arange(0, W)
        y = scaled_sums(strips[i], x_global, w_global, bias, column, N, SEGMENTS)
        inside = (row < M)[:, None] & (column < N)[None, :]
        from_ = residual + row[:, None] * residual_stride + column[None, :]
        x = tl.load(from_, mask=inside, other=0.0).to(tl.float32)
        vector = gate + (row // rows)[:, None] * gate_stride + column[None, :]
        factor = tl.load(vector, mask=inside, other=0.0).to(tl.float32)
        found = gated(x, rounded(y, TO), factor, out.dtype.element_ty, TO, gate.dtype.element_ty)
        to = out + row[:, None] * N + column[None, :]
        tl.store(to, found.to(out.dtype.element_ty), mask=inside)
