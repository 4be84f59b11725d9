"""Ops that a library runs: cuDNN and cuBLASLt through torch, or the reference without a custom op.

The launcher is not asked: nothing here is a kernel of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT


class Reference:
    """The reference of an op as an implementation: plain torch code, on any device."""

    def __init__(self, op: str) -> None:
        self.op, self.reference = op, DIALECT[op].reference

    def __call__(self, launch: Launcher, *args: Any, **kwargs: Any) -> Any:
        return self.reference(*args, **kwargs)


def fp8_linear(
    launch: Launcher,
    x_values: Tensor,
    x_scale: Tensor,
    w_values: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """cuBLASLt with a scale for each row and each column; K and F are multiples of 16."""
    y = torch._scaled_mm(
        x_values.flatten(0, -2),
        w_values.t(),
        scale_a=x_scale.reshape(-1, 1),
        scale_b=w_scale.reshape(1, -1),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return y.view(*x_values.shape[:-1], -1)


OPS: Mapping[str, Callable[..., Any]] = {
    **{op: Reference(op) for op in DIALECT},
    "fp8_linear": fp8_linear,
}
