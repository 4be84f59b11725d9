"""A convolution at twice the size as four on the frame itself, one for each corner of a pixel.

It is `ring_conv` with taps of 2x2, at 4/9 of the work of 3x3 on repeated pixels, and repeats
nothing. The shortcut is added as the result is stored. Shape legend as in `ring_conv`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.gemm import Tile, grouped_tile
from llvq.backends.triton.ring_conv import (
    TILES,
    TILES_SM120,
    check_frames,
    choose_tile,
    first_frame,
    half_of,
    multiply_taps,
    tile_constants,
)
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.ring_ops import BORDER


def upsample_conv(
    launch: Launcher,
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    doubled: bool,
    first: bool,
    decoded: Tensor,
    rate: int,
    offset: int,
    frames: int,
) -> Tensor:
    """llvq.upsample_conv in bf16. Raises as `ring_conv`."""
    tensors, times = (ring, weight, bias, shortcut), 2 if doubled else 1
    return _conv(launch, TILES, tensors, decoded, (rate, offset), frames, times, first)


def upsample_conv_sm120(
    launch: Launcher,
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    doubled: bool,
    first: bool,
    decoded: Tensor,
    rate: int,
    offset: int,
    frames: int,
) -> Tensor:
    """The same on sm_120a, which has less shared memory."""
    tensors, times = (ring, weight, bias, shortcut), 2 if doubled else 1
    return _conv(launch, TILES_SM120, tensors, decoded, (rate, offset), frames, times, first)


def _conv(
    launch: Launcher,
    tiles: tuple[Tile, ...],
    tensors: Sequence[Any],
    decoded: Tensor,
    place: tuple[int, int],
    frames: int,
    times: int,
    first: bool,
) -> Tensor:
    """One launch; `tensors` are ring, weight, bias, shortcut. `times` as many frames go out."""
    ring, weight, bias, shortcut = tensors
    check_frames("upsample_conv", ring, bias)
    height, width = ring.shape[1] - 2 * BORDER, ring.shape[2] - 2 * BORDER
    features = weight.shape[2]
    out = bias.new_empty((frames, 2 * height, 2 * width, features))
    tile = choose_tile(tiles, features)
    launch(
        upsample_conv_kernel,
        (tile.count(height * ring.shape[2], features) * frames, 4),
        *(*tensors, out, decoded),
        *(ring.shape[0], height, width, features, frames, *place),
        SHORTCUT=0 if shortcut is None else shortcut.shape[3],
        COPIES=1 if shortcut is None else features * times * 4 // shortcut.shape[3],
        TIMES=times,
        DROPPED=times - 1 if first else 0,
        **tile_constants(tile, ring),
    )
    return out


@triton.jit
def upsample_conv_kernel(
    ring,
    weight,
    bias,
    shortcut,
    out,
    decoded,
    slots,
    height,
    width,
    features,
    frames,
    rate,
    offset,
    CHANNELS: tl.constexpr,
    SHORTCUT: tl.constexpr,
    COPIES: tl.constexpr,
    TIMES: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One of the four pixels that each pixel becomes: program_id(1) is 2 * row + column."""
    pitch = width + 2
    frame_pixels = (height + 2) * pitch
    shape = [slots * frame_pixels, CHANNELS]
    pixels = tl.make_tensor_descriptor(ring, shape, [CHANNELS, 1], [BLOCK_M, BLOCK_K])
    matrix = [4 * features, 4 * CHANNELS]
    weights = tl.make_tensor_descriptor(weight, matrix, [4 * CHANNELS, 1], [BLOCK_N, BLOCK_K])

    corner = tl.program_id(1)
    row, column = corner // 2, corner % 2
    per_frame = tl.cdiv(height * pitch, BLOCK_M)
    tile_m, tile_n = grouped_tile(per_frame * frames, tl.cdiv(features, BLOCK_N), GROUP)
    t = tile_m // per_frame
    start = tile_m % per_frame * BLOCK_M
    frame = first_frame(decoded, rate, 0) + offset + t
    acc = multiply_taps(
        pixels, weights, frame, slots, frame_pixels, start + row * pitch + column, pitch,
        corner * features + tile_n * BLOCK_N,
        CHANNELS, 1, 2, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip

    pixel = start + tl.arange(0, BLOCK_M)
    for half in tl.static_range(2):
        store_corner(
            half_of(acc, half), tile_n * BLOCK_N + half * (BLOCK_N // 2), pixel, t, corner, height,
            width, features, bias, shortcut, out, SHORTCUT, COPIES, TIMES, DROPPED,
        )  # fmt: skip


@triton.jit
def store_corner(
    acc,
    feature,
    pixel,
    t,
    corner,
    height,
    width,
    features,
    bias,
    shortcut,
    out,
    SHORTCUT: tl.constexpr,
    COPIES: tl.constexpr,
    TIMES: tl.constexpr,
    DROPPED: tl.constexpr,
):
    """A tile of sums as one corner of what its pixels become, and their shortcut."""
    n = feature + tl.arange(0, acc.shape[1])
    acc += tl.load(bias + n, mask=n < features, other=0.0).to(tl.float32)[None, :]
    y, x = pixel // (width + 2), pixel % (width + 2)
    mask = ((y < height) & (x < width))[:, None] & (n < features)[None, :]
    value = acc.to(out.dtype.element_ty)
    if shortcut is not None:
        copy = (t + DROPPED) % TIMES * 4 + corner
        channel = (n * (4 * TIMES) + copy) // COPIES
        source = shortcut + ((t + DROPPED) // TIMES).to(tl.int64) * height * width * SHORTCUT
        at = ((y * width + x) * SHORTCUT)[:, None] + channel[None, :]
        value += tl.load(source + at, mask=mask, other=0.0)
    place = ((2 * y + corner // 2) * (2 * width) + 2 * x + corner % 2) * features
    base = out + t.to(tl.int64) * (4 * height * width) * features
    tl.store(base + place[:, None] + n[None, :], value, mask=mask)
