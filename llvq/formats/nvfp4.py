"""NVFP4: four-bit E2M1 codes, one E4M3 scale per 16 elements, one fp32 scale per tensor.

A value decodes as `e2m1 * (scale * global_scale)`. Sixteen neighbours along the last dimension
(the contraction dimension of a linear) share a scale. This is the only module that knows the
numbers 16, 6 and 448.

Every quotient is a true fp32 division in the order of the fouroversix reference:
`h = (block_amax / 6) * (1 / g)`, `s = E4M3(h)`, `y = x * (1 / (g * s))`, then `y` is rounded to
E2M1, nearest with ties to the even code, saturating. Multiplying by a precomputed constant
instead moves codes that lie within an ulp of a midpoint, and with bf16 weights those are common.

Choices where public implementations differ: an all-zero tensor has global scale 1, scales 0 and
codes 0; a block whose scale is zero has codes 0; an input of -0.0 gets code 0, and a negative
value that rounds to zero gets code 8 (-0.0). Nothing non-finite is silent: it makes the global
scale NaN, or the scale of its block where the global scale was given. The codes there mean
nothing.

Shape legend: B blocks, K elements along the last dimension, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llvq.errors import FormatError
from llvq.formats.layout import pack, unpack
from llvq.formats.layout import swizzle_scales as swizzle_scales
from llvq.formats.layout import unswizzle_scales as unswizzle_scales

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK_RULES = ("max", "four_over_six", "mse_sweep")
INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Four-over-six stores up to 1.5 times the scale that maps a block to 6, so it leaves headroom.
FOUR_OVER_SIX_SCALE_MAX = 256.0
# E4M3 codes that `mse_sweep` tries about that of the max rule: below clips, above covers 1.5x.
SWEEP_OFFSETS = (-2, -1, 1, 2, 3, 4, 5, 6)
# With g at least this, g times the smallest E4M3 subnormal is a normal fp32 with a reciprocal.
GLOBAL_SCALE_MIN = 2.0**-117
# Blocks per step: fp32 buffers of 2 MiB stay in cache and hide the dispatch.
CPU_CHUNK_BLOCKS = 1 << 15
DEVICE_CHUNK_BLOCKS = 1 << 20

FP32_EXPONENT_MASK = 0x7F800000
# In [2**22, 2**23) the ulp of fp32 is 0.5: adding 2**22 rounds to the E2M1 grid of [0, 2).
ROUND_TO_HALVES = 2.0**22


class Nvfp4(NamedTuple):
    """A quantized tensor of logical shape [..., K]."""

    codes: Tensor
    """uint8 [..., K/2]; the element with the even index is in the low nibble."""
    scales: Tensor
    """float8_e4m3fn [..., K/16], linear layout."""
    global_scale: Tensor
    """fp32, 0-d: the decode scale, not its reciprocal."""


def global_scale(amax: Tensor, block_rule: str) -> Tensor:
    """The fp32 decode scale of a tensor with that largest magnitude: amax/(6*448), or amax/(6*256).

    Computed as 1/(6*448/amax), which is within two ulp of the quotient and is what the
    fouroversix reference decodes with. Zero gives 1; NaN and Inf give NaN.
    """
    scale_max = FOUR_OVER_SIX_SCALE_MAX if block_rule == "four_over_six" else E4M3_MAX
    amax = amax.to(torch.float32)
    scale = torch.full_like(amax, E2M1_MAX * scale_max).div_(amax).reciprocal_()
    scale = torch.where(amax == 0, torch.ones_like(scale), scale.clamp_(min=GLOBAL_SCALE_MIN))
    return torch.where(amax.isfinite(), scale, torch.full_like(scale, torch.nan))


def amax_of(x: Tensor) -> Tensor:
    """The largest magnitude of x, 0-d, without a copy of x; NaN if x holds a NaN, 0 if empty."""
    if not x.numel():
        return x.new_zeros(())
    low, high = torch.aminmax(x.detach())
    return torch.maximum(-low, high)


def quantize(
    x: Tensor,
    *,
    block_rule: str = "max",
    global_scale: Tensor | None = None,
    block_amax: Tensor | None = None,
) -> Nvfp4:
    """Quantize x [..., K], bf16, fp16 or fp32, along its last dimension.

    A given global scale is static: what it cannot reach saturates. `max` maps the largest
    magnitude of a block to 6; `four_over_six` maps it to 6 or to 4, `mse_sweep` to whatever a
    small sweep of scales offers, whichever has the least squared error in the block. A given
    `block_amax` [..., K/16] is what each block maps to 6 instead, and what exceeds it saturates.

    Raises FormatError for another dtype, K not a multiple of 16, or an unknown rule.
    """
    _check_input(x, block_rule)
    g = _dynamic_scale(x, block_rule) if global_scale is None else global_scale
    g = g.to(x.device, torch.float32).reshape(())
    blocks_B16 = x.detach().reshape(-1, BLOCK)
    count = blocks_B16.shape[0]
    codes = torch.empty(count, BLOCK // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(count, dtype=torch.float8_e4m3fn, device=x.device)
    step = CPU_CHUNK_BLOCKS if x.device.type == "cpu" else DEVICE_CHUNK_BLOCKS
    for start in range(0, count, step):
        rows = slice(start, start + step)
        values = blocks_B16[rows].float()
        if block_amax is None:
            scale_B = _choose_scale(values.abs(), g, block_rule)
        else:
            scale_B = _round_e4m3(_ideal_scale(block_amax.reshape(-1)[rows].float(), g))
        scales[rows] = scale_B
        codes[rows] = _encode(values, scale_B, g)
    lead, width = x.shape[:-1], x.shape[-1]
    return Nvfp4(codes.view(*lead, width // 2), scales.view(*lead, width // BLOCK), g)


def dequantize(
    codes: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    dtype: torch.dtype,
    *,
    segments: Sequence[int] | None = None,
) -> Tensor:
    """Decode codes uint8 [..., R, K/2] with scales e4m3 [..., R, K/16] to [..., R, K] of dtype.

    `global_scale` broadcasts against `scales`; with `segments` it has one entry per segment, and
    segment i covers `segments[i]` rows (dim -2). The arithmetic is fp32 whatever the dtype.
    """
    if codes.shape[:-1] != scales.shape[:-1] or codes.shape[-1] * 2 != scales.shape[-1] * BLOCK:
        raise FormatError(
            f"codes {tuple(codes.shape)} and scales {tuple(scales.shape)} do not belong together",
            because=f"{BLOCK // 2} bytes of codes go with each scale",
            fix="pass the linear scales; unswizzle_scales() makes them from the 128x4 layout",
        )
    g = global_scale if segments is None else _segment_scales(global_scale, segments, scales)
    step = scales.float() * g
    values = _decode_nibbles(unpack(codes)).unflatten(-1, (-1, BLOCK))
    return values.mul_(step.unsqueeze(-1)).flatten(-2).to(dtype)


def _check_input(x: Tensor, block_rule: str) -> None:
    if block_rule not in BLOCK_RULES:
        raise FormatError(
            f"unknown block rule {block_rule!r}", fix=f"use one of {', '.join(BLOCK_RULES)}"
        )
    if x.dtype not in INPUT_DTYPES:
        raise FormatError(
            f"cannot quantize a tensor of dtype {x.dtype}",
            because="NVFP4 is defined on bf16, fp16 and fp32 inputs",
            fix="cast the tensor to bfloat16 first",
        )
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise FormatError(
            f"cannot quantize a tensor of shape {tuple(x.shape)}",
            because=f"the last dimension must be a multiple of {BLOCK}",
            fix="exclude this weight from quantization",
        )


def _dynamic_scale(x: Tensor, block_rule: str) -> Tensor:
    return global_scale(amax_of(x), block_rule)


def _segment_scales(scale_S: Tensor, segments: Sequence[int], scales: Tensor) -> Tensor:
    """One fp32 scale per row, [R, 1]."""
    if scale_S.numel() != len(segments) or sum(segments) != scales.shape[-2]:
        raise FormatError(
            f"{scale_S.numel()} global scales cannot cover segments {tuple(segments)}",
            because=f"segments are row counts, one per scale, of {scales.shape[-2]} rows in all",
            fix="pass the row count of each joined weight",
        )
    # Without a tensor of counts: the host neither uploads nor waits, so a CUDA graph may hold it.
    each = zip(scale_S.reshape(-1).unbind(), segments, strict=True)
    return torch.cat([scale.expand(count) for scale, count in each]).unsqueeze(-1)


def _choose_scale(magnitudes: Tensor, g: Tensor, block_rule: str) -> Tensor:
    """The scale of each block, fp32 values of the E4M3 grid, [B]; ties go to the max rule."""
    ideal = _ideal_scale(magnitudes.amax(-1), g)
    best = _round_e4m3(ideal)
    if block_rule == "max":
        return best
    best_error = _block_error(magnitudes, best, g)
    for scale in _other_scales(ideal, best, block_rule):
        error = _block_error(magnitudes, scale, g)
        better = error < best_error  # never so in a block whose scale is NaN
        best = torch.where(better, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def _ideal_scale(amax_B: Tensor, g: Tensor) -> Tensor:
    """The scale that maps each of these magnitudes to 6, not rounded yet; NaN for NaN and Inf."""
    # By a tensor: by a number, PyTorch multiplies with its reciprocal on a GPU.
    ideal = (amax_B / torch.full_like(amax_B, E2M1_MAX)).mul_(g.reciprocal())
    return ideal.add_(amax_B - amax_B)  # Inf - Inf is NaN; everything else stays as it is


def _other_scales(ideal: Tensor, base: Tensor, block_rule: str) -> list[Tensor]:
    if block_rule == "four_over_six":
        return [_round_e4m3(ideal * 1.5)]
    # 126 is 448, 127 is NaN.
    codes = base.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    shifted = [(codes + offset).clamp_(0, 126).to(torch.uint8) for offset in SWEEP_OFFSETS]
    return [code.view(torch.float8_e4m3fn).float() for code in shifted]


def _round_e4m3(x: Tensor) -> Tensor:
    # torch 2.11 gives NaN above 464 where 2.13 saturates.
    return x.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()


def _inverse_step(scale: Tensor, g: Tensor) -> Tensor:
    """1 / (g * scale) as [B, 1]; 0 where the scale is zero or NaN, which gives codes 0."""
    return (g * scale).reciprocal_().nan_to_num_(nan=0.0, posinf=0.0).unsqueeze(-1)


def _round_e2m1(y: Tensor) -> tuple[Tensor, Tensor]:
    """Round magnitudes in place; gives (y + binade * 2**22, binade), binade one of 1, 2, 4.

    The E2M1 step is binade / 2, which is the ulp of that sum: the fp32 addition rounds to nearest,
    ties to even, and leaves the count of steps in the low bits.
    """
    binade = y.clamp_(max=E2M1_MAX).clamp(min=1.0)
    binade.view(torch.int32).bitwise_and_(FP32_EXPONENT_MASK)
    return y.add_(binade, alpha=ROUND_TO_HALVES), binade


def _block_error(magnitudes: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    """The squared error of each block under that scale, [B]."""
    y = magnitudes * _inverse_step(scale, g)
    rounded, binade = _round_e2m1(y)
    values = rounded.sub_(binade, alpha=ROUND_TO_HALVES)
    squares = values.mul_((scale * g).unsqueeze(-1)).sub_(magnitudes).square_()
    # Pairs of neighbours, four times: torch.sum adds in the order that suits the processor, and a
    # few blocks in a million would take another scale on another machine.
    while squares.shape[-1] > 1:
        squares = squares[..., ::2] + squares[..., 1::2]
    return squares.squeeze(-1)


def _encode(values: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    """fp32 [B, 16] -> packed codes uint8 [B, 8]."""
    y = (values * _inverse_step(scale, g)).add_(0.0)  # + 0.0 turns -0.0 into 0.0
    sign = (y.view(torch.int32) >> 28).bitwise_and_(8)
    rounded, binade = _round_e2m1(y.abs_())
    # Codes grow by 2 per binade, as do the top bits of fp32 (254 for 1.0); counts are the low byte.
    nibbles = (binade.view(torch.int32) >> 22).add_(rounded.view(torch.int32)).add_(2)
    return pack(nibbles.bitwise_and_(7).bitwise_or_(sign).to(torch.uint8))


def _decode_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 codes -> fp32 values of E2M1.

    Read at the top of an fp16, exponent over exponent, a code is its value times 2**-14.
    """
    wide = nibbles.to(torch.int16)
    bits = ((wide & 7) << 9) | ((wide & 8) << 12)
    return bits.view(torch.float16).float().mul_(2.0**14)
