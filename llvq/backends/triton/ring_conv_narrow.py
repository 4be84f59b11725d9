"""`ring_conv` with a few features, as the last one of a decoder has: 3 taps for every load.

With so few features tensor cores wait for pixels. The three taps of a row of the kernel read the
same pixels, one further on each: these are loaded once and multiplied with the weights of each
tap, and what the taps give for one pixel comes together afterwards, a row or two apart. So the last
two rows of a tile have no sum of their own, and the next tile begins with them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.gemm import Tile
from llvq.backends.triton.rings import first_frame, store_features
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.ring_ops import BORDER

# As many features as tensor cores take at least; K is in bytes.
NARROW = Tile(128, 16, 128, 4, 4)


def narrow_conv(
    launch: Launcher,
    tensors: Sequence[Any],
    out: Tensor,
    decoded: Tensor,
    place: tuple[int, int, int],
    frames: int,
) -> None:
    """One launch; `tensors` are ring, weight, bias, both scales, residual, as in `ring_conv`."""
    ring, weight = tensors[:2]
    height, width = ring.shape[1] - 2 * BORDER, ring.shape[2] - 2 * BORDER
    launch(
        ring_conv_narrow_kernel,
        (triton.cdiv(height * ring.shape[2], NARROW.m - 2) * frames,),
        *(*tensors, out, decoded),
        *(ring.shape[0], height, width, weight.shape[0], frames, *place),
        CHANNELS=ring.shape[3],
        DEPTH=weight.shape[1],
        BLOCK_M=NARROW.m,
        BLOCK_N=NARROW.n,
        BLOCK_K=NARROW.k // ring.element_size(),
        STAGES=NARROW.stages,
        warps=NARROW.warps,
        stages=NARROW.stages,
    )


@triton.jit
def ring_conv_narrow_kernel(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    pitch = width + 2
    frame_pixels = (height + 2) * pitch
    shape = [slots * frame_pixels, CHANNELS]
    pixels = tl.make_tensor_descriptor(ring, shape, [CHANNELS, 1], [BLOCK_M, BLOCK_K])
    taps: tl.constexpr = DEPTH * 9
    matrix = [features, taps * CHANNELS]
    weights = tl.make_tensor_descriptor(weight, matrix, [taps * CHANNELS, 1], [BLOCK_N, BLOCK_K])

    per_frame = tl.cdiv(height * pitch, BLOCK_M - 2)
    t = tl.program_id(0) // per_frame
    start = tl.program_id(0) % per_frame * (BLOCK_M - 2)
    frame = first_frame(decoded, rate, skip) + offset + slots - (DEPTH - 1) + t
    steps: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    left = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    middle = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    right = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in tl.range(0, DEPTH * 3 * steps, num_stages=STAGES):
        line, channel = i // steps, i % steps * BLOCK_K
        row = (frame + line // 3) % slots * frame_pixels + start + line % 3 * pitch
        x = pixels.load([row, channel])
        first = line * 3 * CHANNELS + channel
        left = tl.dot(x, weights.load([0, first]).T, left)
        middle = tl.dot(x, weights.load([0, first + CHANNELS]).T, middle)
        right = tl.dot(x, weights.load([0, first + 2 * CHANNELS]).T, right)
    acc = left + _later(middle, 1) + _later(right, 2)
    place = tl.arange(0, BLOCK_M)
    # A row without a sum is put where no pixel is.
    pixel = tl.where(place < BLOCK_M - 2, start + place, frame_pixels)
    store_features(
        acc, 0, pixel, t, height, width, features, bias, ring_scale, weight_scales, residual, out,
        False,
    )  # fmt: skip


@triton.jit
def _later(x, rows: tl.constexpr):
    """Row r + rows in place of row r; the last ones wrap around."""
    place = (tl.arange(0, x.shape[0]) + rows) % x.shape[0]
    return tl.gather(x, tl.broadcast_to(place[:, None], x.shape), 0)
