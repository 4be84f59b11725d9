"""What kernels over rings of frames share: where a call begins, how a tile of sums is stored."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.specialize import ALIGNMENT
from llvq.dialect.ring_ops import FP8
from llvq.errors import KernelError, TargetError


def check_frames(op: str, ring: Tensor, bias: Tensor) -> None:
    """Raises TargetError, KernelError: what no kernel here can read or write."""
    if bias.dtype != torch.bfloat16 or ring.dtype not in (torch.bfloat16, FP8):
        raise TargetError(
            f"{op} has no kernel for {ring.dtype} frames and results in {bias.dtype}",
            because="its tensor cores multiply bf16 or e4m3",
            fix="run the model in bf16, or choose the target cpu",
        )
    if ring.shape[3] * ring.element_size() % ALIGNMENT:
        raise KernelError(
            f"no kernel for frames of {ring.shape[3]} channels of {ring.dtype}",
            because=f"a pixel starts at a multiple of {ALIGNMENT} bytes",
            fix="run this op on another target",
        )


@triton.jit
def first_frame(decoded, rate, skip):
    """The frame of the video that a call begins with, as the dialect has it."""
    latents = tl.load(decoded).to(tl.int32)
    return tl.where(latents > 0, (latents - 1) * rate + 1 - skip, 0)


@triton.jit
def half_of(acc, which: tl.constexpr):
    """The left or the right half of the columns: two are stored one after the other."""
    rows: tl.constexpr = acc.shape[0]
    columns: tl.constexpr = acc.shape[1] // 2
    left, right = tl.split(tl.permute(tl.reshape(acc, (rows, 2, columns)), (0, 2, 1)))
    return left if which == 0 else right


@triton.jit
def store_features(
    acc,
    feature,
    pixel,
    t,
    height,
    width,
    features,
    bias,
    ring_scale,
    weight_scales,
    residual,
    out,
    DOUBLES: tl.constexpr,
):
    """A tile of sums, from `feature` on, as results of frame t.

    A frame is a base of 64 bits, what is inside one an offset of 32: registers are short here.
    """
    n = feature + tl.arange(0, acc.shape[1])
    if ring_scale is not None:
        scales = tl.load(weight_scales + n, mask=n < features, other=0.0) * tl.load(ring_scale)
        acc *= scales[None, :]
    acc += tl.load(bias + n, mask=n < features, other=0.0).to(tl.float32)[None, :]
    pitch, area = width + 2, height * width
    y, x = pixel // pitch, pixel % pitch
    mask = ((y < height) & (x < width))[:, None] & (n < features)[None, :]
    place = (y * width + x)[:, None]
    if DOUBLES:
        half = features // 2
        place = place * half + (n // half * (area * half) + n % half)[None, :]
    else:
        place = place * features + n[None, :]
    base = t.to(tl.int64) * area * features
    value = acc.to(out.dtype.element_ty)
    if residual is not None:
        value += tl.load(residual + base + place, mask=mask, other=0.0)
    tl.store(out + base + place, value, mask=mask)
