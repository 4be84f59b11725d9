"""Blocks of 16 channels on their way into FP8: read from a page, rotated, scaled.

A thread has whole blocks, so that nothing is exchanged: [B, 16] values of B blocks.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.backends.triton.decode import DECODED as DECODED_BY
from llvq.backends.triton.decode import decode_nvfp4
from llvq.formats import nvfp4

BLOCK = tl.constexpr(nvfp4.BLOCK)
DECODED = tl.constexpr(DECODED_BY)


@triton.jit
def load_blocks(pointer, offset, mask, other, SIZE: tl.constexpr = BLOCK):
    """[B, SIZE] from where each block begins, or `other` where it is masked out."""
    at = offset[:, None] + tl.arange(0, SIZE)[None, :]
    return tl.load(pointer + at, mask=mask[:, None], other=other)


@triton.jit
def load_page(
    page0, page1, page2, first_row, row, block, slot, mask, FORMAT: tl.constexpr, D: tl.constexpr
):
    """fp32 [B, 16] of a pool, whose tensors are those of the format, and what multiplies it."""
    if FORMAT == "nvfp4":
        offset = row * (D // 2) + block * (BLOCK // 2)
        codes = load_blocks(page0 + first_row * (D // 2), offset, mask, 0, BLOCK // 2)
        scale = page1 + first_row * (D // BLOCK) + (row * (D // BLOCK) + block)
        scale = tl.load(scale, mask=mask, other=0.0)
        x = decode_nvfp4(codes, scale[:, None], codes.shape[0], BLOCK)
        return x.to(tl.float32), tl.load(page2 + slot) * DECODED
    else:
        x = load_blocks(page0 + first_row * D, row * D + block * BLOCK, mask, 0.0).to(tl.float32)
        return x, tl.load(page1 + slot) if FORMAT == "fp8" else 1.0


@triton.jit
def scaled(x, unit, inverse, cos, sin, angle, mask, DTYPE: tl.constexpr):
    """fp32 x [B, 16] times its unit, over a scale: rotated where there are angles."""
    if cos is None:
        return x * (unit * inverse)
    else:
        c = load_blocks(cos, angle, mask, 0.0, BLOCK // 2)
        s = load_blocks(sin, angle, mask, 0.0, BLOCK // 2)
        return rotated(x * unit, c, s, DTYPE) * inverse


@triton.jit
def rotated(x, c, s, DTYPE: tl.constexpr):
    """x fp32 [B, C], rounded to DTYPE, rotated by pairs, rounded again."""
    even, odd = tl.split(x.to(DTYPE).to(tl.float32).reshape(c.shape[0], c.shape[1], 2))
    turned = tl.join(even * c - odd * s, even * s + odd * c).reshape(x.shape[0], x.shape[1])
    return turned.to(DTYPE).to(tl.float32)
