"""Bound graphs call their implementations, and stay graphs: code, globals, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from llvq.backends import implementations
from llvq.backends.implementations import find_implementation
from llvq.dialect import DIALECT
from llvq.errors import KernelError
from llvq.runtime.bind import BoundOp, bind, implementation_of, op_of
from tests.backends import toy_ops


def launch(*_: object, **__: object) -> None:
    raise AssertionError("nothing is launched here")


def call(graph: Graph, op: str, impl: str | None, *args: Any, **kwargs: Any) -> Node:
    node = graph.call_function(DIALECT[op].overload, args, kwargs)
    if impl is not None:
        node.meta["custom"] = {"llvq": {"impl": impl, "rule": "made"}}
    return node


@pytest.fixture
def graph(toy_kernels: None) -> GraphModule:
    """x is quantized by a kernel, normed by a library, normed by the reference, and added."""
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    codes = call(graph, "quantize", "triton", x, block_rule="max")
    first = graph.call_function(torch.ops.aten.add.Tensor, (x, 1.0))
    normed = call(graph, "rms_norm", "torch", first, weight, 1e-6, False)
    again = call(graph, "rms_norm", "reference", normed, weight, 1e-6, False)
    last = call(graph, "rms_norm", "torch", again, weight, eps=1e-6, round_first=True)
    graph.output((codes, last))
    return GraphModule(torch.nn.Module(), graph)


def run(gm: GraphModule) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    x, weight = torch.randn(3, 32, generator=random), torch.randn(32, generator=random)
    (codes, scales, g), normed = gm(x, weight)
    return [codes, scales.view(torch.uint8), g, normed]


def test_a_bound_graph_gives_what_it_gave(graph: GraphModule) -> None:
    before = run(graph)
    bind(graph, launch)
    assert all(torch.equal(a, b) for a, b in zip(run(graph), before, strict=True))
    graph.graph.lint()
    graph.recompile()
    assert all(torch.equal(a, b) for a, b in zip(run(graph), before, strict=True))


def test_each_op_is_bound_once_to_its_implementation(graph: GraphModule) -> None:
    nodes = [node for node in graph.graph.nodes if op_of(node)]
    said = [(op_of(node), implementation_of(node)) for node in nodes]
    bind(graph, launch)
    assert [(op_of(node), implementation_of(node)) for node in nodes] == said
    quantize, first, reference, last = (node.target for node in nodes)
    assert isinstance(quantize, BoundOp) and isinstance(first, BoundOp)
    assert quantize.function is toy_ops.OPS["quantize"] and quantize.launch is launch
    assert first is last and first.function is find_implementation("torch", "rms_norm")
    assert reference is DIALECT["rms_norm"].overload
    assert repr(first) == "llvq.rms_norm[torch]"


def test_the_launcher_comes_first(graph: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []

    def quantize(launch: Any, x: Tensor, **others: Any) -> Any:
        given.append((launch, others))
        return DIALECT["quantize"].reference(x, **others)

    monkeypatch.setitem(toy_ops.OPS, "quantize", quantize)
    bind(graph, launch)
    run(graph)
    assert given == [(launch, {"block_rule": "max"})]


def test_code_names_calls_after_their_ops(graph: GraphModule) -> None:
    bind(graph, launch)
    assert "llvq_runtime_bind_quantize(x, block_rule = 'max')" in graph.code
    assert graph.code.count("llvq_runtime_bind_rms_norm(") == 2
    assert graph.code.count("torch.ops.llvq.rms_norm.default(") == 1


def test_a_name_of_python_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """FX takes a target whose name is a builtin's for that builtin, by its module."""
    function = BoundOp("abs", "triton", lambda launch, x: -x, launch)
    graph = Graph()
    graph.output((graph.call_function(function, (graph.placeholder("x"),)),))
    gm = GraphModule(torch.nn.Module(), graph)
    assert gm(torch.ones(2))[0].tolist() == [-1, -1]


def test_a_copy_of_a_bound_graph_runs(graph: GraphModule) -> None:
    bind(graph, launch)
    assert torch.equal(run(copy.copy(graph))[3], run(graph)[3])


def test_an_implementation_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(implementations.TABLES, "triton", "tests.backends.toy_ops")
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((call(graph, "rope", "triton:large", x, x, x),))
    with pytest.raises(KernelError, match=r"no implementation 'triton:large' of llvq\.rope"):
        bind(GraphModule(torch.nn.Module(), graph), launch)


def test_nodes_that_say_nothing_run_the_reference() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    assert op_of(x) is None and implementation_of(x) == "reference"
    assert implementation_of(call(graph, "rope", None, x, x, x)) == "reference"
