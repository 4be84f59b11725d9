"""Convolutions over rings of frames as GEMMs: `ring_conv`, and what `upsample_conv` shares with it.

The pixels of a ring, border included, are the rows of one matrix [R * (H+2) * (W+2), C]. What a tap
of the kernel reads for a tile of pixels is as many rows, some rows further on, so that loads are
those of a plain GEMM: nothing is gathered, and the border is the padding. Between the rows of a
frame a tile also computes the two pixels of the border, and drops them: 2 in W+2.

Shape legend: R slots, T frames, H and W height and width, C channels in, N channels out.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.gemm import Tile, grouped_tile
from llvq.backends.triton.ring_conv_narrow import NARROW, narrow_conv
from llvq.backends.triton.rings import check_frames, first_frame, half_of, store_features
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.ring_ops import BORDER, FP8

# By the number of features, the first that covers them or the last; K is in bytes.
TILES = (Tile(128, 64, 128, 4, 4), Tile(128, 128, 128, 8, 4), Tile(128, 256, 128, 8, 3))
TILES_SM120 = (Tile(128, 64, 128, 4, 3), Tile(128, 128, 64, 8, 4))
GROUP = 8
# Multiprocessors of an H100 or H200. As many programs take one tile after the other, so that the
# first loads of a tile go out while the one before is stored.
HOPPER = 132


def ring_conv(
    launch: Launcher,
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    ring_scale: Tensor | None,
    weight_scales: Tensor | None,
    residual: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
    frames: int,
    doubles: bool,
) -> Tensor:
    """llvq.ring_conv in bf16, of rings and weights in bf16 or e4m3.

    Raises TargetError for another dtype, KernelError for channels that no tensor map can hold.
    """
    tensors = (ring, weight, bias, ring_scale, weight_scales, residual)
    return _conv(launch, TILES, None, tensors, decoded, (rate, skip, offset), frames, doubles)


def ring_conv_sm90(
    launch: Launcher,
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    ring_scale: Tensor | None,
    weight_scales: Tensor | None,
    residual: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
    frames: int,
    doubles: bool,
) -> Tensor:
    """The same on Hopper, by as many programs as run at once."""
    tensors = (ring, weight, bias, ring_scale, weight_scales, residual)
    return _conv(launch, TILES, HOPPER, tensors, decoded, (rate, skip, offset), frames, doubles)


def ring_conv_sm120(
    launch: Launcher,
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    ring_scale: Tensor | None,
    weight_scales: Tensor | None,
    residual: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
    frames: int,
    doubles: bool,
) -> Tensor:
    """The same on sm_120a, which has less shared memory."""
    tensors = (ring, weight, bias, ring_scale, weight_scales, residual)
    place = (rate, skip, offset)
    return _conv(launch, TILES_SM120, None, tensors, decoded, place, frames, doubles)


def _conv(
    launch: Launcher,
    tiles: tuple[Tile, ...],
    programs: int | None,
    tensors: Sequence[Any],
    decoded: Tensor,
    place: tuple[int, int, int],
    frames: int,
    doubles: bool,
) -> Tensor:
    """One launch; `tensors` are ring, weight, bias, both scales, residual."""
    ring, weight, bias, *_ = tensors
    check_frames("ring_conv", ring, bias)
    features, depth, window = weight.shape[:3]
    copies = 2 if doubles else 1
    height, width = ring.shape[1] - 2 * BORDER, ring.shape[2] - 2 * BORDER
    out = bias.new_empty((copies * frames, height, width, features // copies))
    if window == 3 and features <= NARROW.n:
        narrow_conv(launch, tensors, out, decoded, place, frames)
        return out
    tile = choose_tile(tiles, features)
    count = tile.count(height * ring.shape[2], features) * frames
    launch(
        ring_conv_kernel,
        (min(programs or count, count),),
        *(*tensors, out, decoded),
        *(ring.shape[0], height, width, features, frames, *place),
        DEPTH=depth,
        WINDOW=window,
        DOUBLES=doubles,
        FLATTEN=programs is not None and ring.dtype == FP8,  # in bf16 it loses 2 %
        **tile_constants(tile, ring),
    )
    return out


def choose_tile(tiles: tuple[Tile, ...], features: int) -> Tile:
    """The smallest tile that covers the features, or the largest there is."""
    return next((tile for tile in tiles if tile.n >= features), tiles[-1])


def tile_constants(tile: Tile, ring: Tensor) -> dict[str, Any]:
    """What a tile is to a kernel, and to the launcher."""
    return {
        "CHANNELS": ring.shape[3],
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k // ring.element_size(),
        "GROUP": GROUP,
        "STAGES": tile.stages,
        "warps": tile.warps,
        "stages": tile.stages,
    }


@triton.jit
def ring_conv_kernel(
    ring,
    weight,
    bias,
    ring_scale,
    weight_scales,
    residual,
    out,
    decoded,
    slots,
    height,
    width,
    features,
    frames,
    rate,
    skip,
    offset,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    WINDOW: tl.constexpr,
    DOUBLES: tl.constexpr,
    FLATTEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Channels past the last of a pixel are read as zeros, whatever the weights have there."""
    taps: tl.constexpr = DEPTH * WINDOW * WINDOW
    pitch = width + 2
    frame_pixels = (height + 2) * pitch
    shape = [slots * frame_pixels, CHANNELS]
    pixels = tl.make_tensor_descriptor(ring, shape, [CHANNELS, 1], [BLOCK_M, BLOCK_K])
    matrix = [features, taps * CHANNELS]
    weights = tl.make_tensor_descriptor(weight, matrix, [taps * CHANNELS, 1], [BLOCK_N, BLOCK_K])

    per_frame = tl.cdiv(height * pitch, BLOCK_M)
    tiles_m, tiles_n = per_frame * frames, tl.cdiv(features, BLOCK_N)
    frame = first_frame(decoded, rate, skip) + offset + slots - (DEPTH - 1)
    inset = 0 if WINDOW == 3 else pitch + 1
    steps: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    for program in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0),
                            flatten=FLATTEN):  # fmt: skip
        tile_m, tile_n = grouped_tile(program, tiles_m, tiles_n, GROUP)
        t = tile_m // per_frame
        start = tile_m % per_frame * BLOCK_M
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.range(0, taps * steps, num_stages=STAGES):
            tap, channel = i // steps, i % steps * BLOCK_K
            place = tap % (WINDOW * WINDOW)
            slot = (frame + t + tap // (WINDOW * WINDOW)) % slots
            row = slot * frame_pixels + start + inset + place // WINDOW * pitch + place % WINDOW
            x = pixels.load([row, channel])
            w = weights.load([tile_n * BLOCK_N, tap * CHANNELS + channel])
            acc = tl.dot(x, w.T, acc)
        pixel = start + tl.arange(0, BLOCK_M)
        for half in tl.static_range(2):
            store_features(
                half_of(acc, half), tile_n * BLOCK_N + half * (BLOCK_N // 2), pixel, t, height,
                width, features, bias, ring_scale, weight_scales, residual, out, DOUBLES,
            )  # fmt: skip
