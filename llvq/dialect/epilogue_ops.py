"""W4A4 linears with what follows them, for tensor cores that multiply FP4.

The first seven arguments and `segments` are those of `nvfp4_linear_swizzled`: linear scales of x,
scales of the weight in atoms. What comes out of the linear is rounded to `dtype`, as it is when it
is stored.

Shapes: K reduction dim, F output features, S stacked weights; B, N, E, G as in model_ops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.model_ops import gate_residual
from llvq.dialect.nvfp4_ops import gelu_quantize, packed_like
from llvq.dialect.registry import BF16_ROUNDING, CODE_ROUNDING, SUM_ROUNDING, op
from llvq.dialect.swizzled_ops import nvfp4_linear_swizzled
from llvq.formats import nvfp4


def _linear(*operands: object) -> Tensor:
    """What the linear gives, on `meta`; raises ValueError for operands that do not fit."""
    y: Tensor = nvfp4_linear_swizzled.overload(*operands)
    return y


def _nvfp4_linear_gelu_quantize_fake(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    approximate: str,
    block_rule: str,
    global_scale: Tensor,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    return packed_like(_linear(*x, *w, bias, segments, dtype))


@op(fake=_nvfp4_linear_gelu_quantize_fake, tolerance=CODE_ROUNDING)
def nvfp4_linear_gelu_quantize(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    approximate: str,
    block_rule: str,
    global_scale: Tensor,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gelu_quantize` of the linear, by a static scale: NVFP4 of [..., F]."""
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    y = nvfp4_linear_swizzled.reference(*x, *w, bias, segments, dtype)
    return gelu_quantize.reference(y, approximate, block_rule, global_scale, smooth)


def _nvfp4_linear_gelu_fake(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    approximate: str,
    block_rule: str,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    y = _linear(*x, *w, bias, segments, dtype)
    return y, y.new_empty((), dtype=torch.float32)


@op(fake=_nvfp4_linear_gelu_fake, tolerance=BF16_ROUNDING)
def nvfp4_linear_gelu(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    approximate: str,
    block_rule: str,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gelu(linear) * smooth` [..., F], and the dynamic global scale [] by which a `quantize` of
    that block rule then quantizes it."""
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    y = nvfp4_linear_swizzled.reference(*x, *w, bias, segments, dtype)
    y = F.gelu(y, approximate=approximate)
    y = y if smooth is None else y * smooth
    return y, nvfp4.global_scale(nvfp4.amax_of(y), block_rule)


def _nvfp4_linear_gate_residual_fake(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    residual: Tensor,
    gate: Tensor,
) -> Tensor:
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    y = _linear(*x, *w, bias, segments, dtype)
    if y.shape != residual.shape:
        raise ValueError(f"the linear gives {list(y.shape)}, the residual {list(residual.shape)}")
    return gate_residual.overload(residual, y, gate)


@op(fake=_nvfp4_linear_gate_residual_fake, tolerance=SUM_ROUNDING)
def nvfp4_linear_gate_residual(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
    residual: Tensor,
    gate: Tensor,
) -> Tensor:
    """`gate_residual(residual, linear, gate)`: residual [B, N, E], gate [B, G, E], E = F."""
    x, w = (x_codes, x_scales, x_global), (w_codes, w_scales, w_global)
    y = nvfp4_linear_swizzled.reference(*x, *w, bias, segments, dtype)
    return gate_residual.reference(residual, y, gate)
