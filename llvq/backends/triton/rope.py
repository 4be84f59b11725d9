"""Rotary positions, alone and after the norm of queries and keys: `rope`, `rms_norm_rope`, and
`rms_norm_rope_fp8`, which rounds to FP8 and need not rotate.

Channel pairs lie side by side, so that a thread rotates the eight channels that it loads.
Shapes: N tokens, R = B * N rows of H heads times D channels, tables fp32 [N, D/2].
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import BLOCK, HALF, load_halves, store_halves
from llvq.backends.triton.norm import rms_normed, rounded
from llvq.backends.triton.rows import as_rows, blocks_in, row_tile
from llvq.backends.triton.specialize import Launcher
from llvq.formats import fp8

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
def _rope_kernel(
    x,
    weight,
    cos,
    sin,
    scale,
    out,
    rows,
    tokens,
    width,
    stride,
    head_dim,
    eps,
    ROUND_FIRST: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows, normed if there is a weight, turned if there are angles, over their scale if there is
    one."""
    place = tl.arange(0, HALVES) * HALF
    mask = place < width
    if weight is not None:
        factor = load_halves(weight, place, mask)
    if scale is not None:
        inverse = tl.math.div_rn(1.0, tl.load(scale))
    first = tl.program_id(0) * ROWS
    for row in range(first, min(first + ROWS, rows)):
        y = load_halves(x + row * stride, place, mask)
        if weight is not None:
            y = rms_normed(y, factor, width, eps, x.dtype.element_ty, ROUND_FIRST)
        if cos is not None:
            pair = (row % tokens * head_dim + place % head_dim) // 2
            y = _rotated(y, _load_pairs(cos, pair, mask), _load_pairs(sin, pair, mask))
        if scale is not None:
            y = rounded(y, x.dtype.element_ty) * inverse
        store_halves(out + row * width, place, y, mask)


def _rope(
    launch: Launcher,
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: Tensor | None,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """x [B, N, H*D] -> [B, N, H, D]. Raises KernelError: D is not a multiple of 16."""
    batch, tokens, width = x.shape
    head_dim = BLOCK.value * blocks_in(width // heads)
    flat = as_rows(x)
    dtype = x.dtype if scale is None else fp8.DTYPE
    out = torch.empty(batch, tokens, heads, head_dim, dtype=dtype, device=x.device)
    angles = (None if table is None else as_rows(table) for table in (cos, sin))
    blocks, warps = row_tile(width)
    sizes = (batch * tokens, tokens, width, flat.stride(0), head_dim)
    launch(
        _rope_kernel,
        (triton.cdiv(batch * tokens, ROWS),),
        *(flat, weight, *angles, scale, out, *sizes, eps),
        ROUND_FIRST=round_first,
        HALVES=2 * blocks,
        ROWS=ROWS,
        warps=warps,
        exact=True,
    )
    return out


def rope(launch: Launcher, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See the op."""
    return _rope(launch, x.flatten(2), None, cos, sin, None, x.shape[2], 0.0, False)


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
    return _rope(launch, x, weight, cos, sin, None, heads, eps, round_first)


def rms_norm_rope_fp8(
    launch: Launcher,
    x: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    out_scale: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """See the op."""
    return _rope(launch, x, weight, cos, sin, out_scale, heads, eps, round_first)
