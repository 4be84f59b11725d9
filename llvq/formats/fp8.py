"""FP8 values with scales: float8_e4m3fn codes, one fp32 scale for whatever shares one.

A value decodes as `code * scale`. The scale maps the largest magnitude to 448: `amax / 448` by a
true fp32 division, and every code is `x / scale`, clamped to +-448 before it is rounded (torch 2.11
gives NaN above 464). All zeros have scale 1. NaN and infinity make the scale, and with it all that
it decodes, NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.formats.nvfp4 import E4M3_MAX

DTYPE = torch.float8_e4m3fn


def scale_of(amax: Tensor) -> Tensor:
    """The fp32 scale that maps these magnitudes to 448; 1 where that is zero."""
    scale = amax.float()
    # By a tensor: by a number, PyTorch multiplies with its reciprocal on a GPU.
    scale = scale / torch.full_like(scale, E4M3_MAX)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def encode(x: Tensor, scale: Tensor) -> Tensor:
    """Codes of x, contiguous, under a scale that broadcasts; what it cannot reach saturates."""
    codes = (x.float() / scale).clamp_(-E4M3_MAX, E4M3_MAX)
    return codes.to(DTYPE, memory_format=torch.contiguous_format)


def quantize(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Codes like x, and the scale that the values along `dims` share, those dims kept at size 1."""
    scale = scale_of(x.abs().amax(tuple(dims), keepdim=True))
    return encode(x, scale), scale
