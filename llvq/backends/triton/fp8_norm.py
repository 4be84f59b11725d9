"""Residual, norm and FP8 in one reading: `add_norm_quantize_fp8`, `norm_modulate_quantize_fp8`.

One program has one token. Intermediates are rounded where the reference rounds them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.fp8_quantize import empty_like, store_row, warps_for
from llvq.backends.triton.specialize import Launcher


def norm_modulate_quantize_fp8(
    launch: Launcher, x: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x [B, N, E], modulated by scale and shift [B, G, E], in FP8."""
    _, values, scales = _run(launch, x, None, None, scale, shift, None, None, eps)
    return values, scales


def add_norm_quantize_fp8(
    launch: Launcher,
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    modulation_scale: Tensor | None,
    modulation_shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of x and (gated) y [B, N, E], and its norm, modulated or affine, in FP8."""
    modulation = (modulation_scale, modulation_shift)
    total, values, scales = _run(launch, x, y, gate, *modulation, weight, bias, eps)
    assert total is not None
    return total, values, scales


def _run(
    launch: Launcher,
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor | None, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    total = None if y is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    values, scales = empty_like(x)
    block = triton.next_power_of_2(channels)
    launch(
        add_norm_quantize_kernel,
        (batch * tokens,),
        x.contiguous(),
        None if y is None else y.contiguous(),
        *(None if t is None else t.contiguous() for t in (gate, scale, shift)),
        weight,
        bias,
        total,
        values,
        scales,
        float(eps),
        channels,
        tokens_of(gate, x),
        tokens_of(scale, x),
        BLOCK=block,
        warps=warps_for(block),
        # Else a product and a sum of bf16 are one instruction, without the rounding between them.
        exact=True,
    )
    return total, values, scales


def tokens_of(vectors: Tensor | None, x: Tensor) -> int:
    """How many tokens of x [B, N, E] share one of the vectors [B, G, E]."""
    return x.shape[1] // vectors.shape[1] if vectors is not None else x.shape[1]


@triton.jit
def add_norm_quantize_kernel(
    x,
    y,
    gate,
    mod_scale,
    mod_shift,
    weight,
    bias,
    total,
    values,
    scales,
    eps,
    channels,
    gate_tokens,
    modulation_tokens,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    at = row.to(tl.int64) * channels + channel
    value = tl.load(x + at, mask=inside, other=0.0)
    if y is not None:
        added = tl.load(y + at, mask=inside, other=0.0)
        if gate is not None:
            vector = gate + (row // gate_tokens).to(tl.int64) * channels
            added = multiply(added, tl.load(vector + channel, mask=inside, other=0.0))
        value = (value.to(tl.float32) + added.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + at, value, mask=inside)
    normed = layer_norm(value.to(tl.float32), inside, channels, eps)
    if mod_scale is not None:
        vector = (row // modulation_tokens).to(tl.int64) * channels + channel
        scale = tl.load(mod_scale + vector, mask=inside, other=0.0)
        shift = tl.load(mod_shift + vector, mask=inside, other=0.0)
        normed = modulate(normed, scale, shift)
    else:
        if weight is not None:
            normed *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            normed += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    rounded = tl.where(inside, normed, 0.0).to(x.dtype.element_ty)
    store_row(rounded.to(tl.float32), values, scales, row, channel, channels, False)


@triton.jit
def multiply(x, y):
    """A product that is rounded to the dtype of y."""
    return (x.to(tl.float32) * y.to(tl.float32)).to(y.dtype)


@triton.jit
def layer_norm(x, inside, channels, eps):
    """fp32, without weight and bias."""
    mean = tl.sum(x, 0) / channels
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / channels
    return centred * tl.rsqrt(variance + eps)


@triton.jit
def modulate(normed, scale, shift):
    """`normed * (1 + scale) + shift`, each step rounded to the dtype of scale."""
    factor = (1.0 + scale.to(tl.float32)).to(scale.dtype)
    product = multiply(normed.to(scale.dtype), factor)
    return (product.to(tl.float32) + shift.to(tl.float32)).to(scale.dtype).to(tl.float32)
