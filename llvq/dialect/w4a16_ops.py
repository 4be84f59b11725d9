"""Ops of numerics `w4a16`: weights stay NVFP4, activations are not quantized.

Shapes: K reduction dim, F output features, S stacked weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.nvfp4_ops import dequantize
from llvq.dialect.registry import BF16_ROUNDING, op, require_same_k


def _nvfp4_linear_w4a16_fake(
    x: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    require_same_k(x.shape[-1], 2 * w_codes.shape[-1])
    return x.new_empty((*x.shape[:-1], w_codes.shape[0]), dtype=dtype)


@op(fake=_nvfp4_linear_w4a16_fake, tolerance=BF16_ROUNDING)
def nvfp4_linear_w4a16(
    x: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """W4A16 linear: `x @ dequantize(w).T + bias` for x [..., K] of `dtype`; w as `nvfp4_linear`."""
    return F.linear(x, dequantize.reference(w_codes, w_scales, w_global, segments, dtype), bias)
