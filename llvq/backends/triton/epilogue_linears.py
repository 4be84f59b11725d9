"""W4A4 linears that do the GELU, the quantize or the gated residual that follows them: how each is
cut into tiles and strips, for sm_100a and sm_103a, and for sm_120a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from llvq.backends.triton.block_scaled_epilogues import (
    gate_residual_gemm,
    gelu_gemm,
    gelu_quantize_gemm,
)
from llvq.backends.triton.block_scaled_gemm import (
    NARROW,
    SM120,
    WIDE,
    launch_gemm,
    tile_of_sm100,
    tile_of_sm120,
)
from llvq.backends.triton.gemm import Tile
from llvq.backends.triton.global_scale import no_amax
from llvq.backends.triton.rows import as_rows, blocks_in
from llvq.backends.triton.specialize import Constant, Launcher
from llvq.dialect.nvfp4_ops import packed_like

# How many strips, chosen as tiles are: by what the compiler gives. None spills.
STRIPS = {WIDE: 4, NARROW: 4, SM120: 1}


@dataclass(frozen=True)
class EpilogueLinears:
    """The wrappers of the three ops, each with the signature of its op.

    `tile_of`: the tile for so many rows and features.
    """

    tile_of: Callable[[int, int], Tile]

    def gelu_quantize(
        self,
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
        approximate: str,
        block_rule: str,
        global_scale: Tensor,
        smooth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the op. The activated tensor is never stored."""
        operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
        features = w_codes.shape[0]
        blocks_in(features)
        out = packed_like(x_codes[..., :1].expand(*x_codes.shape[:-1], features))
        constants = {"APPROXIMATE": approximate, "RULE": block_rule, "DTYPE": _name(dtype)}
        tensors = (smooth, global_scale, *out)
        self._launch(launch, gelu_quantize_gemm, operands, tensors, **constants)
        return out

    def gelu(
        self,
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
        approximate: str,
        block_rule: str,
        smooth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the op. The program that is done last makes the scale of the largest magnitude."""
        operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
        features = w_codes.shape[0]
        blocks_in(features)
        out = x_codes.new_empty((*x_codes.shape[:-1], features), dtype=dtype)
        used = x_codes.new_empty((), dtype=torch.float32)
        constants = {"APPROXIMATE": approximate, "RULE": block_rule}
        tensors = (smooth, out, no_amax(x_codes, 2), used)
        self._launch(launch, gelu_gemm, operands, tensors, **constants)
        return out, used

    def gate_residual(
        self,
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
        residual: Tensor,
        gate: Tensor,
    ) -> Tensor:
        """See the op."""
        operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
        stream, gates = as_rows(residual), as_rows(gate)
        out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
        sizes = (stream.shape[0] // gates.shape[0], stream.stride(0), gates.stride(0))
        tensors, constants = (stream, gates, out), {"DTYPE": _name(dtype)}
        self._launch(launch, gate_residual_gemm, operands, tensors, *sizes, **constants)
        return out

    def _launch(
        self,
        launch: Launcher,
        kernel: Any,
        operands: tuple[Any, ...],
        tensors: tuple[Tensor | None, ...],
        *sizes: int,
        **constants: Constant,
    ) -> None:
        x, w, bias, segments = operands[:3], operands[3:6], operands[6], operands[7]
        tile = self.tile_of(prod(x[0].shape[:-1]), w[0].shape[0])
        constants["STRIPS"] = STRIPS[tile]
        launch_gemm(launch, kernel, x, w, (bias, *tensors), segments, tile, *sizes, **constants)


ON_SM100, ON_SM120 = EpilogueLinears(tile_of_sm100), EpilogueLinears(tile_of_sm120)


def _name(dtype: torch.dtype) -> str:
    """As `triton.language` names it."""
    return str(dtype).removeprefix("torch.")
