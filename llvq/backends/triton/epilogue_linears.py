"""W4A4 linears that do the GELU, the quantize or the gated residual that follows them: how each is
cut into tiles and strips, for sm_100a and sm_103a, and for sm_120a.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def nvfp4_linear_gelu_quantize(
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
    return _gelu_quantize(
        launch,
        tile_of_sm100(*_size(operands)),
        operands,
        approximate,
        block_rule,
        global_scale,
        smooth,
    )


def nvfp4_linear_gelu(
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
    return _gelu(launch, tile_of_sm100(*_size(operands)), operands, approximate, block_rule, smooth)


def nvfp4_linear_gate_residual(
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
    return _gate_residual(launch, tile_of_sm100(*_size(operands)), operands, residual, gate)


def nvfp4_linear_gelu_quantize_sm120(
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
    """The same on sm_120a."""
    operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
    return _gelu_quantize(
        launch,
        tile_of_sm120(*_size(operands)),
        operands,
        approximate,
        block_rule,
        global_scale,
        smooth,
    )


def nvfp4_linear_gelu_sm120(
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
    """The same on sm_120a."""
    operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
    return _gelu(launch, tile_of_sm120(*_size(operands)), operands, approximate, block_rule, smooth)


def nvfp4_linear_gate_residual_sm120(
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
    """The same on sm_120a."""
    operands = (x_codes, x_scales, x_global, w_codes, w_scales, w_global, bias, segments, dtype)
    return _gate_residual(launch, tile_of_sm120(*_size(operands)), operands, residual, gate)


def _size(operands: tuple[Any, ...]) -> tuple[int, int]:
    """Rows and features of what the linear gives."""
    return prod(operands[0].shape[:-1]), operands[3].shape[0]


def _gelu_quantize(
    launch: Launcher,
    tile: Tile,
    operands: tuple[Any, ...],
    approximate: str,
    block_rule: str,
    global_scale: Tensor,
    smooth: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    x, features = operands[0], operands[3].shape[0]
    blocks_in(features)
    out = packed_like(x.new_empty((*x.shape[:-1], features)))
    constants = {"APPROXIMATE": approximate, "RULE": block_rule, "DTYPE": _name(operands[8])}
    tensors = (smooth, global_scale, *out)
    _launch(launch, gelu_quantize_gemm, tile, operands, tensors, **constants)
    return out


def _gelu(
    launch: Launcher,
    tile: Tile,
    operands: tuple[Any, ...],
    approximate: str,
    block_rule: str,
    smooth: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x, features = operands[0], operands[3].shape[0]
    blocks_in(features)
    out = x.new_empty((*x.shape[:-1], features), dtype=operands[8])
    used = x.new_empty((), dtype=torch.float32)
    tensors = (smooth, out, no_amax(x, 2), used)
    constants = {"APPROXIMATE": approximate, "RULE": block_rule}
    _launch(launch, gelu_gemm, tile, operands, tensors, **constants)
    return out, used


def _gate_residual(
    launch: Launcher, tile: Tile, operands: tuple[Any, ...], residual: Tensor, gate: Tensor
) -> Tensor:
    stream, gates = as_rows(residual), as_rows(gate)
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    sizes = (stream.shape[0] // gates.shape[0], stream.stride(0), gates.stride(0))
    tensors, constants = (stream, gates, out), {"DTYPE": _name(operands[8])}
    _launch(launch, gate_residual_gemm, tile, operands, tensors, *sizes, **constants)
    return out


def _name(dtype: torch.dtype) -> str:
    """As `triton.language` names it."""
    return str(dtype).removeprefix("torch.")


def _launch(
    launch: Launcher,
    kernel: Any,
    tile: Tile,
    operands: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    *sizes: int,
    **constants: Constant,
) -> None:
    x, w, bias, segments = operands[:3], operands[3:6], operands[6], operands[7]
    constants["STRIPS"] = STRIPS[tile]
    launch_gemm(launch, kernel, x, w, (bias, *tensors), segments, tile, *sizes, **constants)
