"""`gate_residual`: a residual stream, and a branch times the gate of its group of tokens.

Shapes as in `dialect.model_ops`; a program reads the gate once for all of its rows.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import HALF, load_halves, store_halves
from llvq.backends.triton.norm import rounded
from llvq.backends.triton.rows import as_rows, row_tile
from llvq.backends.triton.specialize import Launcher

ROWS = 8


@triton.jit
def gated(x, y, gate, STREAM: tl.constexpr, BRANCH: tl.constexpr, GATE: tl.constexpr):
    """`x + gate * y`; a gate in the dtype of the branch rounds after every step."""
    y = rounded(gate * y, GATE) if GATE == BRANCH else gate * y
    return rounded(rounded(x, GATE) + y, STREAM)


@triton.jit
def _gate_residual_kernel(
    x,
    y,
    gate,
    out,
    rows,
    width,
    x_stride,
    y_stride,
    gate_stride,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
):
    stream: tl.constexpr = x.dtype.element_ty
    branch: tl.constexpr = y.dtype.element_ty
    kind: tl.constexpr = gate.dtype.element_ty
    place = tl.arange(0, HALVES) * HALF
    mask = place < width
    group = tl.program_id(1)
    factor = load_halves(gate + group * gate_stride, place, mask)
    first = group * rows + tl.program_id(0) * ROWS
    for row in range(first, min(first + ROWS, group * rows + rows)):
        residual = load_halves(x + row * x_stride, place, mask)
        added = load_halves(y + row * y_stride, place, mask)
        found = gated(residual, added, factor, stream, branch, kind)
        store_halves(out + row * width, place, found, mask)


def gate_residual(launch: Launcher, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """See the op."""
    width, groups = x.shape[-1], gate.shape[0] * gate.shape[1]
    stream, branch, gates = (as_rows(t) for t in (x, y, gate))
    rows = stream.shape[0] // groups
    strides = (stream.stride(0), branch.stride(0), gates.stride(0))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks, warps = row_tile(width)
    launch(
        _gate_residual_kernel,
        (triton.cdiv(rows, ROWS), groups),
        *(stream, branch, gates, out, rows, width, *strides),
        HALVES=2 * blocks,
        ROWS=ROWS,
        warps=warps,
        exact=True,
    )
    return out
