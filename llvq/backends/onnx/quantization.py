"""Quantization of activations in operators of ONNX.

The arithmetic is that of `llvq.formats.nvfp4`, in its order; the encoding is the dialect's.

Shapes: x [..., K], scales [..., K/16], global scale [].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.encodings import Encoding, blocks
from llvq.backends.onnx.records import Value
from llvq.errors import TargetError
from llvq.formats import nvfp4

RULES = ("max", "four_over_six")


@dataclass(frozen=True)
class Quantized:
    """NVFP4 values in the graph. They mean `decode(codes) * scales * global_scale * outer`."""

    codes: Value
    scales: Value
    global_scale: Value
    outer: Value | None = None


def quantize(
    b: Builder, x: Value, rule: str, encoding: Encoding, static: Value | None = None
) -> Quantized:
    """By the global scale of x, or a static one. Raises TargetError for a rule not known here."""
    check_rule(rule, RULES)
    x = b.cast(x, torch.float32)
    amax_B = b.reduce("ReduceMax", blocks(b, b.call("Abs", x)), [-1])
    g = global_scale(b, b.reduce("ReduceMax", amax_B), rule) if static is None else static
    ideal = b.mul(b.div(amax_B, nvfp4.E2M1_MAX), b.call("Reciprocal", g))
    scale = round_e4m3(b, ideal)
    if rule == "four_over_six":
        other = round_e4m3(b, b.mul(ideal, 1.5))
        better = b.binary(
            "Less", _error(b, x, other, g, encoding), _error(b, x, scale, g, encoding), torch.bool
        )
        scale = b.where(better, other, scale)
    codes = encoding.encode(b, x, b.mul(scale, g))
    return Quantized(codes, b.cast(scale, encoding.scale_dtype), g)


def dequantize(b: Builder, q: Quantized, encoding: Encoding) -> Value:
    """fp32 values, without `outer`."""
    return encoding.decode(b, q.codes, decoded_scales(b, q.scales, q.global_scale))


def decoded_scales(b: Builder, scales: Value, g: Value) -> Value:
    if scales.dtype == torch.float8_e4m3fn:
        return b.call("DequantizeLinear", scales, g, dtype=torch.float32)
    return b.mul(scales, g)


def check_rule(rule: str, known: tuple[str, ...]) -> None:
    if rule not in known:
        raise TargetError(
            f"activations are quantized by {rule}",
            because=f"this dialect of ONNX can express {', '.join(known)}",
            fix='quantize again with a recipe that has [linear] activation_rule = "max"'
            + ("" if "four_over_six" in known else ", or use --dialect standard"),
        )


def global_scale(b: Builder, amax: Value, rule: str) -> Value:
    """`nvfp4.global_scale`, without its care for NaN."""
    largest = nvfp4.FOUR_OVER_SIX_SCALE_MAX if rule == "four_over_six" else nvfp4.E4M3_MAX
    limit = b.scalar(nvfp4.E2M1_MAX * largest, torch.float32)
    scale = b.call("Reciprocal", b.div(limit, amax))
    scale = b.binary("Max", scale, nvfp4.GLOBAL_SCALE_MIN)
    is_zero = b.binary("Equal", amax, 0.0, torch.bool)
    return b.where(is_zero, b.scalar(1.0, torch.float32), scale)


def round_e4m3(b: Builder, x: Value) -> Value:
    """To the nearest value of E4M3, saturating."""
    return b.cast(b.cast(b.binary("Min", x, nvfp4.E4M3_MAX), torch.float8_e4m3fn), torch.float32)


def _error(b: Builder, x: Value, scale: Value, g: Value, encoding: Encoding) -> Value:
    """The squared error of each block under that scale."""
    step = b.mul(scale, g)
    difference = b.sub(encoding.decode(b, encoding.encode(b, x, step), step), x)
    return b.reduce("ReduceSum", blocks(b, b.mul(difference, difference)), [-1])
