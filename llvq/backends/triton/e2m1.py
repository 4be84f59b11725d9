"""E2M1 in registers: round to it, pack its codes, decode them. The arithmetic of `formats.nvfp4`.

Groups are [B, 8]: half a block of B blocks, so that a thread that loads 16 bytes of bf16 holds all
of what its codes are packed from.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.formats import nvfp4

E2M1_MAX = tl.constexpr(nvfp4.E2M1_MAX)
EXPONENT = tl.constexpr(nvfp4.FP32_EXPONENT_MASK)
ROUND_TO_HALVES = tl.constexpr(nvfp4.ROUND_TO_HALVES)
ENCODE = tl.constexpr(2.0**-126)
# Of an fp16 whose top bits are a code, what makes its value that of the code.
DECODE = tl.constexpr(2.0**14)


@triton.jit
def round_e2m1(y):
    """Magnitudes -> the nearest values of E2M1, ties to even; what is beyond 6 goes to 6.

    Both products are by powers of two, so that fusing them with sums changes nothing.
    """
    y = tl.minimum(y, E2M1_MAX)
    binade = (tl.maximum(y, 1.0).to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    counted = tl.fma(binade, ROUND_TO_HALVES, y)
    return tl.fma(binade, -ROUND_TO_HALVES, counted)


@triton.jit
def encode_e2m1(y):
    """fp32 [B, 8] -> codes int32 [B], the first in the lowest bits. -0.0 has code 0.

    Read as an fp32 whose exponents end where those of E2M1 do, a value has its code at the top of
    the mantissa.
    """
    y = y + 0.0
    sign = (y.to(tl.int32, bitcast=True) >> 28) & 8
    code = (round_e2m1(tl.abs(y)) * ENCODE).to(tl.int32, bitcast=True) >> 22
    return _pack(code | sign)


@triton.jit
def _pack(nibbles):
    """int32 [B, 8], each below 16 -> int32 [B]."""
    even, odd = tl.split(nibbles.reshape(nibbles.shape[0], 4, 2))
    pairs = even | (odd << 4)
    even, odd = tl.split(pairs.reshape(nibbles.shape[0], 2, 2))
    even, odd = tl.split(even | (odd << 8))
    return even | (odd << 16)


@triton.jit
def decode_e2m1(words):
    """The inverse of `encode_e2m1`: int32 [B] -> fp32 [B, 8]."""
    codes = words[:, None] >> (4 * tl.arange(0, 8))[None, :]
    wide = codes.to(tl.int16)
    bits = ((wide & 7) << 9) | ((wide & 8) << 12)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * DECODE
