"""Translations of the llvq operators on NVFP4 values.

The three results of `quantize` (codes, scales, global scale) are one `Quantized` here: whoever
reads them reads all three. A weight of several stacked matrices becomes one product for each: a
DequantizeLinear has one scale, and the matrices lie one after the other in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from llvq.backends.onnx import model_ops
from llvq.backends.onnx.quantization import Quantized, dequantize
from llvq.backends.onnx.records import Value, Weight
from llvq.backends.onnx.translation import Operand, Translator, refuse


def quantize(
    t: Translator, out: Any, x: Operand, block_rule: str, global_scale: Operand | None = None
) -> tuple[Quantized, ...]:
    static = None if global_scale is None else t.value(global_scale)
    return (t.dialect.quantize(t.b, t.value(x), block_rule, static),) * 3


def dequantize_(
    t: Translator, out: Any, codes: Any, scales: Any, global_scale: Any, segments: Sequence[int],
    dtype: torch.dtype,
) -> Value:  # fmt: skip
    if isinstance(codes, Quantized):
        values = dequantize(t.b, codes, t.dialect.encoding)
        values = values if codes.outer is None else t.b.mul(values, codes.outer)
    else:
        rows = _segments(codes, scales, global_scale, segments)
        values = t.b.concat([t.dialect.encoding.weight(t.b, *row) for row in rows], 0)
    return t.cast(values, dtype)


def nvfp4_linear(
    t: Translator, out: Any, x_codes: Any, x_scales: Any, x_global: Any, w_codes: Any,
    w_scales: Any, w_global: Any, bias: Operand | None, segments: Sequence[int],
    dtype: torch.dtype,
) -> Value:  # fmt: skip
    if not isinstance(x_codes, Quantized):
        raise refuse("a linear of packed codes", "codes are translated where they are made")
    x = t.cast(dequantize(t.b, x_codes, t.dialect.encoding), dtype)
    products = []
    for row in _segments(w_codes, w_scales, w_global, segments):
        weight = t.cast(t.dialect.encoding.weight(t.b, *row), dtype)
        products.append(t.b.matmul(x, t.b.transpose(weight, (1, 0))))
    product = t.b.concat(products, -1)
    if x_codes.outer is not None:
        product = t.cast(t.b.mul(t.fp32(product), x_codes.outer), dtype)
    return product if bias is None else t.b.add(product, t.value(bias))


def norm_modulate_quantize(
    t: Translator, out: Any, x: Operand, scale: Operand, shift: Operand, eps: float,
    block_rule: str, global_scale: Operand | None = None,
) -> tuple[Quantized, ...]:  # fmt: skip
    modulated = model_ops.norm_modulate(t, None, x, scale, shift, eps)
    return quantize(t, out, modulated, block_rule, global_scale)


def gelu_quantize(
    t: Translator, out: Any, x: Operand, approximate: str, block_rule: str,
    global_scale: Operand | None = None, smooth: Operand | None = None,
) -> tuple[Quantized, ...]:  # fmt: skip
    value = t.value(x)
    activated = t.b.cast(t.b.call("Gelu", t.fp32(x), approximate=approximate), value.dtype)
    if smooth is not None:
        activated = t.b.mul(activated, t.value(smooth))
    return quantize(t, out, activated, block_rule, global_scale)


def _segments(
    codes: Any, scales: Any, global_scale: Any, segments: Sequence[int]
) -> list[tuple[Weight, Weight, Weight]]:
    """Each stacked matrix with the scales of its rows and its own global scale."""
    if not all(isinstance(part, Weight) for part in (codes, scales, global_scale)):
        raise refuse("a weight that is computed", "weights are translated that lie in a file")
    counts = tuple(segments) or codes.shape[:1]
    starts = accumulate((0, *counts[:-1]))
    flat = Weight(global_scale.name, global_scale.dtype, (len(counts),))
    return [
        (codes.rows(start, count), scales.rows(start, count), flat.rows(index, 1))
        for index, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]


TABLE = {
    "llvq.quantize.default": quantize,
    "llvq.dequantize.default": dequantize_,
    "llvq.nvfp4_linear.default": nvfp4_linear,
    "llvq.norm_modulate_quantize.default": norm_modulate_quantize,
    "llvq.gelu_quantize.default": gelu_quantize,
}
