"""Translations of the llvq operators of a linear with a low-rank branch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from llvq.backends.onnx.aten_math import linear
from llvq.backends.onnx.nvfp4_ops import nvfp4_linear, quantize
from llvq.backends.onnx.records import Value, Weight
from llvq.backends.onnx.translation import Operand, Translator, refuse


def lowrank_add(
    t: Translator, out: Any, y: Operand, x: Operand, down: Operand, up: Operand
) -> Value:
    return t.b.add(t.value(y), linear(t, out, linear(t, out, x, down), up))


def quantize_lowrank(
    t: Translator, out: Any, x: Operand, down: Operand, block_rule: str,
    global_scale: Operand | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    return *quantize(t, out, x, block_rule, global_scale), linear(t, out, x, down)


def nvfp4_linear_lowrank(
    t: Translator, out: Tensor, x_codes: Any, x_scales: Any, x_global: Any, w_codes: Any,
    w_scales: Any, w_global: Any, bias: Operand | None, x_down: Value, up: Any,
    segments: Sequence[int], dtype: Any,
) -> Value:  # fmt: skip
    """Each stacked matrix adds its part of `x_down` [..., S*R] times its rows of up [F, R]."""
    if not isinstance(up, Weight):
        raise refuse("a low-rank branch that is computed", "branches are translated from a file")
    packed = (x_codes, x_scales, x_global, w_codes, w_scales, w_global)
    y = nvfp4_linear(t, out, *packed, bias, segments, dtype)
    rank, lead = up.shape[1], x_down.shape[:-1]
    results = [(x_down.dtype, (*lead, rank))] * len(segments)
    sizes = t.b.sizes(*[rank] * len(segments))
    parts = t.b.calls_of("Split", (x_down, sizes), results, axis=len(lead))
    starts = accumulate((0, *segments[:-1]))
    rows = [up.rows(start, count) for start, count in zip(starts, segments, strict=True)]
    products = [linear(t, out, part, row) for part, row in zip(parts, rows, strict=True)]
    return t.b.add(y, t.b.concat(products, -1))


TABLE = {
    "llvq.lowrank_add.default": lowrank_add,
    "llvq.quantize_lowrank.default": quantize_lowrank,
    "llvq.nvfp4_linear_lowrank.default": nvfp4_linear_lowrank,
}
