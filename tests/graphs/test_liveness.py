"""The peak of live values, against graphs small enough to count by hand."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Node

from llvq.compiler import Compiled
from llvq.graphs.liveness import peak
from llvq.graphs.on_meta import run_on_meta

aten = torch.ops.aten
ROW = 64  # bytes of one value below: fp32 [4, 4]


def start() -> tuple[Graph, Node]:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, 4, device="meta")
    return graph, x


def finish(graph: Graph, *outputs: Node) -> GraphModule:
    graph.output(outputs)
    return GraphModule(torch.nn.Module(), graph)


def relu(graph: Graph, x: Node) -> Node:
    return graph.call_function(aten.relu.default, (x,))


def test_a_chain_holds_two_values_and_no_input() -> None:
    graph, x = start()
    first = relu(graph, x)
    second = relu(graph, first)
    third = relu(graph, second)
    found = peak(finish(graph, third))
    assert (found.nbytes, found.node) == (2 * ROW, second.name)


def test_a_value_lives_to_its_last_reader() -> None:
    graph, x = start()
    first = relu(graph, x)
    second = relu(graph, first)
    third = relu(graph, second)
    total = graph.call_function(aten.add.Tensor, (third, first))
    assert peak(finish(graph, total)).nbytes == 3 * ROW


def test_a_view_keeps_all_of_its_base_and_takes_nothing() -> None:
    graph, x = start()
    base = relu(graph, x)
    flat = graph.call_function(aten.reshape.default, (base, [16]))
    row = graph.call_function(aten.slice.Tensor, (flat, 0, 0, 2))
    found = peak(finish(graph, row))
    assert found.nbytes == ROW


def test_a_reshape_that_must_copy_counts() -> None:
    graph, x = start()
    turned = graph.call_function(aten.permute.default, (relu(graph, x), [1, 0]))
    flat = graph.call_function(aten.reshape.default, (turned, [16]))
    assert peak(finish(graph, flat)).nbytes == 2 * ROW


def test_a_view_of_an_input_takes_nothing() -> None:
    graph, x = start()
    turned = graph.call_function(aten.permute.default, (x, [1, 0]))
    assert peak(finish(graph, turned)).nbytes == 0


@pytest.mark.parametrize(("dtype", "nbytes"), [(torch.float32, ROW), (torch.float16, ROW * 3 // 2)])
def test_a_cast_takes_memory_only_if_the_dtype_changes(dtype: torch.dtype, nbytes: int) -> None:
    graph, x = start()
    cast = graph.call_function(aten.to.dtype, (relu(graph, x), dtype))
    assert peak(finish(graph, cast)).nbytes == nbytes


def test_each_of_several_results_lives_as_long_as_it_is_read() -> None:
    graph, x = start()
    both = graph.call_function(aten.max.dim, (x, 1))  # fp32 [4] and int64 [4]
    values, places = (graph.call_function(operator.getitem, (both, i)) for i in (0, 1))
    wide = graph.call_function(aten.add.Tensor, (x, values))
    found = peak(finish(graph, wide, places))
    assert found.nbytes == 16 + 32 + ROW


def test_outputs_live_to_the_end_and_unread_values_die_at_once() -> None:
    graph, x = start()
    kept = relu(graph, x)
    relu(graph, x)
    assert peak(finish(graph, kept, relu(graph, x))).nbytes == 2 * ROW


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=12))
def test_the_peak_lies_between_one_op_and_all_values(picks: list[tuple[int, int]]) -> None:
    graph, x = start()
    made = [x]
    for left, right in picks:
        pair = (made[left % len(made)], made[right % len(made)])
        made.append(graph.call_function(aten.add.Tensor, pair))
    found = peak(finish(graph, made[-1]))
    one_op = [len({*node.all_input_nodes, node} - {x}) for node in made[1:]]
    assert max(one_op) * ROW <= found.nbytes <= len(picks) * ROW


def test_stages_of_a_model_run_on_meta_as_recorded(compiled_whole: Compiled) -> None:
    for stage in compiled_whole.stages.values():
        for node, value in run_on_meta(stage.graph).items():
            if node.op == "call_function" and isinstance(value, torch.Tensor):
                said = node.meta["val"]
                assert (value.shape, value.dtype) == (said.shape, said.dtype)
