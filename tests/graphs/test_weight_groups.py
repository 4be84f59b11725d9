"""Groups of weights, against uses that are counted by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Node

from llvq.graphs.weight_groups import (
    SLOTS,
    Group,
    Limits,
    WeightUse,
    aligned,
    group_all,
    slot_bytes,
    weight_uses,
)

aten = torch.ops.aten
LIMITS = Limits(sizes=(1024,), smallest=256)


def uses_in_turn(count: int, nbytes: int = 1024) -> list[WeightUse]:
    """Each is read by one node, and the next one by the next node."""
    return [WeightUse(f"w{i}", nbytes, i, i) for i in range(count)]


def names(groups: tuple[Group, ...]) -> list[tuple[str, ...]]:
    return [group.names for group in groups]


def test_weights_of_a_group_are_read_after_each_other() -> None:
    made = group_all({"a": uses_in_turn(14, 512)}, limits=LIMITS)["a"]
    assert names(made) == [(f"w{2 * i}", f"w{2 * i + 1}") for i in range(7)]
    assert [(group.first, group.last) for group in made[:2]] == [(0, 1), (2, 3)]
    assert made[0].offsets == (0, 512) and made[0].nbytes == 1024


def test_small_large_and_named_weights_stay() -> None:
    uses = uses_in_turn(10)
    uses[2], uses[5] = WeightUse("tiny", 255, 2, 2), WeightUse("huge", 1025, 5, 5)
    made = group_all({"a": uses}, stay={"w3"}, limits=LIMITS)["a"]
    assert names(made) == [(f"w{i}",) for i in (0, 1, 4, 6, 7, 8, 9)]


def test_a_weight_that_is_read_again_late_stays_for_all_graphs() -> None:
    again = uses_in_turn(10)
    again[1] = WeightUse("w1", 1024, 1, 1 + SLOTS)
    made = group_all({"a": again, "b": uses_in_turn(10)}, limits=LIMITS)
    assert names(made["a"]) == names(made["b"]) == [(f"w{i}",) for i in range(10) if i != 1]


def test_a_weight_that_is_read_again_soon_goes_round() -> None:
    again = uses_in_turn(10)
    again[1] = WeightUse("w1", 1024, 1, SLOTS)
    made = group_all({"a": again}, limits=LIMITS)["a"]
    assert len(made) == 10 and [group.last for group in made[:4]] == [0, SLOTS, SLOTS, SLOTS]


def test_what_would_save_nothing_is_left_alone() -> None:
    assert group_all({"a": uses_in_turn(SLOTS)}, limits=LIMITS) == {"a": ()}
    assert slot_bytes({"a": ()}) == 0
    assert len(group_all({"a": uses_in_turn(SLOTS + 1)}, limits=LIMITS)["a"]) == SLOTS + 1


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 30)), max_size=40)
)
def test_no_slot_is_filled_while_it_is_read(rows: list[tuple[int, int, int]]) -> None:
    uses = [WeightUse(f"w{i}", n, min(a, b), max(a, b)) for i, (n, a, b) in enumerate(rows)]
    made = group_all({"a": sorted(uses, key=lambda use: use.first)}, limits=LIMITS)["a"]
    for group in made:
        assert all(group.first <= use.first <= use.last <= group.last for use in group.weights)
        assert group.nbytes <= 1024
        ends = zip(group.offsets, (use.nbytes for use in group.weights), strict=True)
        assert all(at % 256 == 0 and at + n <= group.nbytes for at, n in ends)
    for group, later in zip(made, made[SLOTS:], strict=False):
        assert group.last < later.first
    for group, later in pairwise(made):
        assert group.first <= later.first and group.last <= later.last
    assert not made or slot_bytes({"a": made}) * SLOTS < sum(
        aligned(use.nbytes) for group in made for use in group.weights
    )


def weight(graph: Graph, name: str, *shape: int) -> Node:
    node = graph.create_node("get_attr", name)
    node.meta["val"] = torch.empty(shape, device="meta")
    return node


def module(graph: Graph, *weights: str) -> GraphModule:
    root = torch.nn.Module()
    for name in weights:
        root.register_buffer(name, torch.empty(0))
    return GraphModule(root, graph)


def test_a_view_of_a_weight_is_the_weight() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, 4, device="meta")
    w = weight(graph, "w", 16)
    square = graph.call_function(aten.view.default, (w, [4, 4]))
    first = graph.call_function(aten.mm.default, (x, square))
    second = graph.call_function(aten.mm.default, (first, square))
    graph.output((second,))
    (use,) = weight_uses(module(graph, "w"))
    assert (use.name, use.nbytes, use.first, use.last) == ("w", 64, 2, 4)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_weight_that_is_returned_never_goes_round(through_a_view: bool) -> None:
    graph = Graph()
    every = [weight(graph, f"w{i}", 256) for i in range(8)]
    made = [graph.call_function(aten.neg.default, (w,)) for w in every]
    returned = every[0]
    if through_a_view:
        returned = graph.call_function(aten.view.default, (returned, [16, 16]))
    graph.output((*made, returned))
    uses = weight_uses(module(graph, *(f"w{i}" for i in range(8))))
    assert [use.name for use in uses] == [f"w{i}" for i in range(8)]
    assert "w0" not in {
        n for group in group_all({"a": uses}, limits=LIMITS)["a"] for n in group.names
    }
