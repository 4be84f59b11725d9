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

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.gemm import Tile, grouped_tile
from llvq.backends.triton.specialize import ALIGNMENT, Launcher
from llvq.dialect.ring_ops import BORDER, FP8
from llvq.errors import KernelError, TargetError

# By the number of features, the first that covers them or the last; K is in bytes.
TILES = (Tile(128, 16, 128, 4, 4), Tile(128, 64, 128, 4, 4), Tile(128, 128, 128, 8, 4),
         Tile(128, 256, 128, 8, 3))  # fmt: skip
TILES_SM120 = (Tile(64, 16, 128, 4, 3), Tile(128, 64, 128, 4, 3), Tile(128, 128, 64, 8, 4))
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
