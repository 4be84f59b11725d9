"""Translations of the llvq operators that a video transformer is raised to.

Each is the composition that its reference is, in the same order and with the same roundings;
`llvq.dialect.model_ops` explains them. Shapes: B batch, N tokens, H heads, D head dim, E = H*D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translation import Operand, Translator, refuse


def attention(
    t: Translator, out: Any, q: Operand, k: Operand, v: Operand,
    mask: Operand | None = None, scale: float | None = None,
) -> Value:  # fmt: skip
    """Products in the dtype of the model, softmax in fp32."""
    if mask is not None:
        raise refuse("attention with a mask", "attention over all keys is translated")
    queries, keys, values = (t.value(x) for x in (q, k, v))
    head_dim = queries.shape[-1]
    assert head_dim is not None
    scores = t.b.matmul(t.b.transpose(queries, (0, 2, 1, 3)), t.b.transpose(keys, (0, 2, 3, 1)))
    scaled = t.b.mul(t.fp32(scores), head_dim**-0.5 if scale is None else scale)
    weights = t.b.cast(t.b.call("Softmax", scaled, axis=-1), queries.dtype)
    result = t.b.matmul(weights, t.b.transpose(values, (0, 2, 1, 3)))
    return t.b.transpose(result, (0, 2, 1, 3))


def rms_norm(
    t: Translator, out: Any, x: Operand, weight: Operand, eps: float, round_first: bool
) -> Value:
    value, wide = t.value(x), t.fp32(x)
    mean = t.b.reduce("ReduceMean", t.b.mul(wide, wide), [-1], keep=True)
    deviation = t.b.call("Sqrt", t.b.add(mean, eps))
    normed = t.b.mul(wide, t.b.call("Reciprocal", deviation))
    if round_first:
        return t.b.mul(t.b.cast(normed, value.dtype), t.value(weight))
    return t.b.cast(t.b.mul(normed, t.fp32(weight)), value.dtype)


def rope(t: Translator, out: Any, x: Operand, cos: Operand, sin: Operand) -> Value:
    """x [B, N, H, D]; cos, sin [N, D/2]. The number of tokens may be unknown."""
    value = t.value(x)
    *lead, width = value.shape
    assert width is not None
    pairs = t.b.reshape(t.fp32(value), (*lead, width // 2, 2))
    even, odd = (t.b.gather(pairs, t.b.constant(torch.tensor(i)), -1) for i in (0, 1))
    c, s = (t.b.call("Unsqueeze", a, t.b.sizes(1), shape=(a.shape[0], 1, a.shape[1]))
            for a in (t.value(cos), t.value(sin)))  # fmt: skip
    first = t.b.sub(t.b.mul(even, c), t.b.mul(odd, s))
    second = t.b.add(t.b.mul(even, s), t.b.mul(odd, c))
    parts = [t.b.call("Unsqueeze", a, t.b.sizes(-1), shape=(*a.shape, 1)) for a in (first, second)]
    rotated = t.b.reshape(t.b.concat(parts, -1), value.shape)
    return t.b.cast(rotated, value.dtype)


def rms_norm_rope(
    t: Translator, out: Tensor, x: Operand, weight: Operand, cos: Operand, sin: Operand,
    heads: int, eps: float, round_first: bool,
) -> Value:  # fmt: skip
    normed = rms_norm(t, None, x, weight, eps, round_first)
    return rope(t, None, t.b.reshape(normed, out.shape), cos, sin)


def norm_modulate(
    t: Translator, out: Any, x: Operand, scale: Operand, shift: Operand, eps: float
) -> Value:
    """x [B, N, E]; scale and shift [B, G, E], each for N/G tokens."""
    value, by, to = t.value(x), t.value(scale), t.value(shift)
    ones = t.b.constant(torch.ones(_channels(value)))
    normed = t.b.call("LayerNormalization", t.fp32(value), ones, axis=-1, epsilon=eps)
    if by.dtype == value.dtype:
        normed = t.b.cast(normed, value.dtype)
    factor, term = _per_group(t, t.b.add(by, 1.0)), _per_group(t, to)
    modulated = t.b.add(t.b.mul(_grouped(t, normed, by), factor), term)
    return t.b.cast(t.b.reshape(modulated, value.shape), value.dtype)


def gate_residual(t: Translator, out: Any, x: Operand, y: Operand, gate: Operand) -> Value:
    value, by = t.value(x), t.value(gate)
    gated = t.b.mul(_grouped(t, t.value(y), by), _per_group(t, by))
    joined = t.b.reshape(gated, value.shape)
    return t.b.cast(t.b.add(t.b.cast(value, by.dtype), joined), value.dtype)


def _channels(x: Value) -> int:
    width = x.shape[-1]
    assert width is not None
    return width


def _grouped(t: Translator, x: Value, vector: Value) -> Value:
    """[B, N, E] -> [B, G, N/G, E] for the G groups of a vector."""
    batch, tokens, width = x.shape
    groups = vector.shape[1]
    assert tokens is not None and groups is not None
    return t.b.reshape(x, (batch, groups, tokens // groups, width))


def _per_group(t: Translator, vector: Value) -> Value:
    """[B, G, E] -> [B, G, 1, E]."""
    batch, groups, width = vector.shape
    return t.b.reshape(vector, (batch, groups, 1, width))


TABLE = {
    "llvq.attention.default": attention,
    "llvq.rms_norm.default": rms_norm,
    "llvq.rope.default": rope,
    "llvq.rms_norm_rope.default": rms_norm_rope,
    "llvq.norm_modulate.default": norm_modulate,
    "llvq.gate_residual.default": gate_residual,
}
