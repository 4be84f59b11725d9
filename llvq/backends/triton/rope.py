"""Rotary positions, alone and after the norm of queries and keys: `rope`, `rms_norm_rope`.

Channel pairs lie side by side, so that a thread rotates the eight channels that it loads.
Shapes: N tokens, R = B * N rows of H heads times D channels, tables fp32 [N, D/2].
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import BLOCK, HALF, load_blocks, store_blocks
from llvq.backends.triton.norm import rms_scale, weighted
from llvq.backends.triton.rows import as_rows, blocks_in, row_tile
from llvq.backends.triton.specialize import Launcher

ROWS = 4
PAIRS = tl.constexpr(HALF.value // 2)


@triton.jit
def _load_pairs(table, place, mask):
    """Entries of a table for the pairs of half a block, fp32 [B, 4]."""
    return tl.load(table + place[:, None] + tl.arange(0, PAIRS)[None, :], mask=mask[:, None])


@triton.jit
def _rotated(x, cos, sin):
    """[B, 8] -> [B, 8]."""
    even, odd = tl.split(x.reshape(x.shape[0], PAIRS, 2))
    return tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(x.shape)


@triton.jit
def rotate_blocks(low, high, cos, sin, token, head_blocks, column, mask):
    """Rotate blocks of a row, which is that of a token; `column` [B] counts them in the row."""
    place = (token * head_blocks + column % head_blocks) * HALF
    low = _rotated(low, _load_pairs(cos, place, mask), _load_pairs(sin, place, mask))
    place += PAIRS
    high = _rotated(high, _load_pairs(cos, place, mask), _load_pairs(sin, place, mask))
    return low, high


@triton.jit
def _rope_kernel(
    x,
    weight,
    cos,
    sin,
    out,
    rows,
    tokens,
    width,
    stride,
    head_blocks,
    eps,
    ROUND_FIRST: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`rope` of rows, and before it their norm if there is a weight."""
    column = tl.arange(0, BLOCKS)
    place, mask = column * BLOCK, column < width // BLOCK
    if weight is not None:
        weight_low, weight_high = load_blocks(weight, place, mask)
    first = tl.program_id(0) * ROWS
    for row in range(first, min(first + ROWS, rows)):
        low, high = load_blocks(x + row * stride, place, mask)
        if weight is not None:
            scale = rms_scale(low, high, width, eps)
            low, high = weighted(
                low, high, scale, weight_low, weight_high, x.dtype.element_ty, ROUND_FIRST
            )
        low, high = rotate_blocks(low, high, cos, sin, row % tokens, head_blocks, column, mask)
        store_blocks(out + row * width, place, low, high, mask)


def _rope(
    launch: Launcher,
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """x [B, N, H*D] -> [B, N, H, D]."""
    batch, tokens, width = x.shape
    flat = as_rows(x)
    out = torch.empty(batch, tokens, heads, width // heads, dtype=x.dtype, device=x.device)
    blocks, warps = row_tile(width)
    sizes = (batch * tokens, tokens, width, flat.stride(0), blocks_in(width // heads))
    launch(
        _rope_kernel,
        (triton.cdiv(batch * tokens, ROWS),),
        *(flat, weight, as_rows(cos), as_rows(sin), out, *sizes, eps),
        ROUND_FIRST=round_first,
        BLOCKS=blocks,
        ROWS=ROWS,
        warps=warps,
        exact=True,
    )
    return out


def rope(launch: Launcher, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See the op."""
    return _rope(launch, x.flatten(2), None, cos, sin, x.shape[2], 0.0, False)


def rms_norm_rope(
    launch: Launcher,
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """See the op."""
    return _rope(launch, x, weight, cos, sin, heads, eps, round_first)
