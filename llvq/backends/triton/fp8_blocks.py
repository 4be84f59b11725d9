"""Blocks of 16 channels on their way into FP8: read from a page, rotated, scaled.

A thread has whole blocks, so that nothing is exchanged: [B, 16] values of B blocks.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.backends.triton.decode import PLACED as PLACED_BY
from llvq.backends.triton.decode import decode_e2m1
from llvq.formats import nvfp4

BLOCK = tl.constexpr(nvfp4.BLOCK)
PLACED = tl.constexpr(PLACED_BY)


@triton.jit
def load_blocks(pointer, offset, mask, other, SIZE: tl.constexpr = BLOCK):
    """[B, SIZE] from where each block begins, or `other` where it is masked out."""
    at = offset[:, None] + tl.arange(0, SIZE)[None, :]
    if mask is None:
        return tl.load(pointer + at)
    else:
        return tl.load(pointer + at, mask=mask[:, None], other=other)


@triton.jit
def unit_of(page1, page2, slot, FORMAT: tl.constexpr):
    """What multiplies all values of a slot, whose tensors are those of the format."""
    if FORMAT == "nvfp4":
        return tl.load(page2 + slot) * PLACED
    else:
        return tl.load(page1 + slot) if FORMAT == "fp8" else 1.0


@triton.jit
def load_page(page0, page1, first_row, row, block, mask, FORMAT: tl.constexpr, D: tl.constexpr):
    """fp32 [B, 16] of a pool, and what multiplies each block beside the unit of its slot, [B, 1].

    A thread loads the scale of a block that it has: of neighbours, two would be one load, and then
    go through shared memory.
    """
    if FORMAT == "nvfp4":
        offset = row * (D // 2) + block * (BLOCK // 2)
        codes = load_blocks(page0 + first_row * (D // 2), offset, mask, 0, BLOCK // 2)
        scale = tl.max_contiguous(row * (D // BLOCK) + block, 1)
        scale = load_blocks(page1 + first_row * (D // BLOCK), scale, mask, 0.0, 1)
        return decode_e2m1(codes, codes.shape[0]), scale.to(tl.float32)
    else:
        x = load_blocks(page0 + first_row * D, row * D + block * BLOCK, mask, 0.0)
        return x.to(tl.float32), 1.0


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
