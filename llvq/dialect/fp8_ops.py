"""Ops of numerics `w4a8`: NVFP4 weights widened to FP8, activations in FP8 with a scale per token.

Values are E4M3, and `values * scale` is what they stand for (`llvq/formats/fp8.py`). Shapes: K
reduction dim, F output features, S stacked weights; B, N, E, G as in model_ops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.model_ops import gate_residual, norm_modulate, rms_norm, rope
from llvq.dialect.nvfp4_ops import dequantize
from llvq.dialect.registry import BF16_ROUNDING, EXACT, Tolerance, op, require_same_k
from llvq.formats import fp8
from llvq.formats.nvfp4 import E4M3_MAX

# A norm that is summed in another order, or another tanh, may round to the neighbouring code: at
# the top of the range, where values are compared with the largest, that is 32 of 448.
FP8_STEP = Tolerance(33 / 448)
# Under a given scale the largest value may lie anywhere: a step is an eighth of it, at most.
GIVEN_SCALE_STEP = Tolerance(2**-3)


def _like(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `quantize_fp8` returns for `x` [..., K]."""
    *rows, _ = x.shape
    return x.new_empty(x.shape, dtype=fp8.DTYPE), x.new_empty((*rows, 1), dtype=torch.float32)


def _widen_fake(
    codes: Tensor, scales: Tensor, global_scale: Tensor, segments: Sequence[int]
) -> tuple[Tensor, Tensor]:
    rows, half = codes.shape
    return (
        codes.new_empty((rows, 2 * half), dtype=fp8.DTYPE),
        codes.new_empty((rows,), dtype=torch.float32),
    )


@op(fake=_widen_fake, tolerance=EXACT)
def widen(
    codes: Tensor, scales: Tensor, global_scale: Tensor, segments: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """An NVFP4 weight as values e4m3 [F, K] with one scale per output channel, fp32 [F].

    It reads weights alone: a loader may run it once and keep what it gives.
    """
    w = dequantize.reference(codes, scales, global_scale, segments, torch.float32)
    values, scale = fp8.quantize(w, (-1,))
    return values, scale.flatten()


@op(fake=_like, tolerance=EXACT)
def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values e4m3 [..., K] of x [..., K] and one scale per token, fp32 [..., 1]."""
    return fp8.quantize(x, (-1,))


def _fp8_linear_fake(
    x_values: Tensor,
    x_scale: Tensor,
    w_values: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    require_same_k(x_values.shape[-1], w_values.shape[-1])
    return x_values.new_empty((*x_values.shape[:-1], w_values.shape[0]), dtype=dtype)


@op(fake=_fp8_linear_fake, tolerance=BF16_ROUNDING)
def fp8_linear(
    x_values: Tensor,
    x_scale: Tensor,
    w_values: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """W8A8 linear: `(x * x_scale) @ (w * w_scale).T + bias` [..., F] in fp32, rounded once.

    x_values [..., K] with x_scale [..., 1] and w_values [F, K] with w_scale [F] are what
    `quantize_fp8` and `widen` give.
    """
    x = x_values.float() * x_scale
    w = w_values.float() * w_scale.unsqueeze(-1)
    return F.linear(x, w, None if bias is None else bias.float()).to(dtype)


def _norm_modulate_quantize_fp8_fake(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _like(x)


@op(fake=_norm_modulate_quantize_fp8_fake, tolerance=FP8_STEP)
def norm_modulate_quantize_fp8(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`quantize_fp8(norm_modulate(x, scale, shift, eps))`."""
    return quantize_fp8.reference(norm_modulate.reference(x, scale, shift, eps))


def _gelu_quantize_fp8_fake(
    x: Tensor, approximate: str, smooth: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _like(x)


@op(fake=_gelu_quantize_fp8_fake, tolerance=FP8_STEP)
def gelu_quantize_fp8(
    x: Tensor, approximate: str, smooth: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`quantize_fp8(gelu(x) * smooth)`; `smooth` [K] is in the dtype of x, and may be left out."""
    y = F.gelu(x, approximate=approximate)
    return quantize_fp8.reference(y if smooth is None else y * smooth)


def _add_norm_quantize_fp8_fake(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    modulation_scale: Tensor | None,
    modulation_shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if (modulation_scale is None) != (modulation_shift is None):
        raise ValueError("a modulation has a scale and a shift, or there is none")
    if modulation_scale is not None and (weight is not None or bias is not None):
        raise ValueError("a norm is modulated, or it has weight and bias, not both")
    return torch.empty_like(x, memory_format=torch.contiguous_format), *_like(x)


@op(fake=_add_norm_quantize_fp8_fake, tolerance=FP8_STEP)
def add_norm_quantize_fp8(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    modulation_scale: Tensor | None,
    modulation_shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A residual [B, N, E], and its norm in FP8: the sum, values and scale.

    The sum is `gate_residual(x, y, gate)`, or `x + y` without a gate. The norm of it is
    `norm_modulate` where a modulation [B, G, E] is given, else `layer_norm` with weight and bias
    [E], as far as they are; then `quantize_fp8`.
    """
    total = x + y if gate is None else gate_residual.reference(x, y, gate)
    if modulation_scale is not None and modulation_shift is not None:
        normed = norm_modulate.reference(total, modulation_scale, modulation_shift, eps)
    else:
        normed = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    return total.contiguous(), *quantize_fp8.reference(normed)


def _fp8_norm_scale_fake(gamma: Tensor, factor: float) -> Tensor:
    return gamma.new_empty((1,), dtype=torch.float32)


@op(fake=_fp8_norm_scale_fake, tolerance=EXACT)
def fp8_norm_scale(gamma: Tensor, factor: float) -> Tensor:
    """The scale fp32 [1] with which no value up to `factor * max|gamma|` leaves e4m3.

    A row over its norm has no element above 1, so that bounds what a norm by `factor` gives, and
    its SiLU; an RMS norm over C channels has the factor sqrt(C), and a rotation of pairs adds
    sqrt(2). E4M3 is floating: the bound costs no precision of values far below it.
    """
    bound = gamma.float().abs().amax() * (factor / E4M3_MAX)
    return torch.where(bound > 0, bound, torch.ones_like(bound)).reshape(1)


def _rms_norm_rope_fp8_fake(
    x: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    out_scale: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    if (cos is None) != (sin is None):
        raise ValueError("a rotation has cos and sin, or there is none")
    return x.new_empty((*x.shape[:-1], heads, x.shape[-1] // heads), dtype=fp8.DTYPE)


@op(fake=_rms_norm_rope_fp8_fake, tolerance=GIVEN_SCALE_STEP)
def rms_norm_rope_fp8(
    x: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    out_scale: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """`rms_norm_rope`, or `rms_norm` alone where there is no rotation, as e4m3 [B, N, H, D].

    Values are divided by out_scale [1], which `fp8_norm_scale` gives; none of them is searched for.
    """
    normed = rms_norm.reference(x, weight, eps, round_first).unflatten(-1, (heads, -1))
    if cos is not None and sin is not None:
        normed = rope.reference(normed, cos, sin)
    return fp8.encode(normed, out_scale)
