"""Implementations for tests of what is around them: one small kernel, the rest as custom ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT


@triton.jit
def gate_residual_kernel(x, y, gate, out, count, rows, E: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    group = at // (rows * E)
    gated = tl.load(y + at, inside) * tl.load(gate + group * E + at % E, inside)
    tl.store(out + at, tl.load(x + at, inside) + gated.to(tl.bfloat16), inside)


def gate_residual(launch: Launcher, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x, y [B, N, E], gate [B, G, E], all bf16."""
    out = torch.empty_like(x)
    rows = x.shape[1] // gate.shape[1]
    grid = (-(-x.numel() // 256),)
    launch(gate_residual_kernel, grid, x, y, gate, out, x.numel(), rows, E=x.shape[2], BLOCK=256)
    return out


class AsCustomOp:
    """An op as it is: its fake on `meta`, its reference elsewhere."""

    def __init__(self, op: str) -> None:
        self.overload = DIALECT[op].overload

    def __call__(self, launch: Launcher, *args: Any, **kwargs: Any) -> Any:
        return self.overload(*args, **kwargs)


OPS: dict[str, Callable[..., Any]] = {
    **{op: AsCustomOp(op) for op in DIALECT},
    "nvfp4_linear:dequant": AsCustomOp("nvfp4_linear"),
    "nvfp4_linear:sm120": AsCustomOp("nvfp4_linear"),
    "nvfp4_linear_gate_residual:sm120": AsCustomOp("nvfp4_linear_gate_residual"),
    "nvfp4_linear_gelu:sm120": AsCustomOp("nvfp4_linear_gelu"),
    "nvfp4_linear_gelu_quantize:sm120": AsCustomOp("nvfp4_linear_gelu_quantize"),
    "nvfp4_linear_swizzled:sm120": AsCustomOp("nvfp4_linear_swizzled"),
    "paged_attention:sm120": AsCustomOp("paged_attention"),
    "paged_attention_fp4:sm120": AsCustomOp("paged_attention_fp4"),
    "gate_residual": gate_residual,
}
