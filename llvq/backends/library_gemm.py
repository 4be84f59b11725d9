"""The W4A4 linear by cuBLASLt through torch, on chips with NVFP4 tensor cores.

It reads scales in the 128x4 atoms of our own kernel, and takes one global scale per operand: a
weight of several matrices is as many calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.backends.triton.block_scaled_gemm import swizzle_scales
from llvq.backends.triton.gemm import aligned
from llvq.backends.triton.specialize import Launcher

RECIPE = [F.ScalingType.BlockWise1x16, F.ScalingType.TensorWise]
SWIZZLE = [F.SwizzleType.SWIZZLE_32_4_4, F.SwizzleType.NO_SWIZZLE]


def nvfp4_linear_library(
    launch: Launcher,
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """llvq.nvfp4_linear with linear scales; torch asks that each segment is a multiple of 16."""
    x = aligned(x_codes).flatten(0, -2).view(torch.float4_e2m1fn_x2)
    x_held = [swizzle_scales(launch, x_scales), x_global.reshape(1)]
    w = aligned(w_codes).view(torch.float4_e2m1fn_x2)
    borders = pairwise(accumulate(segments or [w.shape[0]], initial=0))
    parts = [
        F.scaled_mm(
            x,
            w[start:stop].t(),
            scale_a=x_held,
            scale_recipe_a=RECIPE,
            scale_b=[swizzle_scales(launch, w_scales[start:stop]), scale.reshape(1)],
            scale_recipe_b=RECIPE,
            swizzle_a=SWIZZLE,
            swizzle_b=SWIZZLE,
            bias=None if bias is None else bias[start:stop],
            output_dtype=dtype,
        )
        for (start, stop), scale in zip(borders, w_global.reshape(-1), strict=True)
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return y.view(*x_codes.shape[:-1], -1)
