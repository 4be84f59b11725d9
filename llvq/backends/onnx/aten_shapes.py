"""Translations of ATen operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translation import Operand, Translator, refuse

LAST = 2**63 - 1


def reshape(t: Translator, out: Tensor, x: Operand, shape: Sequence[int]) -> Value:
    return t.b.reshape(t.value(x), out.shape)


def permute(t: Translator, out: Tensor, x: Operand, dims: Sequence[int]) -> Value:
    return t.b.transpose(t.value(x), [dim % out.ndim for dim in dims])


def expand(
    t: Translator, out: Tensor, x: Operand, size: Sequence[int] | Operand, implicit: bool = False
) -> Value:
    value = t.value(x)
    if value.shape == tuple(out.shape):
        return value
    return t.b.call("Expand", value, t.b.sizes(*out.shape), shape=out.shape)


def clone(t: Translator, out: Tensor, x: Operand, memory_format: Any = None) -> Value:
    return t.value(x)


def cat(t: Translator, out: Tensor, tensors: Sequence[Operand], dim: int = 0) -> Value:
    """Parts without elements are left out: not every reader knows them."""
    values = [t.value(x) for x in tensors]
    return t.b.concat([value for value in values if 0 not in value.shape], dim)


def split(t: Translator, out: Sequence[Tensor], x: Operand, _: Any, dim: int = 0) -> Any:
    """`split_with_sizes` and `chunk`: the sizes are those of the results."""
    value, axis = t.value(x), dim % out[0].ndim
    sizes = t.b.sizes(*(part.shape[axis] for part in out))
    results = [(value.dtype, tuple(part.shape)) for part in out]
    return t.b.calls_of("Split", (value, sizes), results, axis=axis)


def unbind(t: Translator, out: Sequence[Tensor], x: Operand, dim: int = 0) -> Any:
    return tuple(select(t, part, x, dim, index) for index, part in enumerate(out))


def select(t: Translator, out: Tensor, x: Operand, dim: int, index: int) -> Value:
    value = t.value(x)
    return t.b.gather(value, t.b.constant(torch.tensor(index)), dim % len(value.shape))


def index_select(t: Translator, out: Tensor, x: Operand, dim: int, index: Operand) -> Value:
    return t.b.gather(t.value(x), t.value(index), dim)


def slice_(
    t: Translator, out: Tensor, x: Operand, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    numbers = (start or 0, LAST if end is None else end, dim % out.ndim, step)
    return t.b.call("Slice", t.value(x), *map(t.b.sizes, numbers), shape=out.shape)


def upsample_nearest_exact(
    t: Translator, out: Tensor, x: Operand, output_size: Any, scale_factors: Sequence[float] | None
) -> Value:
    """Whole factors alone: each pixel is repeated, exactly in any dtype."""
    value = t.value(x)
    *lead, height, width = value.shape
    assert height is not None and width is not None
    if out.shape[-2] % height or out.shape[-1] % width:
        raise refuse(
            f"an upsampling from {height}x{width} to {list(out.shape[-2:])}",
            "whole factors are translated",
        )
    factors = out.shape[-2] // height, out.shape[-1] // width
    spread = t.b.reshape(value, (*lead, height, 1, width, 1))
    repeated = torch.Size([*out.shape[:-2], height, factors[0], width, factors[1]])
    return t.b.reshape(expand(t, torch.empty(repeated, device="meta"), spread, ()), out.shape)


TABLE = {
    "aten.reshape.default": reshape,
    "aten.permute.default": permute,
    "aten.expand.default": expand,
    "aten.expand_as.default": expand,
    "aten.clone.default": clone,
    "aten.cat.default": cat,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.unbind.int": unbind,
    "aten.select.int": select,
    "aten.index_select.default": index_select,
    "aten.slice.Tensor": slice_,
    "aten._upsample_nearest_exact2d.vec": upsample_nearest_exact,
}
