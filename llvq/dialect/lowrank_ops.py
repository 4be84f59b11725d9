"""Ops of a linear with a low-rank branch, `linear(x) + (x @ down.T) @ up.T`, as SVDQuant has it.

The branch has two halves, and a kernel fuses each with what it stands beside: the projection down
reads the x that is being quantized, the projection up adds to the output tile of the GEMM.

Shapes: K reduction dim, F output features, R rank, S stacked weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.nvfp4_ops import nvfp4_linear, packed_like, quantize
from llvq.dialect.registry import BF16_ROUNDING, like_first, op


def _lowrank_add_fake(y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    _require_fit(x.shape[-1], y.shape[-1], down, up)
    return like_first(y)


@op(fake=_lowrank_add_fake, tolerance=BF16_ROUNDING)
def lowrank_add(y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`y + (x @ down.T) @ up.T`: y [..., F], x [..., K], down [R, K], up [F, R], all of one dtype;
    rounds to it after each of the three steps."""
    return y + F.linear(F.linear(x, down), up)


def _quantize_lowrank_fake(
    x: Tensor, down: Tensor, block_rule: str, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *packed_like(x), x.new_empty((*x.shape[:-1], down.shape[0]))


@op(fake=_quantize_lowrank_fake, tolerance=BF16_ROUNDING)
def quantize_lowrank(
    x: Tensor, down: Tensor, block_rule: str, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`quantize(x)` and `x @ down.T` [..., S*R] in one read of x; down [S*R, K] may be stacked.

    The tolerance is for the product: codes and scales are those of `quantize`, bit for bit.
    """
    return *quantize.reference(x, block_rule, global_scale), F.linear(x, down)


def _nvfp4_linear_lowrank_fake(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    x_down: Tensor,
    up: Tensor,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    if up.shape[0] != w_codes.shape[0] or x_down.shape[-1] != len(segments) * up.shape[1]:
        raise ValueError(
            f"the low-rank branch [.., {x_down.shape[-1]}] x {list(up.shape)} does not fit a "
            f"weight of {w_codes.shape[0]} rows in {len(segments)} segments"
        )
    return x_codes.new_empty((*x_codes.shape[:-1], w_codes.shape[0]), dtype=dtype)


@op(fake=_nvfp4_linear_lowrank_fake, tolerance=BF16_ROUNDING)
def nvfp4_linear_lowrank(
    x_codes: Tensor,
    x_scales: Tensor,
    x_global: Tensor,
    w_codes: Tensor,
    w_scales: Tensor,
    w_global: Tensor,
    bias: Tensor | None,
    x_down: Tensor,
    up: Tensor,
    segments: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """`nvfp4_linear(x, w, bias)`, and for each segment its part of `x_down` times its rows of up.

    up is [F, R], stacked like the weight; x_down [..., S*R] is what `quantize_lowrank` gives.
    """
    packed = (x_codes, x_scales, x_global, w_codes, w_scales, w_global)
    y = nvfp4_linear.reference(*packed, bias, segments, dtype)
    projected = x_down.split(up.shape[1], dim=-1)
    ups = up.split(list(segments))
    return y + torch.cat([F.linear(h, u) for h, u in zip(projected, ups, strict=True)], dim=-1)


def _require_fit(features: int, rows: int, down: Tensor, up: Tensor) -> None:
    if down.shape != (up.shape[1], features) or up.shape[0] != rows:
        raise ValueError(
            f"down {list(down.shape)} and up {list(up.shape)} are no branch from "
            f"K = {features} to {rows} features"
        )
