"""How NVFP4 values are encoded and decoded in ONNX: by its FP4 type, or by arithmetic and a table.

Shapes: x [..., K], steps and scales [..., K/16]; a step is a scale times the global scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.elements import ELEMENT_TYPES, FP4
from llvq.backends.onnx.records import Value, Weight
from llvq.formats import nvfp4

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Encoding:
    """encode(b, x fp32, step) -> codes; decode(b, codes, step) -> fp32 values.

    weight(b, codes, scales, global scale) is the decoded weight [N, K].
    """

    encode: Callable[[Builder, Value, Value], Value]
    decode: Callable[[Builder, Value, Value], Value]
    weight: Callable[[Builder, Weight, Weight, Weight], Value]
    scale_dtype: torch.dtype


def encode_fp4(b: Builder, x: Value, step: Value) -> Value:
    """Codes of a block whose step is zero are zero: anything divided by the largest number is."""
    divisor = b.where(_is_zero(b, step), b.scalar(LARGEST, torch.float32), step)
    return b.call(
        "QuantizeLinear", x, divisor, dtype=FP4,
        axis=-1, block_size=nvfp4.BLOCK, output_dtype=ELEMENT_TYPES[FP4],
    )  # fmt: skip


def decode_fp4(b: Builder, codes: Value, step: Value) -> Value:
    return b.call(
        "DequantizeLinear", codes, step, dtype=torch.float32, axis=-1, block_size=nvfp4.BLOCK
    )


def weight_fp4(b: Builder, codes: Weight, scales: Weight, g: Weight) -> Value:
    """Two DequantizeLinear: scales by the global scale, codes by the result."""
    *rows, width = codes.shape
    step = b.call(
        "DequantizeLinear",
        b.weight(scales, torch.float8_e4m3fn, scales.shape),
        b.weight(g, torch.float32, ()),
        dtype=torch.float32,
    )
    return decode_fp4(b, b.weight(codes, FP4, (*rows, width * 2)), step)


def encode_levels(b: Builder, x: Value, step: Value) -> Value:
    """Values of E2M1 as fp32: rounded to multiples of half a binade, nearest with ties to even."""
    zero = b.scalar(0.0, torch.float32)
    inverse = b.where(_is_zero(b, step), zero, b.call("Reciprocal", step))
    y = b.mul(blocks(b, x), unsqueeze(b, inverse))
    low, high = (b.scalar(sign * nvfp4.E2M1_MAX, torch.float32) for sign in (-1, 1))
    y = b.call("Clip", y, low, high)
    magnitude = b.call("Abs", y)
    half, one, two = (b.scalar(number, torch.float32) for number in (0.5, 1.0, 2.0))
    coarse = b.where(b.binary("Less", magnitude, 4.0, torch.bool), one, two)
    spacing = b.where(b.binary("Less", magnitude, 2.0, torch.bool), half, coarse)
    return joined(b, b.mul(b.call("Round", b.div(y, spacing)), spacing))


def decode_levels(b: Builder, levels: Value, step: Value) -> Value:
    return joined(b, b.mul(blocks(b, levels), unsqueeze(b, step)))


def weight_by_table(b: Builder, codes: Weight, scales: Weight, g: Weight) -> Value:
    stored = b.cast(b.weight(scales, torch.float8_e4m3fn, scales.shape), torch.float32)
    step = b.mul(stored, b.weight(g, torch.float32, ()))
    return decode_levels(b, unpack(b, b.weight(codes, torch.uint8, codes.shape)), step)


def unpack(b: Builder, codes: Value, through: torch.dtype = torch.int32) -> Value:
    """Packed codes [..., K/2] -> fp32 values of E2M1 [..., K], by a table of bytes."""
    magnitudes = torch.tensor(nvfp4.E2M1_VALUES)
    values = torch.cat([magnitudes, -magnitudes])
    byte = torch.arange(256)
    table = b.constant(torch.stack([values[byte & 15], values[byte >> 4]], dim=-1))
    pairs = b.gather(table, b.cast(b.cast(codes, through), torch.int32), 0)
    *lead, width, _ = pairs.shape
    assert width is not None
    return b.reshape(pairs, (*lead, width * 2))


def blocks(b: Builder, x: Value) -> Value:
    """[..., K] -> [..., K/16, 16]."""
    return b.reshape(x, (*x.shape[:-1], _blocks_of(x), nvfp4.BLOCK))


def joined(b: Builder, x: Value) -> Value:
    """[..., K/16, 16] -> [..., K]."""
    count = x.shape[-2]
    assert count is not None
    return b.reshape(x, (*x.shape[:-2], count * nvfp4.BLOCK))


def unsqueeze(b: Builder, x: Value) -> Value:
    """[...] -> [..., 1]."""
    return b.call("Unsqueeze", x, b.sizes(-1), shape=(*x.shape, 1))


def _blocks_of(x: Value) -> int:
    width = x.shape[-1]
    assert width is not None
    return width // nvfp4.BLOCK


def _is_zero(b: Builder, x: Value) -> Value:
    return b.binary("Equal", x, 0.0, torch.bool)


BY_TYPE = Encoding(encode_fp4, decode_fp4, weight_fp4, torch.float8_e4m3fn)
BY_TABLE = Encoding(encode_levels, decode_levels, weight_by_table, torch.float32)
