"""Convolutions of graphs on a CPU: right to one rounding, in every form that a graph has them."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from llvq.runtime import cpu_convolutions
from llvq.runtime.cpu_convolutions import ON_CPU, widen_convolutions

aten = torch.ops.aten


def graph_of(op: object, *rest: object, bias: bool) -> GraphModule:
    """2 * conv(x, weight, bias), as a graph."""
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    given = graph.placeholder("bias") if bias else None
    out = graph.call_function(op, (x, weight, given, *rest))  # type: ignore[arg-type]
    graph.output(graph.call_function(operator.mul, (out, 2)))
    return GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize(
    "dims, rest",
    [
        (2, ()),
        (2, ([2, 2], [1, 1])),
        (3, ()),
        (3, ([1, 2, 2], [0, 1, 1])),
        (3, ([2], [0], [1])),
        (3, ([2, 1, 1], [1, 1, 1])),
        (3, ([1, 1, 1], [0, 0, 0], [2, 1, 1])),
    ],
)
@pytest.mark.parametrize("small", [0, cpu_convolutions.SMALL], ids=["by frame", "at once"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_rounded_once(
    dims: int, rest: tuple[object, ...], bias: bool, dtype: torch.dtype, small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cpu_convolutions, "SMALL", small)
    op = {2: aten.conv2d.default, 3: aten.conv3d.default}[dims]
    gm = graph_of(op, *rest, bias=bias)
    widen_convolutions(gm)
    x, weight = torch.randn(1, 4, *[6] * dims).to(dtype), torch.randn(5, 4, *[3] * dims).to(dtype)
    given: tuple[Tensor, ...] = (torch.randn(5).to(dtype),) if bias else ()
    exact = op(*(t.double() for t in (x, weight)), *([t.double() for t in given] or [None]), *rest)
    found = gm(x, weight, *given)
    assert found.dtype == dtype
    # Rounding to nearest, and what fp32 loses in sums of 108 products.
    relative = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), 2 * exact, rtol=relative, atol=1e-4)


def test_nothing_else_is_touched() -> None:
    gm = graph_of(aten.conv3d.default, bias=True)
    widen_convolutions(gm)
    targets = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert targets == [ON_CPU[aten.conv3d.default], operator.mul]
    code = gm.code
    widen_convolutions(gm)
    assert gm.code == code
