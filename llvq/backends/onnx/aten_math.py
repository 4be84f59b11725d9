"""Translations of ATen operators that compute.

Where ATen computes bf16 in fp32 and rounds once, so does the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translation import Operand, Translator, refuse


def to_dtype(
    t: Translator, out: Tensor, x: Operand, dtype: torch.dtype, non_blocking: bool = False,
    copy: bool = False, memory_format: Any = None,
) -> Value:  # fmt: skip
    return t.cast(t.value(x), dtype)


def arithmetic(op: str, t: Translator, out: Tensor, x: Operand, y: Operand | float) -> Value:
    """In the dtype of the result; with a number that this dtype does not hold, in fp32."""
    left = t.cast(t.value(x), out.dtype)
    if isinstance(y, int | float):
        exact = torch.tensor(y, dtype=left.dtype).item() == y
        wide = left if exact or not _is_half(left) else t.fp32(left)
        return t.cast(t.b.binary(op, wide, y), out.dtype)
    return t.b.binary(op, left, t.cast(t.value(y), out.dtype))


def add(t: Translator, out: Tensor, x: Operand, y: Operand | float) -> Value:
    return arithmetic("Add", t, out, x, y)


def sub(t: Translator, out: Tensor, x: Operand, y: Operand | float) -> Value:
    return arithmetic("Sub", t, out, x, y)


def mul(t: Translator, out: Tensor, x: Operand, y: Operand | float) -> Value:
    return arithmetic("Mul", t, out, x, y)


def div(t: Translator, out: Tensor, x: Operand, y: Operand | float) -> Value:
    return arithmetic("Div", t, out, x, y)


def neg(t: Translator, out: Tensor, x: Operand) -> Value:
    return t.b.call("Neg", t.value(x))


def cos(t: Translator, out: Tensor, x: Operand) -> Value:
    return t.b.call("Cos", t.value(x))


def sin(t: Translator, out: Tensor, x: Operand) -> Value:
    return t.b.call("Sin", t.value(x))


def clamp_min(t: Translator, out: Tensor, x: Operand, least: float) -> Value:
    return t.b.binary("Max", t.value(x), least)


def silu(t: Translator, out: Tensor, x: Operand) -> Value:
    wide = t.fp32(x)
    return t.cast(t.b.mul(wide, t.b.call("Sigmoid", wide)), out.dtype)


def gelu(t: Translator, out: Tensor, x: Operand, approximate: str = "none") -> Value:
    return t.cast(t.b.call("Gelu", t.fp32(x), approximate=approximate), out.dtype)


def vector_norm(
    t: Translator, out: Tensor, x: Operand, ord: float = 2.0, dim: Sequence[int] | None = None,
    keepdim: bool = False, dtype: torch.dtype | None = None,
) -> Value:  # fmt: skip
    if ord != 2 or dtype is not None:
        raise refuse(f"linalg_vector_norm of order {ord}", "order 2 is translated, of its dtype")
    return t.cast(t.b.reduce("ReduceL2", t.fp32(x), dim or (), keep=keepdim), out.dtype)


def layer_norm(
    t: Translator, out: Tensor, x: Operand, normalized_shape: Sequence[int],
    weight: Operand | None = None, bias: Operand | None = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:  # fmt: skip
    scale = torch.ones(normalized_shape) if weight is None else weight
    inputs = [t.fp32(x), t.fp32(scale), *([] if bias is None else [t.fp32(bias)])]
    axis = -len(normalized_shape)
    return t.cast(t.b.call("LayerNormalization", *inputs, axis=axis, epsilon=eps), out.dtype)


def linear(
    t: Translator, out: Tensor, x: Operand, weight: Operand, bias: Operand | None = None
) -> Value:
    product = t.b.matmul(t.value(x), t.b.transpose(t.value(weight), (1, 0)))
    return product if bias is None else t.b.add(product, t.value(bias))


def convolution(
    t: Translator, out: Tensor, x: Operand, weight: Operand, bias: Operand | None = None,
    stride: Sequence[int] = (1,), padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:  # fmt: skip
    if isinstance(padding, str):
        raise refuse(f"a convolution padded by {padding!r}", "padding is translated from numbers")
    rank = out.ndim - 2
    strides, pads, dilations = (_each(sizes, rank) for sizes in (stride, padding, dilation))
    inputs = [t.value(x), t.value(weight), *([] if bias is None else [t.value(bias)])]
    return t.b.call(
        "Conv", *inputs, shape=out.shape,
        strides=strides, pads=pads * 2, dilations=dilations, group=groups,
    )  # fmt: skip


def _each(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(sizes) * rank if len(sizes) == 1 else tuple(sizes)


def _is_half(x: Value) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


TABLE = {
    "aten.to.dtype": to_dtype,
    "aten.add.Tensor": add,
    "aten.sub.Tensor": sub,
    "aten.mul.Tensor": mul,
    "aten.div.Tensor": div,
    "aten.neg.default": neg,
    "aten.cos.default": cos,
    "aten.sin.default": sin,
    "aten.clamp_min.default": clamp_min,
    "aten.silu.default": silu,
    "aten.gelu.default": gelu,
    "aten.linalg_vector_norm.default": vector_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.linear.default": linear,
    "aten.conv2d.default": convolution,
    "aten.conv3d.default": convolution,
}
