"""The W4A4 linear on tensor cores that multiply NVFP4: sm_100a, sm_103a and sm_120a.

Both operands stay in four bits up to the instruction. Their scales lie in the 128x4 atoms that it
reads: those of x are brought there by each call, those of a weight once, when it is loaded.

Shape legend: M rows of x, N features, K the reduction dim; an atom is 128 rows x 4 scales.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.gemm import Tile, aligned, column_scales, grouped_tile, segment_text
from llvq.backends.triton.specialize import Constant, Launcher

ATOM_ROWS, ATOM_COLUMNS = 128, 4
ATOM = ATOM_ROWS * ATOM_COLUMNS
# Atoms side by side that one program of the swizzle moves: 64 scales are two sectors of memory.
SWIZZLED_ATOMS = 16

# Chosen by what the compiler gives, not by the clock: no such chip was at hand. The wide tile takes
# a whole SM's shared memory, the narrow one half. Four warps on 128x256 sums spill.
WIDE = Tile(128, 256, 256, 8, 4)
NARROW = Tile(128, 128, 256, 8, 3)
SM120 = Tile(128, 128, 128, 8, 5)
SMS = 148  # of a B200
GROUP = 8


def nvfp4_linear(
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
    """llvq.nvfp4_linear and llvq.nvfp4_linear_swizzled on sm_100a and sm_103a."""
    tile = tile_of_sm100(prod(x_codes.shape[:-1]), w_codes.shape[0])
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    return _linear(launch, x, w, bias, segments, dtype, tile)


def nvfp4_linear_sm120(
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
    """The same on sm_120a, which has less shared memory and keeps sums in registers."""
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    tile = tile_of_sm120(prod(x_codes.shape[:-1]), w_codes.shape[0])
    return _linear(launch, x, w, bias, segments, dtype, tile)


def tile_of_sm100(rows: int, features: int) -> Tile:
    """A launch with fewer wide tiles than a B200 has SMs is cut into narrow ones."""
    return WIDE if WIDE.count(rows, features) >= SMS else NARROW


def tile_of_sm120(rows: int, features: int) -> Tile:
    """One tile for all shapes."""
    return SM120


def swizzle_scales(launch: Launcher, scales: Tensor) -> Tensor:
    """Linear scales [..., K/16] in 128x4 atoms, flat and padded with zeros.

    Flat ones are returned as they are: those of a weight that was swizzled at load.
    """
    if scales.ndim == 1:
        return scales
    rows, columns = prod(scales.shape[:-1]), scales.shape[-1]
    atoms_m, atoms_k = triton.cdiv(rows, ATOM_ROWS), triton.cdiv(columns, ATOM_COLUMNS)
    atoms = scales.new_empty(atoms_m * atoms_k * ATOM)
    grid = (atoms_m, triton.cdiv(atoms_k, SWIZZLED_ATOMS))
    launch(swizzle, grid, scales.contiguous(), atoms, rows, columns, ATOMS=SWIZZLED_ATOMS)
    return atoms


Held = tuple[Tensor, Tensor, Tensor]


def _linear(
    launch: Launcher,
    x: Held,
    w: Held,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    tile: Tile,
) -> Tensor:
    out = x[0].new_empty((*x[0].shape[:-1], w[0].shape[0]), dtype=dtype)
    launch_gemm(launch, block_scaled_gemm, x, w, (bias, out), segments, tile)
    return out


def launch_gemm(
    launch: Launcher,
    kernel: Any,
    x: Held,
    w: Held,
    results: tuple[Tensor | None, ...],
    segments: Sequence[int],
    tile: Tile,
    *sizes: int,
    **constants: Constant,
) -> None:
    """A kernel that begins with `block_sums`; `results` are its own tensors, `sizes` integers.

    Exact, as everything that is fused with it is: a fusion then changes no bit.
    """
    x_codes, w_codes = aligned(x[0]), aligned(w[0])
    rows, features, columns = prod(x_codes.shape[:-1]), w_codes.shape[0], 2 * x_codes.shape[-1]
    launch(
        kernel,
        (tile.count(rows, features),),
        *(x_codes, swizzle_scales(launch, x[1]), x[2]),
        *(w_codes, swizzle_scales(launch, w[1]), w[2]),
        *(*results, rows, features, columns, *sizes),
        SEGMENTS=segment_text(segments),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        GROUP=GROUP,
        STAGES=tile.stages,
        warps=tile.warps,
        stages=tile.stages,
        exact=True,
        **constants,
    )


@triton.jit
def swizzle(scales, atoms, rows, columns, ATOMS: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    column = tl.program_id(1) * ATOMS * 4 + tl.arange(0, ATOMS * 4)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(scales + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tile = tile.reshape(4, 32, ATOMS, 4).permute(2, 1, 0, 3).reshape(ATOMS, 512)
    atoms_k = tl.cdiv(columns, 4)
    place = tl.program_id(1) * ATOMS + tl.arange(0, ATOMS)
    to = (tl.program_id(0) * atoms_k + place)[:, None] * 512 + tl.arange(0, 512)[None, :]
    tl.store(atoms + to, tile, mask=(place < atoms_k)[:, None])


@triton.jit
def block_scaled_gemm(
    x_codes,
    x_atoms,
    x_global,
    w_codes,
    w_atoms,
    w_global,
    bias,
    out,
    M,
    N,
    K,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    operands = (x_codes, x_atoms, w_codes, w_atoms)
    acc = block_sums(operands, tile_m, tile_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y = scaled_sums(acc, x_global, w_global, bias, column, N, SEGMENTS)
    to = row.to(tl.int64)[:, None] * N + column[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def block_sums(
    operands,
    tile_m,
    tile_n,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of codes and scales, summed over K in fp32: one tile of the output.

    `operands` are codes and atoms of x, and those of w.
    """
    x_codes, x_atoms, w_codes, w_atoms = operands
    x = tl.make_tensor_descriptor(x_codes, [M, K // 2], [K // 2, 1], [BLOCK_M, BLOCK_K // 2])
    w = tl.make_tensor_descriptor(w_codes, [N, K // 2], [K // 2, 1], [BLOCK_N, BLOCK_K // 2])
    x_scales = atoms_descriptor(x_atoms, M, K, BLOCK_M, BLOCK_K)
    w_scales = atoms_descriptor(w_atoms, N, K, BLOCK_N, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        x_tile = x.load([tile_m * BLOCK_M, k * (BLOCK_K // 2)])
        w_tile = w.load([tile_n * BLOCK_N, k * (BLOCK_K // 2)])
        x_scale = load_atoms(x_scales, tile_m, k, BLOCK_M, BLOCK_K)
        w_scale = load_atoms(w_scales, tile_n, k, BLOCK_N, BLOCK_K)
        acc = tl.dot_scaled(x_tile, x_scale, "e2m1", w_tile.T, w_scale, "e2m1", acc)
    return acc


@triton.jit
def scaled_sums(acc, x_global, w_global, bias, column, N, SEGMENTS: tl.constexpr):
    """The output of the linear, fp32, in the columns of `acc`."""
    y = acc * tl.load(x_global) * column_scales(w_global, column, SEGMENTS)[None, :]
    if bias is not None:
        y += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def atoms_descriptor(atoms, rows, K, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    down, across = tl.cdiv(rows, 128), tl.cdiv(K, 64)
    return tl.make_tensor_descriptor(
        atoms,
        [1, down, across, 2, 256],
        [down * across * 512, across * 512, 512, 256, 1],
        [1, BLOCK_R // 128, BLOCK_K // 64, 2, 256],
    )


@triton.jit
def load_atoms(atoms, tile, k, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    held = atoms.load([0, tile * (BLOCK_R // 128), k * (BLOCK_K // 64), 0, 0])
    held = held.reshape(BLOCK_R // 128, BLOCK_K // 64, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return held.reshape(BLOCK_R, BLOCK_K // 16)
