"""GELU in registers, both spellings that PyTorch has."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.5**0.5)
ROOT_2_OVER_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def gelu(x, APPROXIMATE: tl.constexpr):
    """fp32 -> fp32. `tanh` is the approximation of that name, `none` is by the error function."""
    if APPROXIMATE == "tanh":
        inner = ROOT_2_OVER_PI * (x + CUBIC * x * x * x)
        # tanh(y) = 1 - 2 / (exp(2y) + 1), which neither overflows nor cancels where it matters.
        return 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    else:
        return 0.5 * x * (1.0 + tl.math.erf(x * ROOT_HALF))
