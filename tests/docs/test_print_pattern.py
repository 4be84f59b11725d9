from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from docs.print_pattern import WIDTH, print_pattern
from llvq.pattern import Literal, Var, call, either, maybe

aten = torch.ops.aten
X = Var("x")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (X, "%x"),
        (call(aten.gelu.default, X, approximate="tanh"), "aten.gelu(%x, approximate='tanh')"),
        (call(aten.mean.dim, X, dim=Literal("d"), bind="m"), "aten.mean.dim(%x, dim=$d) as m"),
        (call((aten.mm.default, aten.bmm.default), X, None), "aten.mm|aten.bmm(%x, None)"),
        (call(operator.getitem, X, 0, shared=True), "operator.getitem!(%x, 0)"),
        (call(aten.cat.default, [X, Var("y")], 1), "aten.cat([%x, %y], 1)"),
        (maybe(aten.to.dtype, X, dtype=torch.bfloat16), "[aten.to.dtype]?(%x, dtype=bfloat16)"),
        (call(aten.add.Tensor, X, either(1, 1.0)), "aten.add.Tensor(%x, 1 or 1.0)"),
    ],
)
def test_one_line(pattern: Any, text: str) -> None:
    assert print_pattern(pattern) == text


def test_what_does_not_fit_has_a_line_for_each_argument() -> None:
    pattern: Any = X
    for _ in range(12):
        pattern = call(aten.rsqrt.default, pattern)
    lines = print_pattern(pattern).splitlines()
    assert lines[:2] == ["aten.rsqrt(", "  aten.rsqrt("] and lines[-2:] == ["  ),", ")"]
    assert max(map(len, lines)) <= WIDTH


def test_long_alternatives_are_stacked() -> None:
    name = "x" * (WIDTH - 20)
    options = call(aten.sin.default, Var(name)), call(aten.cos.default, Var(name))
    assert print_pattern(either(*options)).splitlines() == [
        f"aten.sin(%{name})",
        "or",
        f"aten.cos(%{name})",
    ]
