"""NVFP4 decoded in registers, for those that do not read it: tensor cores, and FP8."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# What the values of `decode_nvfp4` are yet to be multiplied by.
DECODED = tl.constexpr(2.0**7)
# Scales are multiplied by this, which a bf16 holds without rounding, as it does their product.
_SCALE = tl.constexpr(2.0**119)


@triton.jit
def decode_nvfp4(codes, scales, ROWS: tl.constexpr, K: tl.constexpr):
    """Codes u8 [ROWS, K/2] and scales e4m3 [ROWS, K/16] as bf16 [ROWS, K], times 2**-7: exact.

    A code at the top of a bf16, exponent over exponent, is its value times 2**-126. One product
    puts both codes of a byte in place, another both signs: 16 bits apart, where a pair of bf16 lies
    in a register. E2M1 times E4M3 has six significant bits at most.
    """
    byte = codes.to(tl.uint32)
    pair = ((byte * 0x00040040) & 0x01C001C0) | ((byte * 0x01001000) & 0x80008000)
    values = tl.join(pair.to(tl.uint16), (pair >> 16).to(tl.uint16)).to(tl.bfloat16, bitcast=True)
    factor = (scales.to(tl.float32) * _SCALE).to(tl.bfloat16)
    return (values.reshape(ROWS, K // 16, 16) * factor[:, :, None]).reshape(ROWS, K)


# What the values of `decode_e2m1` are yet to be multiplied by, beside their scales.
PLACED = tl.constexpr(2.0**14)


@triton.jit
def decode_e2m1(codes, BLOCKS: tl.constexpr):
    """Codes u8 [BLOCKS, 8] as fp32 [BLOCKS, 16], times 2**-14: exact.

    The same at the top of an fp16, which takes one instruction to fp32; scales are left to whoever
    has a factor for the whole block.
    """
    byte = codes.to(tl.uint32)
    pair = ((byte * 0x00200200) & 0x0E000E00) | ((byte * 0x01001000) & 0x80008000)
    low = pair.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    high = (pair >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.join(low, high).reshape(BLOCKS, 16)
