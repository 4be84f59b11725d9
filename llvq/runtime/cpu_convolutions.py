"""Convolutions in half precision on a CPU: computed in fp32, and rounded once.

PyTorch has them in bf16 for CPUs with AVX-512, and for all others loops, which took thirty times as
long. So every CPU computes them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

aten = torch.ops.aten
SMALL = 2**14  # elements of an input for which a call per frame costs more than it saves


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
) -> Tensor:
    """aten.conv2d."""
    return _in_fp32(aten.conv2d.default, x, weight, bias, *more, **named)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """aten.conv3d, if not small frame by frame: time is more channels of a convolution in space.

    PyTorch has that several times faster.
    """
    (st, *stride), (pt, *padding), (dt, *dilation) = (
        [*given] * (3 // len(given)) for given in (stride, padding, dilation)
    )
    if x.numel() < SMALL or pt or dt != 1 or groups != 1:
        return _in_fp32(aten.conv3d.default, x, weight, bias, (st, *stride), (pt, *padding),
                        (dt, *dilation), groups)  # fmt: skip
    depth, flat = weight.shape[2], weight.float().flatten(1, 2)
    wide = None if bias is None else bias.float()
    frames = [
        aten.conv2d.default(x[:, :, t : t + depth].float().flatten(1, 2), flat, wide,
                            stride, padding, dilation)
        for t in range(0, x.shape[2] - depth + 1, st)
    ]  # fmt: skip
    return torch.stack(frames, dim=2).to(x.dtype)


ON_CPU = {aten.conv2d.default: conv2d, aten.conv3d.default: conv3d}


def widen_on_cpu(graphs: Iterable[GraphModule], device: torch.device) -> None:
    """The last that is done to graphs which are about to run: nothing, if not on a CPU."""
    for gm in graphs if device.type == "cpu" else ():
        widen_convolutions(gm)


def widen_convolutions(gm: GraphModule) -> None:
    """Give the convolutions of a graph that runs on a CPU what computes them in fp32."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in ON_CPU:
            node.target = ON_CPU[node.target]
    gm.recompile()


def _in_fp32(
    op: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *more: Any, **named: Any
) -> Tensor:
    wide = None if bias is None else bias.float()
    result: Tensor = op(x.float(), weight.float(), wide, *more, **named)
    return result.to(x.dtype)
