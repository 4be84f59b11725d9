"""Allocations of a graph, against what a real run of it allocates."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from llvq.compiler import Compiled
from llvq.graphs.allocations import Allocations, Storages, allocations, tensors_of
from llvq.graphs.liveness import peak
from llvq.graphs.on_meta import checked_call

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


def events(found: Allocations) -> list[tuple[int, int | None]]:
    """Numbered from 0."""
    numbers = list(dict.fromkeys(number for number, _ in found.events))
    return [(numbers.index(number), nbytes) for number, nbytes in found.events]


def test_a_chain_gives_back_what_nobody_reads_any_more() -> None:
    graph, x = start()
    first = relu(graph, x)
    second = relu(graph, first)
    found = allocations(finish(graph, second))
    assert events(found) == [(0, ROW), (1, ROW), (0, None)]
    assert len(found.kept) == 1 and found.peak == (2 * ROW, second.name)


def test_views_keep_their_base_and_inputs_do_not_count() -> None:
    graph, x = start()
    base = relu(graph, x)
    row = graph.call_function(aten.select.int, (base, 0, 1))
    total = graph.call_function(aten.add.Tensor, (x, row))
    found = allocations(finish(graph, total, x))
    assert events(found) == [(0, ROW), (1, ROW), (0, None)]


def test_what_a_call_allocates_for_itself_is_seen() -> None:
    graph, x = start()
    made = relu(graph, x)

    def call(node: Node, args: Any, kwargs: Any) -> Any:
        scratch = torch.empty(100, device="meta")
        del scratch
        return checked_call(node, args, kwargs)

    found = allocations(finish(graph, made), call)
    assert events(found) == [(0, 400), (0, None), (1, ROW)]
    assert found.peak == (400, made.name)


def test_a_result_that_nobody_reads_is_given_back_at_once() -> None:
    graph, x = start()
    pair = graph.call_function(aten.split.Tensor, (relu(graph, x), 2))
    half = graph.call_function(operator.getitem, (pair, 0))
    relu(graph, half)
    found = allocations(finish(graph, x))
    assert events(found) == [(0, ROW), (1, ROW // 2), (0, None), (1, None)]


@pytest.mark.parametrize("stage", ["condition", "denoise", "refresh", "decode"])
def test_stages_allocate_what_a_real_run_does(compiled_whole: Compiled, stage: str) -> None:
    """Of a run with values: storages that a mode sees come and go."""
    from llvq import graphs

    gm = compiled_whole.stages[stage].graph
    found, wanted = allocations(gm), peak(gm)
    assert found.peak == (wanted.nbytes, wanted.node)
    real = graphs.load(graphs.dump(gm), device="cpu")
    graphs.attach(
        real, {n: torch.zeros(s.shape, dtype=s.dtype) for n, s in graphs.weights(real).items()}
    )
    inputs = [
        torch.zeros(spec.sizes, dtype=spec.dtype) for spec in compiled_whole.stages[stage].inputs
    ]
    owned = tensors_of([inputs, list(real.buffers())])
    held = frozenset(tensor.untyped_storage()._cdata for tensor in owned)
    with torch.inference_mode(), Storages("cpu", held) as storages:
        results = real(*inputs)
    live, most = 0, 0
    sizes: dict[int, int] = {}
    for number, nbytes in storages.events:
        live += -sizes[number] if nbytes is None else nbytes
        sizes[number] = nbytes or 0
        most = max(most, live)
    assert len(results) > 0 or stage == "refresh"
    assert most == pytest.approx(found.peak[0], rel=0.02)
