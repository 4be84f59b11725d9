"""Frames into rings, as they are or normed, and frames to pixels.

A program holds some pixels with all their channels. Shapes as in `dialect.ring_ops`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.norm import rounded
from llvq.backends.triton.rings import first_frame
from llvq.backends.triton.specialize import Launcher

# Values of a program, and how many of them a thread holds.
HELD, PER_THREAD = 4096, 32
SMALLEST_NORM = 1e-12  # F.normalize's
BYTES = 1024
# 1.5 * 2**23: a number below 2**22 that is added to it is rounded to an integer, half to even.
ROUNDS = 12582912.0


def ring_write(
    launch: Launcher, ring: Tensor, x: Tensor, decoded: Tensor, rate: int, skip: int, offset: int
) -> None:
    """See the op."""
    _write(launch, ring, x, None, 0.0, None, decoded, rate, skip, offset)


def ring_write_normed(
    launch: Launcher,
    ring: Tensor,
    x: Tensor,
    gamma: Tensor,
    factor: float,
    ring_scale: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
) -> None:
    """See the op."""
    _write(launch, ring, x, gamma, factor, ring_scale, decoded, rate, skip, offset)


def _write(
    launch: Launcher,
    ring: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    factor: float,
    ring_scale: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
) -> None:
    pixels, channels = prod(x.shape[:-1]), x.shape[-1]
    columns = triton.next_power_of_2(channels)
    rows = max(HELD // columns, 1)
    launch(
        ring_write_kernel,
        (triton.cdiv(pixels, rows),),
        *(ring, x, gamma, ring_scale, decoded),
        *(ring.shape[0], *x.shape[1:3], pixels, rate, skip, offset, factor),
        CHANNELS=channels,
        ROWS=rows,
        COLUMNS=columns,
        SMALLEST=SMALLEST_NORM,
        warps=max(rows * columns // (32 * PER_THREAD), 1),
    )


@triton.jit
def ring_write_kernel(
    ring,
    x,
    gamma,
    ring_scale,
    decoded,
    slots,
    height,
    width,
    pixels,
    rate,
    skip,
    offset,
    factor,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, COLUMNS)
    mask = (pixel < pixels)[:, None] & (channel < CHANNELS)[None, :]
    value = tl.load(x + pixel[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0)
    if gamma is not None:
        value = value.to(tl.float32)
        norm = rounded(tl.sqrt(tl.sum(value * value, 1)), dtype)
        value = rounded(value * (1.0 / tl.maximum(norm, SMALLEST))[:, None], dtype)
        value = rounded(value * factor, dtype)
        weight = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
        value = rounded(value * weight[None, :], dtype)
        value = rounded(value / (1.0 + tl.exp(-value)), dtype)
        if ring_scale is not None:
            value *= 1.0 / tl.load(ring_scale)
    area = height * width
    slot = (first_frame(decoded, rate, skip) + offset + pixel // area) % slots
    y, column = pixel % area // width, pixel % width
    row = (slot * (height + 2) + y + 1) * (width + 2) + column + 1
    place = row[:, None] * CHANNELS + channel[None, :]
    tl.store(ring + place, value.to(ring.dtype.element_ty), mask=mask)


def pixels(launch: Launcher, x: Tensor, patch: int) -> Tensor:
    """See the op."""
    frames, height, width, channels = x.shape
    shape = (frames, patch * height, patch * width, 3)
    out = torch.empty(shape, dtype=torch.uint8, device=x.device)
    count = prod(shape)
    size = (count, height, width)
    launch(
        pixels_kernel,
        (triton.cdiv(count, BYTES),),
        *(x, out, *size),
        CHANNELS=channels,
        PATCH=patch,
        BYTES=BYTES,
        ROUNDS=ROUNDS,
        exact=True,
    )
    return out


@triton.jit
def pixels_kernel(
    x,
    out,
    count,
    height,
    width,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    BYTES: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    at = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    colour, pixel = at % 3, at // 3
    across = width * PATCH
    column, line = pixel % across, pixel // across
    source = (line // PATCH * width + column // PATCH) * CHANNELS
    channel = (colour * PATCH + column % PATCH) * PATCH + line % PATCH
    value = tl.load(x + source + channel, mask=at < count, other=0.0).to(tl.float32)
    value = tl.minimum(tl.maximum(value, -1.0), 1.0) * 0.5 + 0.5
    value = value * 255.0 + ROUNDS - ROUNDS
    tl.store(out + at, value.to(tl.uint8), mask=at < count)
