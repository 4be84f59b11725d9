"""Write a chunk's K and V into a slot that only the device knows: `write_page`, `write_kept`.

K and V are one launch, programs of the second grid dimension being one or the other. A pool has
more elements than an int32 counts, so offsets of slots are int64. Formats as in `formats.kv`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import BLOCK, E4M3_MAX, amax_bits, load_blocks, store_blocks
from llvq.backends.triton.global_scale import no_amax, scale_of_amax
from llvq.backends.triton.quantize import store_quantized
from llvq.backends.triton.rows import as_rows, blocks_in
from llvq.backends.triton.specialize import Launcher
from llvq.errors import KernelError
from llvq.formats import kv

BLOCKS = 128
WARPS = 4
BLOCK_RULE = tl.constexpr(kv.BLOCK_RULE)


@triton.jit
def _load_chunk(k, v, count, row_blocks, k_stride, v_stride, BLOCKS: tl.constexpr):
    """This program's blocks of K or V: their numbers [B], halves, mask."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    row, place = block // row_blocks, block % row_blocks * BLOCK
    if tl.program_id(1) == 0:
        low, high = load_blocks(k, row * k_stride + place, mask)
    else:
        low, high = load_blocks(v, row * v_stride + place, mask)
    return block, low, high, mask


@triton.jit
def _slot_of(slot, layer, slots):
    """Where the slot of this layer and of K or V lies in a page tensor, in slots, int64."""
    return (layer * 2 + tl.program_id(1)) * slots + tl.load(slot).to(tl.int64)


@triton.jit
def _amax_kernel(k, v, amax, count, row_blocks, k_stride, v_stride, BLOCKS: tl.constexpr):
    _, low, high, _ = _load_chunk(k, v, count, row_blocks, k_stride, v_stride, BLOCKS)
    tl.atomic_max(amax + tl.program_id(1), amax_bits(low, high), sem="relaxed")


@triton.jit
def _plain_kernel(
    k,
    v,
    slot,
    page,
    layer,
    slots,
    count,
    row_blocks,
    k_stride,
    v_stride,
    BLOCKS: tl.constexpr,
):
    """As it is; a slot of -1 is none."""
    block, low, high, mask = _load_chunk(k, v, count, row_blocks, k_stride, v_stride, BLOCKS)
    mask = mask & (tl.load(slot) >= 0)
    page += _slot_of(slot, layer, slots) * count * BLOCK
    store_blocks(page, block * BLOCK, low, high, mask)


@triton.jit
def _fp8_kernel(
    k,
    v,
    slot,
    amax,
    values,
    scale,
    layer,
    slots,
    count,
    row_blocks,
    k_stride,
    v_stride,
    BLOCKS: tl.constexpr,
):
    block, low, high, mask = _load_chunk(k, v, count, row_blocks, k_stride, v_stride, BLOCKS)
    step = _fp8_scale(tl.load(amax + tl.program_id(1)))
    place = _slot_of(slot, layer, slots)
    values += place * count * BLOCK
    low, high = _saturated(tl.math.div_rn(low, step)), _saturated(tl.math.div_rn(high, step))
    store_blocks(values, block * BLOCK, low, high, mask)
    if tl.program_id(0) == 0:
        tl.store(scale + place, step)


@triton.jit
def _fp8_scale(bits):
    """`formats.fp8.scale_of`: what maps the largest magnitude to 448; 1 for zero."""
    scale = tl.math.div_rn(bits.to(tl.float32, bitcast=True), E4M3_MAX)
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def _saturated(x):
    x = tl.where(x > E4M3_MAX, E4M3_MAX, x)
    return tl.where(x < -E4M3_MAX, -E4M3_MAX, x)


@triton.jit
def _nvfp4_kernel(
    k,
    v,
    slot,
    amax,
    codes,
    scales,
    global_scale,
    layer,
    slots,
    count,
    row_blocks,
    k_stride,
    v_stride,
    BLOCKS: tl.constexpr,
):
    block, low, high, mask = _load_chunk(k, v, count, row_blocks, k_stride, v_stride, BLOCKS)
    g = scale_of_amax(tl.load(amax + tl.program_id(1)), BLOCK_RULE)
    place = _slot_of(slot, layer, slots)
    codes += place * count * (BLOCK // 2)
    store_quantized(codes, scales + place * count, block, low, high, g, mask, BLOCK_RULE)
    if tl.program_id(0) == 0:
        tl.store(global_scale + place, g)


# Formats whose scale is that of a whole chunk.
SCALED = {"fp8": _fp8_kernel, "nvfp4": _nvfp4_kernel}


def write_page(
    launch: Launcher,
    pages: Sequence[Tensor],
    k: Tensor,
    v: Tensor,
    slot: Tensor,
    layer: int,
    kv_format: str,
) -> None:
    """See the op. Raises KernelError: a format that has no kernels."""
    if kv_format == "none":
        _launch(launch, _plain_kernel, (slot, *pages, layer, pages[0].shape[2]), k, v)
        return
    if kv_format not in SCALED:
        raise KernelError(
            f"no kernel writes pages of format {kv_format!r}",
            fix=f"choose one of none, {', '.join(SCALED)}",
        )
    amax = no_amax(k, 2)
    _launch(launch, _amax_kernel, (amax,), k, v)
    _launch(launch, SCALED[kv_format], (slot, amax, *pages, layer, pages[0].shape[2]), k, v)


def write_kept(
    launch: Launcher, kept: Tensor, k: Tensor, v: Tensor, slot: Tensor, layer: int
) -> None:
    """See the op."""
    _launch(launch, _plain_kernel, (slot, kept, layer, kept.shape[2]), k, v)


def _launch(launch: Launcher, kernel: Any, args: tuple[Any, ...], k: Tensor, v: Tensor) -> None:
    """`args` stand between the chunk and how it lies in memory."""
    chunk = [as_rows(t.flatten(2)) for t in (k, v)]
    row_blocks = blocks_in(chunk[0].shape[-1])
    count = chunk[0].shape[0] * row_blocks
    launch(
        kernel,
        (triton.cdiv(count, BLOCKS), 2),
        *(*chunk, *args, count, row_blocks, *(t.stride(0) for t in chunk)),
        BLOCKS=BLOCKS,
        warps=WARPS,
        exact=True,
    )
