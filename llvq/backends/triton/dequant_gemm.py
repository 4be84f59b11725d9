"""Linears whose NVFP4 weight becomes bf16 in registers, for chips that do not multiply NVFP4.

The product is `w @ x.T`: tensor cores of Hopper take their first operand from registers, so that a
weight never lies decoded in memory, and decoding goes on while they multiply. Every decoded value
is exact, sums are fp32, and both global scales come last: what comes out is what a chip with NVFP4
tensor cores would give.

Shape legend: M rows of x, N features, K the reduction dim.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.decode import DECODED, decode_nvfp4
from llvq.backends.triton.gemm import Tile, aligned, column_scales, grouped_tile, segment_text
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError

# Decoding costs as many instructions for 128 rows of x as for 256, and the tensor cores wait for it
# with the former. The smallest is for a few tokens.
TILES = (Tile(256, 128, 128, 8, 3), Tile(128, 128, 64, 8, 4), Tile(16, 128, 128, 4, 4))
SMS = 132
GROUP = 8
# A block of the kernel that decodes activations.
DECODE_ROWS, DECODE_COLUMNS = 16, 512


def nvfp4_linear_w4a16(
    launch: Launcher,
    x: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """llvq.nvfp4_linear_w4a16 for x in bf16. Raises TargetError for another dtype."""
    if x.dtype != torch.bfloat16:
        raise TargetError(
            f"nvfp4_linear_w4a16 has no kernel for x in {x.dtype}",
            because="its tensor cores multiply bf16",
            fix="run the model in bf16, or choose the target cpu",
        )
    tile = choose_tile(prod(x.shape[:-1]), w_codes.shape[0])
    return _linear(launch, x, None, (w_codes, w_scales, w_global), bias, segments, dtype, tile)


def nvfp4_linear_dequant(
    launch: Launcher,
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """llvq.nvfp4_linear in exact emulation.

    x is decoded first, to bf16 in memory: within the GEMM each of its values would be decoded
    once for every 128 features, and by way of shared memory.
    """
    x = _decoded(launch, x_codes, x_scales)
    tile = choose_tile(prod(x.shape[:-1]), w_codes.shape[0])
    return _linear(launch, x, x_global, (w_codes, w_scales, w_global), bias, segments, dtype, tile)


def choose_tile(rows: int, features: int) -> Tile:
    """The largest tile whose blocks occupy every SM, or the smallest that covers the rows."""
    wide, medium, small = TILES
    if rows <= small.m:
        return small
    return wide if wide.count(rows, features) >= SMS else medium


def _decoded(launch: Launcher, codes: Tensor, scales: Tensor) -> Tensor:
    """NVFP4 [..., K/2] as bf16 [..., K], without its global scale and divided by DECODED."""
    rows, columns = prod(codes.shape[:-1]), 2 * codes.shape[-1]
    out = codes.new_empty((*codes.shape[:-1], columns), dtype=torch.bfloat16)
    grid = (triton.cdiv(rows, DECODE_ROWS), triton.cdiv(columns, DECODE_COLUMNS))
    held = (codes.contiguous(), scales.contiguous())
    size = (rows, columns)
    launch(decode_rows, grid, *held, out, *size, ROWS=DECODE_ROWS, COLUMNS=DECODE_COLUMNS)
    return out


def _linear(
    launch: Launcher,
    x: Tensor,
    x_global: Tensor | None,
    w: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    tile: Tile,
) -> Tensor:
    """x bf16, and if it was NVFP4 its global scale."""
    w_codes, w_scales, w_global = aligned(w[0]), w[1].contiguous(), w[2]
    rows, features = prod(x.shape[:-1]), w_codes.shape[0]
    out = x.new_empty((*x.shape[:-1], features), dtype=dtype)
    launch(
        dequant_gemm,
        (tile.count(rows, features),),
        *(x.contiguous(), x_global, w_codes, w_scales, w_global, bias, out),
        *(rows, features, x.shape[-1], w_codes.shape[-1], w_scales.shape[-1]),
        SEGMENTS=segment_text(segments),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        GROUP=GROUP,
        STAGES=tile.stages,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


@triton.jit
def decode_rows(codes, scales, out, rows, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    start = tl.program_id(1) * COLUMNS
    byte = (start // 2 + tl.arange(0, COLUMNS // 2))[None, :]
    block = (start // 16 + tl.arange(0, COLUMNS // 16))[None, :]
    column = (start + tl.arange(0, COLUMNS))[None, :]
    code = tl.load(codes + row * (K // 2) + byte, mask=(row < rows) & (byte < K // 2))
    scale = tl.load(scales + row * (K // 16) + block, mask=(row < rows) & (block < K // 16))
    values = decode_nvfp4(code, scale, ROWS, COLUMNS)
    tl.store(out + row * K + column, values, mask=(row < rows) & (column < K))


@triton.jit
def dequant_gemm(
    x,
    x_global,
    w_codes,
    w_scales,
    w_global,
    bias,
    out,
    M,
    N,
    K,
    row_bytes,
    row_scales,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    tiles = (tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    tile_m, tile_n = grouped_tile(tl.program_id(0), tiles[0], tiles[1], GROUP)
    x_tiles = tl.make_tensor_descriptor(x, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
    w_tiles = tl.make_tensor_descriptor(
        w_codes, [N, row_bytes], [row_bytes, 1], [BLOCK_N, BLOCK_K // 2]
    )
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.arange(0, BLOCK_K // 16)
    scales = w_scales + column[:, None] * row_scales
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        x_tile = x_tiles.load([tile_m * BLOCK_M, k * BLOCK_K])
        codes = w_tiles.load([tile_n * BLOCK_N, k * (BLOCK_K // 2)])
        here = (k * (BLOCK_K // 16) + block)[None, :]
        inside = (column < N)[:, None] & (here < row_scales)
        scale = tl.load(scales + here, mask=inside, other=0.0)
        w_tile = decode_nvfp4(codes, scale, BLOCK_N, BLOCK_K)
        acc = tl.dot(w_tile, x_tile.T, acc)
    factor = column_scales(w_global, column, SEGMENTS) * DECODED
    if x_global is not None:
        factor *= tl.load(x_global) * DECODED
    y = acc.T * factor[None, :]
    if bias is not None:
        y += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    to = row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=(row < M)[:, None] & (column < N)[None, :])
