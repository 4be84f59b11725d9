"""A graph is run without bytes: what it would allocate is seen, what it cannot do is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

from llvq.compiler import Compiled
from llvq.errors import ArtifactError
from llvq.graphs.liveness import peak
from llvq.graphs.on_meta import check_values, run_on_meta

aten = torch.ops.aten


def graph_of(target: Callable[..., Any], args: tuple[Any, ...], val: Any = None) -> GraphModule:
    """One call, whose result is recorded as `val`. "x" among the arguments is a float32 [4]."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, device="meta")
    call = graph.call_function(target, tuple(x if a == "x" else a for a in args))
    call.meta["val"] = val
    graph.output((call,))
    return GraphModule(torch.nn.Module(), graph)


def test_what_is_made_of_nothing_takes_no_memory_here() -> None:
    gm = graph_of(aten.zeros.default, ([2**40],), torch.empty(2**40, device="meta"))
    values = run_on_meta(gm)
    check_values(gm, values)
    assert peak(gm, values).nbytes == 2**42


@pytest.mark.parametrize("val", [torch.ones(5), torch.ones(4).double(), 4, None, [1]], ids=repr)
def test_a_value_that_is_not_as_recorded(val: Any) -> None:
    gm = graph_of(aten.relu.default, ("x",), val)
    with pytest.raises(ArtifactError, match=r"it gives float32 \[4\]") as caught:
        check_values(gm, run_on_meta(gm))
    assert "node relu" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.relu.default, ()),
        (aten.relu.default, (3,)),
        (aten.mm.default, ("x", "x")),
        (aten.zeros.default, ([2**62, 2**62],)),
        (aten.item.default, ("x",)),
        (aten.nonzero.default, ("x",)),
        (operator.getitem, ("x", "key")),
        (operator.mul, ([0], 2**60)),
        (operator.mul, ("text", 2**60)),
        (operator.mul, (2**40, 2**40)),
        (operator.floordiv, (1, 0)),
    ],
    ids=str,
)
def test_a_call_that_cannot_be_made(target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with pytest.raises(ArtifactError, match="cannot be called like this") as caught:
        run_on_meta(graph_of(target, args))
    assert str(caught.value).count("\n") == 3


def test_compiled_stages_are_what_they_say(compiled_whole: Compiled) -> None:
    for stage in compiled_whole.stages.values():
        check_values(stage.graph, run_on_meta(stage.graph))
