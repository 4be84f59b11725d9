"""Activations in FP8, one scale per token: `quantize_fp8` and `gelu_quantize_fp8`.

One program has one token: a row of K channels is read once, and its largest magnitude is known
before a value is rounded.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.fp8_scales import largest, scale_for
from llvq.backends.triton.gelu import gelu
from llvq.backends.triton.specialize import Launcher
from llvq.formats import fp8

CHANNELS_PER_WARP = 1024  # 32 of each thread: what registers hold beside the arithmetic


def quantize_fp8(launch: Launcher, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values e4m3 [..., K] and a scale per token [..., 1], bit for bit those of the reference."""
    return _by_token(launch, x, "", None)


def gelu_quantize_fp8(
    launch: Launcher, x: Tensor, approximate: str, smooth: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of `gelu(x) * smooth`, which is rounded to the dtype of x after each step."""
    return _by_token(launch, x, approximate, smooth)


def _by_token(
    launch: Launcher, x: Tensor, gelu_kind: str, smooth: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    values, scale = empty_like(x)
    block = triton.next_power_of_2(rows.shape[1])
    launch(
        quantize_rows_kernel,
        (rows.shape[0],),
        rows,
        smooth,
        values,
        scale,
        rows.stride(0),
        rows.shape[1],
        BLOCK=block,
        GELU=gelu_kind,
        warps=warps_for(block),
        exact=not gelu_kind,
    )
    return values, scale


def empty_like(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the values of x [..., K] in FP8, and for a scale per token [..., 1]."""
    values = torch.empty(x.shape, dtype=fp8.DTYPE, device=x.device)
    return values, torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


def warps_for(channels: int) -> int:
    return min(16, max(1, channels // CHANNELS_PER_WARP))


@triton.jit
def quantize_rows_kernel(
    x, smooth, values, scales, stride, channels, BLOCK: tl.constexpr, GELU: tl.constexpr
):
    row = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    value = tl.load(x + row.to(tl.int64) * stride + channel, mask=inside, other=0.0)
    if GELU != "":
        value = gelu(value.to(tl.float32), GELU).to(x.dtype.element_ty)
        if smooth is not None:
            factor = tl.load(smooth + channel, mask=inside, other=0.0)
            value = (value.to(tl.float32) * factor.to(tl.float32)).to(x.dtype.element_ty)
    store_row(value.to(tl.float32), values, scales, row, channel, channels, GELU == "")


@triton.jit
def store_row(value, values, scales, row, channel, channels, EXACT: tl.constexpr):
    """One token in FP8. What is masked out of `value` must be zero.

    `EXACT` divides by the scale as the reference does; else one division serves the whole row.
    """
    scale = scale_for(largest(value, 0))
    scaled = tl.math.div_rn(value, scale) if EXACT else value * (1.0 / scale)
    coded = scaled.to(tl.float8e4nv)
    tl.store(values + row.to(tl.int64) * channels + channel, coded, mask=channel < channels)
    tl.store(scales + row, scale)
