"""Ops on NVFP4 values: quantize, dequantize, the W4A4 linear, and producers fused with quantize.

Shapes: K reduction dim, F output features, S stacked weights; B, N, E as in model_ops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.model_ops import norm_modulate
from llvq.dialect.registry import BF16_ROUNDING, EXACT, op, require_same_k
from llvq.formats import nvfp4


def packed_like(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `quantize` returns for `x` [..., K]: codes, scales, global scale."""
    *rows, k = x.shape
    return (
        x.new_empty((*rows, k // 2), dtype=torch.uint8),
        x.new_empty((*rows, k // nvfp4.BLOCK), dtype=torch.float8_e4m3fn),
        x.new_empty((), dtype=torch.float32),
    )


def _quantize_fake(
    x: Tensor, block_rule: str, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return packed_like(x)


@op(fake=_quantize_fake, tolerance=EXACT)
def quantize(
    x: Tensor, block_rule: str, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """NVFP4 codes [..., K/2], scales [..., K/16] and global scale [] of x [..., K].

    The global scale is that of x, or the static one that is given (fp32 []): what it cannot reach
    saturates.
    """
    codes, scales, g = nvfp4.quantize(x, block_rule=block_rule, global_scale=global_scale)
    return codes, scales, g.clone()  # A result must not be the argument itself.


def _dequantize_fake(
    codes: Tensor, scales: Tensor, global_scale: Tensor, segments: Sequence[int], dtype: torch.dtype
) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], codes.shape[-1] * 2), dtype=dtype)


@op(fake=_dequantize_fake, tolerance=EXACT)
def dequantize(
    codes: Tensor, scales: Tensor, global_scale: Tensor, segments: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """The values of NVFP4 codes. `segments` are the row counts that `global_scale` [S] covers."""
    return nvfp4.dequantize(codes, scales, global_scale, dtype, segments=tuple(segments) or None)


def _nvfp4_linear_fake(
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
    require_same_k(2 * x_codes.shape[-1], 2 * w_codes.shape[-1])
    return x_codes.new_empty((*x_codes.shape[:-1], w_codes.shape[0]), dtype=dtype)


@op(fake=_nvfp4_linear_fake, tolerance=BF16_ROUNDING)
def nvfp4_linear(
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
    """W4A4 linear: `dequantize(x) @ dequantize(w).T + bias`.

    The weight [F, K] may be several matrices stacked along F; `segments` counts the rows of each
    and `w_global` [S] holds a global scale for each, so stacking requantizes nothing.
    """
    x = dequantize.reference(x_codes, x_scales, x_global, (), dtype)
    w = dequantize.reference(w_codes, w_scales, w_global, segments, dtype)
    return F.linear(x, w, bias)


def _norm_modulate_quantize_fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    block_rule: str,
    global_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return packed_like(x)


@op(fake=_norm_modulate_quantize_fake, tolerance=EXACT)
def norm_modulate_quantize(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    block_rule: str,
    global_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize(norm_modulate(x, scale, shift, eps))`."""
    y = norm_modulate.reference(x, scale, shift, eps)
    return quantize.reference(y, block_rule, global_scale)


def _gelu_quantize_fake(
    x: Tensor,
    approximate: str,
    block_rule: str,
    global_scale: Tensor | None = None,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return packed_like(x)


@op(fake=_gelu_quantize_fake, tolerance=EXACT)
def gelu_quantize(
    x: Tensor,
    approximate: str,
    block_rule: str,
    global_scale: Tensor | None = None,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize(gelu(x) * smooth)`; `smooth` [K] is in the dtype of x, and may be left out."""
    y = F.gelu(x, approximate=approximate)
    return quantize.reference(y if smooth is None else y * smooth, block_rule, global_scale)
