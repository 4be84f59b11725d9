"""NVFP4 blocks in registers: choose their scale, encode them. The arithmetic of `formats.nvfp4`.

A tile holds B blocks as two halves, fp32 [B, 8] each. For bf16 that is one load of 16 bytes per
thread and half, and nothing of a block ever leaves its thread.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.backends.triton.e2m1 import encode_e2m1, round_e2m1
from llvq.formats import nvfp4

BLOCK = tl.constexpr(nvfp4.BLOCK)
HALF = tl.constexpr(nvfp4.BLOCK // 2)
E2M1_MAX = tl.constexpr(nvfp4.E2M1_MAX)
E4M3_MAX = tl.constexpr(nvfp4.E4M3_MAX)
SWEEP_FIRST = tl.constexpr(nvfp4.SWEEP_OFFSETS[0])
SWEEP_LAST = tl.constexpr(nvfp4.SWEEP_OFFSETS[-1])
INFINITY = tl.constexpr(float("inf"))
LARGEST_CODE = tl.constexpr(126)


@triton.jit
def load_halves(pointer, offset, mask):
    """The halves of blocks that start at these offsets [B], fp32 [B, 8]; zeros where masked."""
    place = offset[:, None] + tl.arange(0, HALF)[None, :]
    return tl.load(pointer + place, mask=mask[:, None], other=0.0).to(tl.float32)


@triton.jit
def store_halves(pointer, offset, x, mask):
    """The inverse of `load_halves`, in the dtype of the pointer."""
    place = offset[:, None] + tl.arange(0, HALF)[None, :]
    tl.store(pointer + place, x.to(pointer.dtype.element_ty), mask=mask[:, None])


@triton.jit
def load_blocks(pointer, offset, mask):
    """Both halves of the blocks that start at these offsets [B]."""
    return load_halves(pointer, offset, mask), load_halves(pointer, offset + HALF, mask)


@triton.jit
def store_blocks(pointer, offset, low, high, mask):
    """The inverse of `load_blocks`."""
    store_halves(pointer, offset, low, mask)
    store_halves(pointer, offset + HALF, high, mask)


@triton.jit
def amax_of_blocks(low, high):
    """The largest magnitude of each block, fp32 [B]; NaN if it holds one."""
    x = tl.maximum(tl.abs(low), tl.abs(high), propagate_nan=tl.PropagateNan.ALL)
    even, odd = tl.split(x.reshape(x.shape[0], 4, 2))
    x = tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL)
    even, odd = tl.split(x.reshape(x.shape[0], 2, 2))
    even, odd = tl.split(tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL))
    return tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def amax_bits(low, high):
    """The largest magnitude of all blocks as an int32, which orders as magnitudes do, and puts
    infinity and then NaN last."""
    return tl.max(amax_of_blocks(low, high).to(tl.int32, bitcast=True))


@triton.jit
def quantize_blocks(low, high, g, RULE: tl.constexpr):
    """Codes int32 [B, 2], the first in the lowest bits, and scales E4M3 [B]."""
    scale = choose_scale(low, high, g, RULE)
    inverse = _inverse_step(scale.to(tl.float32), g)[:, None]
    return tl.join(encode_e2m1(low * inverse), encode_e2m1(high * inverse)), scale


@triton.jit
def choose_scale(low, high, g, RULE: tl.constexpr):
    """The scale of each block, E4M3 [B]; NaN where the block is not finite, or g is not."""
    amax = amax_of_blocks(low, high)
    ideal = tl.math.div_rn(amax, E2M1_MAX) * tl.math.div_rn(1.0, g)
    ideal = ideal + (amax - amax)
    best = round_e4m3(ideal)
    if RULE == "four_over_six":
        error = _error(low, high, best, g)
        best, error = _better(low, high, round_e4m3(ideal * 1.5), g, best, error)
    elif RULE == "mse_sweep":
        error = _error(low, high, best, g)
        code = best.to(tl.uint8, bitcast=True).to(tl.int32)
        for offset in tl.static_range(SWEEP_FIRST, SWEEP_LAST + 1):
            if offset != 0:
                shifted = tl.minimum(tl.maximum(code + offset, 0), LARGEST_CODE).to(tl.uint8)
                other = shifted.to(tl.float8e4nv, bitcast=True)
                best, error = _better(low, high, other, g, best, error)
    return best


@triton.jit
def round_e4m3(x):
    """fp32 -> the nearest value of E4M3, saturating; NaN stays NaN."""
    return tl.where(x > E4M3_MAX, E4M3_MAX, x).to(tl.float8e4nv)


@triton.jit
def _better(low, high, other, g, best, error):
    """`other` and its error in the blocks where that is less; never in those whose scale is NaN."""
    found = _error(low, high, other, g)
    better = found < error
    return tl.where(better, other, best), tl.where(better, found, error)


@triton.jit
def _error(low, high, scale, g):
    """The squared error of each block under that scale, [B]."""
    wide = scale.to(tl.float32)
    inverse, step = _inverse_step(wide, g)[:, None], (wide * g)[:, None]
    return _half_error(low, inverse, step) + _half_error(high, inverse, step)


@triton.jit
def _half_error(x, inverse, step):
    """Neighbours are added by twos: an order that no layout of registers changes."""
    magnitude = tl.abs(x)
    missed = round_e2m1(magnitude * inverse) * step - magnitude
    squares = missed * missed
    even, odd = tl.split(squares.reshape(x.shape[0], 4, 2))
    even, odd = tl.split((even + odd).reshape(x.shape[0], 2, 2))
    even, odd = tl.split(even + odd)
    return even + odd


@triton.jit
def _inverse_step(scale, g):
    """1 / (g * scale), [B]; 0 where the scale is zero or NaN, which gives codes 0."""
    inverse = tl.math.div_rn(1.0, g * scale)
    return tl.where(inverse < INFINITY, inverse, 0.0)
