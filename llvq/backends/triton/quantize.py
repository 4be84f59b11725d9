"""`llvq::quantize` and `llvq::dequantize`, bit for bit.

Shapes: K elements per row, K/16 blocks of them, R rows of the last two dimensions.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import (
    BLOCK,
    amax_bits,
    load_blocks,
    quantize_blocks,
    store_blocks,
)
from llvq.backends.triton.e2m1 import decode_e2m1
from llvq.backends.triton.gemm import column_scales, segment_text
from llvq.backends.triton.global_scale import load_global_scale, no_amax
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.nvfp4_ops import packed_like

# Blocks per program, one for each thread.
BLOCKS = 128
AMAX_BLOCKS = 512


@triton.jit
def _amax_kernel(x, found, count, BLOCKS: tl.constexpr):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    low, high = load_blocks(x, block * BLOCK, block < count)
    tl.atomic_max(found, amax_bits(low, high), sem="relaxed")


@triton.jit
def _quantize_kernel(
    x, given, amax, codes, scales, used, count, RULE: tl.constexpr, BLOCKS: tl.constexpr
):
    g = load_global_scale(given, amax, RULE)
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    low, high = load_blocks(x, block * BLOCK, block < count)
    store_quantized(codes, scales, block, low, high, g, block < count, RULE)
    if tl.program_id(0) == 0:
        tl.store(used, g)


@triton.jit
def store_quantized(codes, scales, block, low, high, g, mask, RULE: tl.constexpr):
    """Quantize blocks, and store them as those of these numbers, int [B]."""
    words, scale = quantize_blocks(low, high, g, RULE)
    place = block[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(codes.to(tl.pointer_type(tl.int32)) + place, words, mask=mask[:, None])
    tl.store(scales + block, scale, mask=mask)


def quantize(
    launch: Launcher, x: Tensor, block_rule: str, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op. A dynamic scale costs one more read of x."""
    x = x.contiguous()
    out = packed_like(x)
    count, amax = x.numel() // BLOCK.value, None
    if global_scale is None:
        amax = no_amax(x)
        grid = (triton.cdiv(count, AMAX_BLOCKS),)
        launch(_amax_kernel, grid, x, amax, count, BLOCKS=AMAX_BLOCKS, warps=4, exact=True)
    launch(
        _quantize_kernel,
        (triton.cdiv(count, BLOCKS),),
        *(x, global_scale, amax, *out, count),
        RULE=block_rule,
        BLOCKS=BLOCKS,
        warps=4,
        exact=True,
    )
    return out


@triton.jit
def _dequantize_kernel(
    codes, scales, g, out, count, rows, row_blocks, SEGMENTS: tl.constexpr, BLOCKS: tl.constexpr
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    row_scale = column_scales(g, block // row_blocks % rows, SEGMENTS)
    step = tl.load(scales + block, mask=mask, other=0.0).to(tl.float32) * row_scale
    words = codes.to(tl.pointer_type(tl.int32)) + 2 * block
    low = decode_e2m1(tl.load(words, mask=mask, other=0)) * step[:, None]
    high = decode_e2m1(tl.load(words + 1, mask=mask, other=0)) * step[:, None]
    store_blocks(out, block * BLOCK, low, high, mask)


def dequantize(
    launch: Launcher,
    codes: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """See the op."""
    codes, scales = codes.contiguous(), scales.contiguous()
    *lead, half = codes.shape
    out = codes.new_empty((*lead, 2 * half), dtype=dtype)
    count = scales.numel()
    rows = lead[-1] if lead else 1
    launch(
        _dequantize_kernel,
        (triton.cdiv(count, BLOCKS),),
        *(codes, scales, global_scale.reshape(-1), out, count, rows, scales.shape[-1]),
        SEGMENTS=segment_text(segments),
        BLOCKS=BLOCKS,
        warps=4,
        exact=True,
    )
    return out
