"""Patterns are plain frozen values; what they say about themselves."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.fx import Graph

from llvq.pattern import Call, Either, Match, Var, call, describe, either, maybe, root_targets

aten = torch.ops.aten
RELU, RSQRT, ADD = aten.relu.default, aten.rsqrt.default, aten.add.Tensor


def test_a_call_takes_one_target_or_several() -> None:
    assert call(RELU, Var("x")) == Call((RELU,), (Var("x"),), ())
    assert call((RELU, RSQRT), Var("x"), bind="op", shared=True) == Call(
        (RELU, RSQRT), (Var("x"),), (), "op", True
    )
    assert call(ADD, Var("x"), 1, alpha=2).kwargs == (("alpha", 2),)


def test_maybe_is_a_choice_that_prefers_the_longer_match() -> None:
    inner = call(RELU, Var("x"))
    assert (
        maybe(RSQRT, inner)
        == Either((call(RSQRT, inner), inner))
        == either(call(RSQRT, inner), inner)
    )


def test_root_targets_are_those_of_every_option() -> None:
    assert root_targets(call((RELU, RSQRT), Var("x"))) == {RELU, RSQRT}
    assert root_targets(maybe(ADD, maybe(RSQRT, call(RELU, Var("x"))))) == {ADD, RSQRT, RELU}
    assert root_targets(Var("x")) == frozenset()


def test_targets_are_named_as_in_a_graph() -> None:
    assert describe(ADD) == "aten.add.Tensor"
    assert describe(operator.getitem) == "operator.getitem"


def test_a_match_gives_values_by_name() -> None:
    root = Graph().placeholder("x")
    found = Match(root, (root,), {"x": root})
    assert found["x"] is root and found.get("y") is None
    with pytest.raises(KeyError):
        found["y"]
