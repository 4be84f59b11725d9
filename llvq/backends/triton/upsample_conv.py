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
    HOPPER,
    TILES,
    TILES_SM120,
    choose_tile,
    tile_constants,
)
from llvq.backends.triton.rings import check_frames, first_frame, half_of
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
    return _conv(launch, TILES, None, tensors, decoded, (rate, offset), frames, times, first)


def upsample_conv_sm90(
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
    """The same on Hopper, by as many programs as run at once."""
    tensors, times = (ring, weight, bias, shortcut), 2 if doubled else 1
    return _conv(launch, TILES, HOPPER, tensors, decoded, (rate, offset), frames, times, first)


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
    place = (rate, offset)
    return _conv(launch, TILES_SM120, None, tensors, decoded, place, frames, times, first)


def _conv(
    launch: Launcher,
    tiles: tuple[Tile, ...],
    programs: int | None,
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
    count = 4 * tile.count(height * ring.shape[2], features) * frames
    launch(
        upsample_conv_kernel,
        (min(programs or count, count),),
        *(*tensors, out, decoded),
        *(ring.shape[0], height, width, features, frames, *place),
        RATIO=0 if shortcut is None else shortcut.shape[3] // features,
        TIMES=times,
        DROPPED=times - 1 if first else 0,
        FLATTEN=programs is not None,
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
    RATIO: tl.constexpr,
    TIMES: tl.constexpr,
    DROPPED: tl.constexpr,
    FLATTEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The four corners of a pixel read the same pixels, and follow each other."""
    pitch = width + 2
    frame_pixels = (height + 2) * pitch
    shape = [slots * frame_pixels, CHANNELS]
    pixels = tl.make_tensor_descriptor(ring, shape, [CHANNELS, 1], [BLOCK_M, BLOCK_K])
    matrix = [4 * features, 4 * CHANNELS]
    weights = tl.make_tensor_descriptor(weight, matrix, [4 * CHANNELS, 1], [BLOCK_N, BLOCK_K])

    per_frame = tl.cdiv(height * pitch, BLOCK_M)
    tiles_m, tiles_n = per_frame * frames, 4 * tl.cdiv(features, BLOCK_N)
    frame = first_frame(decoded, rate, 0) + offset
    steps: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    for program in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0),
                            flatten=FLATTEN):  # fmt: skip
        tile_m, column = grouped_tile(program, tiles_m, tiles_n, GROUP)
        tile_n, corner = column // 4, column % 4
        t = tile_m // per_frame
        start = tile_m % per_frame * BLOCK_M
        inset = corner // 2 * pitch + corner % 2
        first = (frame + t) % slots * frame_pixels + start + inset
        feature = tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.range(0, 4 * steps, num_stages=STAGES):
            tap, channel = i // steps, i % steps * BLOCK_K
            x = pixels.load([first + tap // 2 * pitch + tap % 2, channel])
            w = weights.load([corner * features + feature, tap * CHANNELS + channel])
            acc = tl.dot(x, w.T, acc)
        pixel = start + tl.arange(0, BLOCK_M)
        for half in tl.static_range(2):
            store_corner(
                half_of(acc, half), feature + half * (BLOCK_N // 2), pixel, t, corner, height,
                width, features, bias, shortcut, out, RATIO, TIMES, DROPPED,
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
    RATIO: tl.constexpr,
    TIMES: tl.constexpr,
    DROPPED: tl.constexpr,
):
    """A tile of sums as one corner of what its pixels become, and their shortcut."""
    n = feature + tl.arange(0, acc.shape[1])
    acc += tl.load(bias + n, mask=n < features, other=0.0).to(tl.float32)[None, :]
    y, x = pixel // (width + 2), pixel % (width + 2)
    inside = (y < height) & (x < width)
    value = acc.to(out.dtype.element_ty)
    if shortcut is not None:
        channels: tl.constexpr = acc.shape[1] * RATIO
        source = shortcut + ((t + DROPPED) // TIMES).to(tl.int64) * (
            height * width * features * RATIO
        )
        channel = feature * RATIO + tl.arange(0, channels)
        mask = inside[:, None] & (channel < features * RATIO)[None, :]
        place = ((y * width + x) * features * RATIO)[:, None] + channel[None, :]
        copy = (t + DROPPED) % TIMES * 4 + corner
        value += _copy_of(tl.load(source + place, mask=mask, other=0.0), copy, TIMES, RATIO)
    mask = inside[:, None] & (n < features)[None, :]
    place = ((2 * y + corner // 2) * (2 * width) + 2 * x + corner % 2) * features
    base = out + t.to(tl.int64) * (4 * height * width) * features
    tl.store(base + place[:, None] + n[None, :], value, mask=mask)


@triton.jit
def _copy_of(x, copy, TIMES: tl.constexpr, RATIO: tl.constexpr):
    """Of RATIO channels side by side the one that goes to this copy of a pixel.

    All of them are read, in wide loads, and one is kept: to read one alone takes a load for each.
    """
    if RATIO == 1:
        kept = x
    else:
        tl.static_assert(RATIO == 2)
        first, second = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
        kept = tl.where(copy < 2 * TIMES, first, second)
    return kept
