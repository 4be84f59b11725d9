"""The fp32 scale of a tensor: given, or from its largest magnitude, which programs find together.

The magnitude is kept as bits in an int32 that starts at zero: a maximum over integers is the same
in any order, and takes NaN as the largest, so that NaN and infinity reach the scale.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.formats import nvfp4

E2M1_MAX = tl.constexpr(nvfp4.E2M1_MAX)
E4M3_MAX = tl.constexpr(nvfp4.E4M3_MAX)
FOUR_OVER_SIX_SCALE_MAX = tl.constexpr(nvfp4.FOUR_OVER_SIX_SCALE_MAX)
GLOBAL_SCALE_MIN = tl.constexpr(nvfp4.GLOBAL_SCALE_MIN)
INFINITY_BITS = tl.constexpr(nvfp4.FP32_EXPONENT_MASK)


def no_amax(like: Tensor, count: int = 1) -> Tensor:
    """Largest magnitudes of nothing yet, int32 [count]: set anew on every run of a CUDA graph."""
    return torch.zeros(count, dtype=torch.int32, device=like.device)


@triton.jit
def load_global_scale(given, amax_bits, RULE: tl.constexpr):
    """The static scale if one is given; else that of the magnitude that was found."""
    if given is None:
        return scale_of_amax(tl.load(amax_bits), RULE)
    else:
        return tl.load(given)


@triton.jit
def scale_of_amax(bits, RULE: tl.constexpr):
    """`formats.nvfp4.global_scale` of a magnitude in bits: 1 for zero, NaN for NaN and infinity."""
    limit: tl.constexpr = FOUR_OVER_SIX_SCALE_MAX if RULE == "four_over_six" else E4M3_MAX
    amax = bits.to(tl.float32, bitcast=True)
    scale = tl.math.div_rn(1.0, tl.math.div_rn(E2M1_MAX * limit, amax))
    scale = tl.where(bits == 0, 1.0, tl.maximum(scale, GLOBAL_SCALE_MIN))
    return tl.where(bits < INFINITY_BITS, scale, float("nan"))
