"""The W4A4 linear by cuBLASLt through torch, on chips with NVFP4 tensor cores.

It reads scales in the 128x4 atoms of our own kernel, and takes one global scale per operand: a
weight of several matrices is as many calls. One that was swizzled whole can be cut between atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from llvq.backends.triton.block_scaled_gemm import ATOM, ATOM_ROWS, swizzle_scales
from llvq.backends.triton.gemm import aligned
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError

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
    """llvq.nvfp4_linear and llvq.nvfp4_linear_swizzled.

    Torch asks that each segment is a multiple of 16. Raises TargetError for swizzled segments that
    do not start at a multiple of 128.
    """
    x = aligned(x_codes).flatten(0, -2).view(torch.float4_e2m1fn_x2)
    x_held = [swizzle_scales(launch, x_scales), x_global.reshape(1)]
    w = aligned(w_codes).view(torch.float4_e2m1fn_x2)
    borders = list(pairwise(accumulate(segments or [w.shape[0]], initial=0)))
    w_atoms = _atoms_of_parts(launch, w_scales, borders, triton.cdiv(w_codes.shape[1], 32))
    parts = [
        F.scaled_mm(
            x,
            w[start:stop].t(),
            scale_a=x_held,
            scale_recipe_a=RECIPE,
            scale_b=[atoms, scale.reshape(1)],
            scale_recipe_b=RECIPE,
            swizzle_a=SWIZZLE,
            swizzle_b=SWIZZLE,
            bias=None if bias is None else bias[start:stop],
            output_dtype=dtype,
        )
        for (start, stop), atoms, scale in zip(borders, w_atoms, w_global.reshape(-1), strict=True)
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return y.view(*x_codes.shape[:-1], -1)


def _atoms_of_parts(
    launch: Launcher, scales: Tensor, borders: Sequence[tuple[int, int]], atoms_k: int
) -> list[Tensor]:
    """The scales of each matrix, flat in atoms, of linear scales or of flat ones."""
    if scales.ndim > 1:
        return [swizzle_scales(launch, scales[start:stop]) for start, stop in borders]
    if any(start % ATOM_ROWS for start, _ in borders):
        raise TargetError(
            "cuBLASLt cannot multiply by a part of this weight",
            because=f"its scales were swizzled whole, and {ATOM_ROWS} rows share an atom",
            fix="choose our own kernel for its shape in gemm_choice.toml",
        )
    row = atoms_k * ATOM
    return [
        scales[start // ATOM_ROWS * row : triton.cdiv(stop, ATOM_ROWS) * row]
        for start, stop in borders
    ]
