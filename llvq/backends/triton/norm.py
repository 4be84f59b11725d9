"""Norms of whole rows: `norm_modulate`, `norm_modulate_quantize` and `rms_norm`.

A program holds one row at a time. What its rows share, it reads again for each of them: that is
in the cache, and registers are worth more. Shapes as in `dialect.model_ops`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import (
    BLOCK,
    HALF,
    amax_bits,
    load_blocks,
    load_halves,
    store_blocks,
    store_halves,
)
from llvq.backends.triton.global_scale import load_global_scale, no_amax
from llvq.backends.triton.quantize import store_quantized
from llvq.backends.triton.rows import as_rows, row_tile
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.nvfp4_ops import packed_like

ROWS = 8


@triton.jit
def rounded(x, TO: tl.constexpr):
    """fp32 of what a narrower type can hold."""
    return x.to(TO).to(tl.float32)


@triton.jit
def _row_sum(low, high):
    return tl.sum(tl.sum(low + high, 1), 0)


@triton.jit
def layer_norm(low, high, width, eps, mask):
    """A row without its mean, over its deviation; `width` counts its channels."""
    mean = tl.math.div_rn(_row_sum(low, high), width.to(tl.float32))
    low = tl.where(mask[:, None], low - mean, 0.0)
    high = tl.where(mask[:, None], high - mean, 0.0)
    variance = tl.math.div_rn(_row_sum(low * low, high * high), width.to(tl.float32))
    scale = tl.math.div_rn(1.0, tl.math.sqrt_rn(variance + eps))
    return low * scale, high * scale


@triton.jit
def rms_normed(x, weight, width, eps, TO: tl.constexpr, ROUND_FIRST: tl.constexpr):
    """`rms_norm` of a row, fp32 of what `TO` can hold."""
    mean = tl.math.div_rn(tl.sum(tl.sum(x * x, 1), 0), width.to(tl.float32))
    x *= tl.math.div_rn(1.0, tl.math.sqrt_rn(mean + eps))
    if ROUND_FIRST:
        x = rounded(x, TO)
    return rounded(x * weight, TO)


@triton.jit
def _modulated(normed, factor, shift, TO: tl.constexpr, ROUND: tl.constexpr):
    """`normed * factor + shift`, rounded after every step if modulation is of that type too."""
    product = rounded(rounded(normed, TO) * factor, TO) if ROUND else normed * factor
    return rounded(product + shift, TO)


@triton.jit
def _norm_modulate_kernel(
    x,
    scale,
    shift,
    out,
    given,
    amax,
    codes,
    scales,
    used,
    rows,
    width,
    x_stride,
    scale_stride,
    shift_stride,
    eps,
    RULE: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Values if `out` is there, NVFP4 if `codes` are, and the largest magnitude if neither is."""
    dtype: tl.constexpr = x.dtype.element_ty
    step: tl.constexpr = scale.dtype.element_ty == dtype
    row_blocks = width // BLOCK
    column = tl.arange(0, BLOCKS)
    place, mask = column * BLOCK, column < row_blocks
    group = tl.program_id(1)
    if codes is not None:
        g = load_global_scale(given, amax, RULE)
        if tl.program_id(0) + group == 0:
            tl.store(used, g)
    most = 0
    first = group * rows + tl.program_id(0) * ROWS
    for row in range(first, min(first + ROWS, group * rows + rows)):
        low, high = load_blocks(x + row * x_stride, place, mask)
        low, high = layer_norm(low, high, width, eps, mask)
        factor_low, factor_high = load_blocks(scale + group * scale_stride, place, mask)
        factor_low = rounded(factor_low + 1.0, scale.dtype.element_ty)
        factor_high = rounded(factor_high + 1.0, scale.dtype.element_ty)
        shift_low, shift_high = load_blocks(shift + group * shift_stride, place, mask)
        low = _modulated(low, factor_low, shift_low, dtype, step)
        high = _modulated(high, factor_high, shift_high, dtype, step)
        if out is not None:
            store_blocks(out + row * width, place, low, high, mask)
        elif codes is not None:
            block = row * row_blocks + column
            store_quantized(codes, scales, block, low, high, g, mask, RULE)
        else:
            most = tl.maximum(most, amax_bits(low, high))
    if out is None and codes is None:
        tl.atomic_max(amax, most, sem="relaxed")


def _norm_modulate(
    launch: Launcher,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    *results: Tensor | None,
    rule: str = "max",
) -> None:
    """One launch; `results` are out, given, amax, codes, scales, used."""
    width, groups = x.shape[-1], scale.shape[0] * scale.shape[1]
    flat, scales, shifts = as_rows(x), as_rows(scale), as_rows(shift)
    rows = flat.shape[0] // groups
    blocks, warps = row_tile(width)
    strides = (flat.stride(0), scales.stride(0), shifts.stride(0))
    launch(
        _norm_modulate_kernel,
        (triton.cdiv(rows, ROWS), groups),
        *(flat, scales, shifts, *results, rows, width, *strides, eps),
        RULE=rule,
        BLOCKS=blocks,
        ROWS=ROWS,
        warps=warps,
        exact=True,
    )


def norm_modulate(launch: Launcher, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """See the op."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _norm_modulate(launch, x, scale, shift, eps, out, None, None, None, None, None)
    return out


def norm_modulate_quantize(
    launch: Launcher,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    block_rule: str,
    global_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op. A dynamic scale costs one more read of x: normed values are never stored."""
    out, amax = packed_like(x), None
    if global_scale is None:
        amax = no_amax(x)
        _norm_modulate(launch, x, scale, shift, eps, None, None, amax, None, None, None)
    args = (None, global_scale, amax, *out)
    _norm_modulate(launch, x, scale, shift, eps, *args, rule=block_rule)
    return out


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    out,
    rows,
    width,
    stride,
    eps,
    ROUND_FIRST: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
):
    place = tl.arange(0, HALVES) * HALF
    mask = place < width
    factor = load_halves(weight, place, mask)
    first = tl.program_id(0) * ROWS
    for row in range(first, min(first + ROWS, rows)):
        y = load_halves(x + row * stride, place, mask)
        y = rms_normed(y, factor, width, eps, x.dtype.element_ty, ROUND_FIRST)
        store_halves(out + row * width, place, y, mask)


def rms_norm(launch: Launcher, x: Tensor, weight: Tensor, eps: float, round_first: bool) -> Tensor:
    """See the op."""
    flat = as_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks, warps = row_tile(x.shape[-1])
    launch(
        _rms_norm_kernel,
        (triton.cdiv(flat.shape[0], ROWS),),
        *(flat, weight, out, flat.shape[0], x.shape[-1], flat.stride(0), eps),
        ROUND_FIRST=round_first,
        HALVES=2 * blocks,
        ROWS=ROWS,
        warps=warps,
        exact=True,
    )
    return out
