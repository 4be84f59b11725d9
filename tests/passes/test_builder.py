"""Building nodes: values are inferred, never copied; origin and source line are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

from llvq.passes.builder import Builder, dtype, finish, infer, is_call, set_attribute, shape
from llvq.program import Program, provenance

aten = torch.ops.aten


@pytest.fixture
def linear(program: Program) -> Node:
    nodes = program.graph.graph.nodes
    return next(node for node in nodes if is_call(node, aten.linear.default))


@pytest.fixture
def builder(program: Program, linear: Node) -> Builder:
    return Builder(program, "a-rule", linear, (linear, *linear.all_input_nodes))


def test_a_call_has_an_inferred_value_and_an_origin(builder: Builder, linear: Node) -> None:
    made = builder.call(aten.to.dtype, linear.args[0], torch.float16)
    assert (dtype(made), shape(made)) == (torch.float16, shape(linear.all_input_nodes[0]))
    assert provenance(made) == {
        "rule": "a-rule",
        "from": [*(n.name for n in reversed(linear.all_input_nodes)), linear.name],
    }
    assert made.meta["stack_trace"] == linear.meta["stack_trace"]
    assert made.next is linear


def test_notes_are_not_shared_between_nodes(builder: Builder, linear: Node) -> None:
    first, second = (builder.call(aten.neg.default, linear.args[0]) for _ in range(2))
    first.meta["custom"]["llvq"]["impl"] = "mine"
    assert "impl" not in provenance(second)


def test_a_call_that_is_there_is_found(builder: Builder, linear: Node) -> None:
    first = builder.once(aten.softmax.int, linear.args[0], -1, dtype=torch.float32)
    assert builder.once(aten.softmax.int, linear.args[0], -1, dtype=torch.float32) is first
    assert builder.once(aten.softmax.int, linear.args[0], -1) is not first
    assert builder.once(aten.softmax.int, linear.args[0], 0, dtype=torch.float32) is not first


def test_a_call_that_is_there_moves_up_to_where_it_is_needed(
    program: Program, builder: Builder, linear: Node
) -> None:
    late = builder.at(next(iter(linear.users)).next)
    made = late.once(aten.neg.default, linear.args[0])
    assert linear < made
    assert builder.once(aten.neg.default, linear.args[0]) is made and made < linear
    program.graph.graph.lint()


def test_a_builder_elsewhere_notes_the_same_origin(builder: Builder, linear: Node) -> None:
    user = next(iter(linear.users))
    here, like = builder.at(user), builder.at(user, like=linear.all_input_nodes[0])
    made, other = (b.call(aten.neg.default, linear) for b in (here, like))
    assert made.next is other and other.next is user
    assert provenance(made) == provenance(other)
    assert made.meta["stack_trace"] == linear.meta["stack_trace"]
    assert other.meta.get("stack_trace") == linear.all_input_nodes[0].meta.get("stack_trace")


def test_reshape_adds_nothing_where_nothing_changes(builder: Builder, linear: Node) -> None:
    x = linear.all_input_nodes[0]
    assert builder.reshape(x, shape(x)) is x
    flat = builder.reshape(x, (-1 * -shape(x)[0] * shape(x)[1], *shape(x)[2:]))
    assert is_call(flat, aten.reshape.default)
    assert builder.reshape(flat, shape(x)) is x


def test_infer_runs_the_op_on_meta(linear: Node) -> None:
    value = infer(linear)
    assert value.device.type == "meta" and tuple(value.shape) == shape(linear)


def test_a_weight_can_be_read_by_its_new_name(builder: Builder) -> None:
    node = builder.weight("dit.blocks.0.new.codes", torch.uint8, (4, 8))
    assert (dtype(node), shape(node)) == (torch.uint8, (4, 8))
    assert builder.program.graph.get_buffer("dit.blocks.0.new.codes").device.type == "meta"


def test_finish_drops_what_is_dead(program: Program, builder: Builder, linear: Node) -> None:
    before = program.text()
    builder.call(aten.neg.default, linear.args[0])
    assert program.text() != before
    finish(program.graph)
    assert program.text() == before


def test_an_attribute_that_is_there_stays() -> None:
    gm = GraphModule(nn.Module(), torch.fx.Graph())
    for value in (1.0, 2.0):
        set_attribute(gm, "a.b.c", torch.tensor(value))
    assert gm.get_buffer("a.b.c") == 1.0
