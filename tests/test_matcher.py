"""The matcher: what it finds, and the exact reason when it finds nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from llvq.matcher import arguments, match
from llvq.pattern import (
    Literal,
    Match,
    Miss,
    Var,
    call,
    either,
    maybe,
)

aten = torch.ops.aten
RELU, ADD, MUL, MM = aten.relu.default, aten.add.Tensor, aten.mul.Tensor, aten.mm.default
RSQRT, CAT, SDPA = aten.rsqrt.default, aten.cat.default, aten.scaled_dot_product_attention.default

# The rule of the near-misses: y = x * rsqrt(mean(x^2) + 1e-6), then times a weight.
MEAN = call(aten.mean.dim, call(aten.pow.Tensor_Scalar, Var("x"), 2), [-1], True)
RMS = call(MUL, Var("x"), call(RSQRT, call(ADD, MEAN, 1e-6)))
NORM = call(MUL, RMS, Var("weight"))


class Norm(nn.Module):
    """The norm of the rule; options make it one of the near-misses."""

    def __init__(self, eps: float = 1e-6, *, used_twice: bool = False, view: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps, self.used_twice, self.view = eps, used_twice, view

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        extra = (normed.relu(),) if self.used_twice else ()
        if self.view:
            normed = normed.view(x.shape)
        return normed * self.weight, *extra


def exported(module: nn.Module, device: str = "cpu") -> Graph:
    x = torch.ones(2, 3, 8, device=device)
    return torch.export.export(module.to(device), (x,)).graph


def last_mul(graph: Graph) -> Node:
    return [node for node in graph.nodes if node.target is MUL][-1]


def graph_of(build: Callable[..., Node], inputs: str) -> Node:
    """The result of `build(call, *inputs)` on placeholders named by the letters of `inputs`."""
    graph = Graph()
    nodes = [graph.placeholder(name) for name in inputs]
    result = build(graph.call_function, *nodes)
    graph.output(result)
    return result


def missed(pattern: object, root: Node) -> Miss:
    found = match(pattern, root)
    assert isinstance(found, Miss)
    return found


def matched(pattern: object, root: Node) -> Match:
    found = match(pattern, root)
    assert isinstance(found, Match), found
    return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_norm_is_found_on_every_device(device: str) -> None:
    found = matched(NORM, last_mul(exported(Norm(), device)))
    assert [found["x"].name, found["weight"].name] == ["x", "p_weight"]
    assert len(found.nodes) == 6 and found.nodes[0] is found.root


def test_near_miss_another_eps() -> None:
    miss = missed(NORM, last_mul(exported(Norm(1e-5))))
    assert miss.reason == "expected 1e-06, found 1e-05"
    assert miss.node.target is ADD


def test_near_miss_a_second_user() -> None:
    miss = missed(NORM, last_mul(exported(Norm(used_twice=True))))
    assert miss.reason == (
        "mul has 2 users and the rule needs them inside the match; another is relu"
    )
    assert miss.node.name == "mul" and len(miss.covered) == 6


def test_near_miss_a_view_between() -> None:
    miss = missed(NORM, last_mul(exported(Norm(view=True))))
    assert miss.reason == "expected aten.mul.Tensor, found aten.view.default view"


def test_a_shared_node_may_have_users_outside() -> None:
    def build(f: Callable[..., Node], x: Node) -> Node:
        inner = f(RELU, (x,))
        f(RSQRT, (inner,))
        return f(ADD, (inner, x))

    root = graph_of(build, "x")
    assert isinstance(match(call(ADD, call(RELU, Var("a")), Var("b")), root), Miss)
    found = matched(call(ADD, call(RELU, Var("a"), shared=True), Var("b")), root)
    assert [node.name for node in found.shared] == ["relu_default"]


def test_the_root_may_have_any_users() -> None:
    root = graph_of(lambda f, x: f(RELU, (f(RELU, (x,)),)), "x").args[0]
    assert isinstance(root, Node)
    assert matched(call(RELU, Var("x")), root).root is root


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("target", [ADD, MUL])
def test_sums_and_products_match_in_both_orders(target: object, swapped: bool) -> None:
    def build(f: Callable[..., Node], x: Node, y: Node) -> Node:
        parts = (f(RELU, (x,)), y)
        return f(target, parts[::-1] if swapped else parts)

    found = matched(call(target, call(RELU, Var("a")), Var("b")), graph_of(build, "xy"))
    assert [found["a"].name, found["b"].name] == ["x", "y"]


def test_other_ops_do_not_commute() -> None:
    root = graph_of(lambda f, x, y: f(MM, (y, f(RELU, (x,)))), "xy")
    miss = missed(call(MM, call(RELU, Var("a")), Var("b")), root)
    assert miss.reason == "expected aten.relu.default, found the placeholder y"


def test_nested_orders_are_all_tried() -> None:
    def build(f: Callable[..., Node], x: Node, y: Node) -> Node:
        return f(ADD, (f(MUL, (y, f(RELU, (x,)))), f(RSQRT, (x,))))

    inner = call(MUL, call(RELU, Var("a")), Var("b"))
    found = matched(call(ADD, call(RSQRT, Var("a")), inner), graph_of(build, "xy"))
    assert [found["a"].name, found["b"].name] == ["x", "y"]


def test_a_name_is_one_node_everywhere() -> None:
    pattern = call(ADD, Var("x"), Var("x"))
    assert isinstance(match(pattern, graph_of(lambda f, x: f(ADD, (x, x)), "x")), Match)
    miss = missed(pattern, graph_of(lambda f, x, y: f(ADD, (x, y)), "xy"))
    assert miss.reason == "'x' is x in one place and y here"


def test_a_choice_that_fails_later_is_taken_back() -> None:
    """The first option binds a node that the second argument then contradicts."""

    def build(f: Callable[..., Node], x: Node) -> Node:
        return f(MM, (f(RELU, (x,)), f(RELU, (x,))))

    option = either(Var("a"), call(RELU, Var("a")))
    found = matched(call(MM, option, call(RELU, Var("a"))), graph_of(build, "x"))
    assert found["a"].name == "x"


def test_a_choice_that_escapes_is_taken_back() -> None:
    """Going through the relu would take a node that another user needs; stopping short does not."""

    def build(f: Callable[..., Node], x: Node) -> Node:
        inner = f(RELU, (x,))
        f(RSQRT, (inner,))
        return f(RSQRT, (inner,))

    found = matched(call(RSQRT, maybe(RELU, Var("a"))), graph_of(build, "x"))
    assert found["a"].name == "relu_default" and len(found.nodes) == 1


def test_an_argument_that_is_not_named_must_hold_its_default() -> None:
    pattern = call(SDPA, Var("q"), Var("k"), Var("v"), scale=Literal("scale"))
    plain = matched(pattern, graph_of(lambda f, q, k, v: f(SDPA, (q, k, v)), "qkv"))
    assert plain["scale"] is None
    by_name = graph_of(lambda f, q, k, v: f(SDPA, (q, k, v), {"scale": 0.5}), "qkv")
    assert matched(pattern, by_name)["scale"] == 0.5
    masked = graph_of(lambda f, q, k, v, m: f(SDPA, (q, k, v, m)), "qkvm")
    reason = "argument 'attn_mask' is m, the rule knows only its default"
    assert missed(pattern, masked).reason == reason
    dropped = graph_of(lambda f, q, k, v: f(SDPA, (q, k, v, None, 0.1)), "qkv")
    assert "argument 'dropout_p' is 0.1" in missed(pattern, dropped).reason


def test_keywords_and_positions_are_the_same() -> None:
    spelled = graph_of(lambda f, x: f(aten.mean.dim, (x,), {"dim": [-1], "keepdim": True}), "x")
    assert isinstance(match(call(aten.mean.dim, Var("x"), [-1], True), spelled), Match)
    assert isinstance(match(call(aten.mean.dim, Var("x"), dim=[-1], keepdim=True), spelled), Match)
    assert arguments(spelled)["dtype"] is None


def test_a_sequence_matches_element_by_element() -> None:
    pattern = call(CAT, [Var("a"), call(RELU, Var("b"))], 1)
    found = matched(pattern, graph_of(lambda f, x, y: f(CAT, ([x, f(RELU, (y,))], 1)), "xy"))
    assert [found["a"].name, found["b"].name] == ["x", "y"]
    miss = missed(pattern, graph_of(lambda f, x: f(CAT, ([x], 1)), "x"))
    assert miss.reason == "expected 2 values, found [x]"
    other_dim = graph_of(lambda f, x, y: f(CAT, ([x, f(RELU, (y,))], 2)), "xy")
    assert missed(pattern, other_dim).reason == "expected 1, found 2"


def test_numbers_are_equal_by_value_but_truth_is_no_number() -> None:
    root = graph_of(lambda f, x: f(ADD, (x, 1.0)), "x")
    assert isinstance(match(call(ADD, Var("x"), 1), root), Match)
    assert missed(call(ADD, Var("x"), True), root).reason == "expected True, found 1.0"


def test_a_literal_is_not_a_node_nor_a_variable_a_literal() -> None:
    root = graph_of(lambda f, x: f(ADD, (x, 2)), "x")
    assert matched(call(ADD, Var("x"), Literal("n")), root)["n"] == 2
    assert "found 2" in missed(call(ADD, Var("x"), Var("y")), root).reason
    assert "expected a constant for 'n', found x" in [
        missed(
            call(MM, Literal("n"), Var("y")), graph_of(lambda f, x, y: f(MM, (x, y)), "xy")
        ).reason
    ]


def test_the_deepest_failure_explains() -> None:
    root = graph_of(lambda f, x: f(MUL, (f(RELU, (f(RSQRT, (x,)),)), 3)), "x")
    pattern = call(MUL, call(RELU, either(call(CAT, [Var("a")]), call(MM, Var("a"), Var("b")))), 3)
    miss = missed(pattern, root)
    assert miss.node.target is RSQRT and len(miss.covered) == 2


def test_one_of_several_targets_and_its_binding() -> None:
    pattern = call((RELU, RSQRT), Var("x"), bind="op")
    found = matched(pattern, graph_of(lambda f, x: f(RSQRT, (x,)), "x"))
    assert found["op"] is found.root and found.get("other") is None
    miss = missed(pattern, graph_of(lambda f, x: f(ADD, (x, x)), "x"))
    assert miss.reason == (
        "expected aten.relu.default or aten.rsqrt.default, found aten.add.Tensor add_tensor"
    )
