"""`gelu_quantize`: the activation of a feed-forward network, written as NVFP4.

Shapes: K channels per row, K/16 blocks of them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from math import pi, sqrt

import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import BLOCK, amax_bits, load_blocks
from llvq.backends.triton.global_scale import load_global_scale, no_amax
from llvq.backends.triton.norm import rounded
from llvq.backends.triton.quantize import store_quantized
from llvq.backends.triton.rows import blocks_in
from llvq.backends.triton.specialize import Launcher
from llvq.dialect.nvfp4_ops import packed_like

BLOCKS = 128
WARPS = 4
SQRT_HALF = tl.constexpr(sqrt(0.5))
TWICE_SQRT_2_OVER_PI = tl.constexpr(2.0 * sqrt(2.0 / pi))
CUBE = tl.constexpr(0.044715)


@triton.jit
def gelu(x, APPROXIMATE: tl.constexpr):
    """fp32, by erf ("none") or tanh ("tanh"), as `torch.nn.functional.gelu`."""
    if APPROXIMATE == "tanh":
        # (1 + tanh(u)) / 2 is the logistic function of 2u, which overflows to the right limits.
        twice = TWICE_SQRT_2_OVER_PI * (x + CUBE * x * x * x)
        return x / (1.0 + tl.exp(-twice))
    else:
        return x * 0.5 * (1.0 + tl.math.erf(x * SQRT_HALF))


@triton.jit
def _gelu_kernel(
    x,
    smooth,
    given,
    amax,
    codes,
    scales,
    used,
    count,
    row_blocks,
    APPROXIMATE: tl.constexpr,
    RULE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """NVFP4 if `codes` are there, else only the largest magnitude."""
    dtype: tl.constexpr = x.dtype.element_ty
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    low, high = load_blocks(x, block * BLOCK, mask)
    low, high = rounded(gelu(low, APPROXIMATE), dtype), rounded(gelu(high, APPROXIMATE), dtype)
    if smooth is not None:
        smooth_low, smooth_high = load_blocks(smooth, block % row_blocks * BLOCK, mask)
        low, high = rounded(low * smooth_low, dtype), rounded(high * smooth_high, dtype)
    if codes is None:
        tl.atomic_max(amax, amax_bits(low, high), sem="relaxed")
    else:
        g = load_global_scale(given, amax, RULE)
        store_quantized(codes, scales, block, low, high, g, mask, RULE)
        if tl.program_id(0) == 0:
            tl.store(used, g)


def gelu_quantize(
    launch: Launcher,
    x: Tensor,
    approximate: str,
    block_rule: str,
    global_scale: Tensor | None = None,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op. A dynamic scale costs one more read of x: activations are never stored."""
    x = x.contiguous()
    row_blocks = blocks_in(x.shape[-1])
    count = x.numel() // BLOCK.value
    out, amax = packed_like(x), None

    if global_scale is None:
        amax = no_amax(x)
        _launch(launch, x, smooth, (None, amax, None, None, None), count, row_blocks, approximate)
    results = (global_scale, amax, *out)
    _launch(launch, x, smooth, results, count, row_blocks, approximate, block_rule)
    return out


def _launch(
    launch: Launcher,
    x: Tensor,
    smooth: Tensor | None,
    results: tuple[Tensor | None, ...],
    count: int,
    row_blocks: int,
    approximate: str,
    rule: str = "max",
) -> None:
    launch(
        _gelu_kernel,
        (triton.cdiv(count, BLOCKS),),
        *(x, smooth, *results, count, row_blocks),
        APPROXIMATE=approximate,
        RULE=rule,
        BLOCKS=BLOCKS,
        warps=WARPS,
        exact=True,
    )
