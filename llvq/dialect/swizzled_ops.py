"""Ops on weights whose scales lie in the 128x4 atoms that FP4 tensor cores read.

Shapes: K reduction dim, F output features, S stacked weights; A = ceil(F/128) * ceil(K/64) * 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from llvq.dialect.nvfp4_ops import nvfp4_linear
from llvq.dialect.registry import BF16_ROUNDING, EXACT, op, require_same_k
from llvq.formats import nvfp4


def _size(features: int, blocks: int) -> int:
    """How many scales the atoms of linear scales [features, blocks] hold, padding included."""
    return ceil(features / 128) * ceil(blocks / 4) * 512


def _swizzle_scales_fake(scales: Tensor) -> Tensor:
    features, blocks = scales.shape
    return scales.new_empty((_size(features, blocks),))


@op(fake=_swizzle_scales_fake, tolerance=EXACT)
def swizzle_scales(scales: Tensor) -> Tensor:
    """The scales e4m3 [F, K/16] of a weight as atoms, flat [A]; padded with zeros.

    It reads weights alone: a loader may run it once and keep what it gives.
    """
    return nvfp4.swizzle_scales(scales)


def _nvfp4_linear_swizzled_fake(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    features, half = w_codes.shape
    require_same_k(2 * x_codes.shape[-1], 2 * half)
    wanted = _size(features, half // 8)
    if w_scales.shape != (wanted,):
        raise ValueError(f"w_scales is {list(w_scales.shape)}, the atoms of w are [{wanted}]")
    return x_codes.new_empty((*x_codes.shape[:-1], features), dtype=dtype)


@op(fake=_nvfp4_linear_swizzled_fake, tolerance=BF16_ROUNDING)
def nvfp4_linear_swizzled(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """`nvfp4_linear` of a weight whose scales are what `swizzle_scales` gives, flat [A].

    The scales of x are linear [..., K/16], as `quantize` gives them.
    """
    features, half = w_codes.shape
    linear = nvfp4.unswizzle_scales(w_scales, features, half // 8)
    w = (w_codes, linear, w_global)
    return nvfp4_linear.reference(x_codes, x_scales, x_global, *w, bias, segments, dtype)
