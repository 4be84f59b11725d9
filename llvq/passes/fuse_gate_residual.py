"""fuse-gate-residual: `x + gate * y`, one gate vector per group of tokens, becomes one op.

The gate is either in the dtype of x (rounded after each step) or in fp32 (rounded once).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.raise_norm_modulate import groups
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, maybe
from llvq.program import Program

aten = torch.ops.aten

Y = maybe(aten.to.dtype, Var("y"), dtype=torch.float32)
GATED = call(aten.mul.Tensor, maybe(aten.reshape.default, Y, shape=Literal("grouped")), Var("gate"))
SUM = call(
    aten.add.Tensor,
    maybe(aten.to.dtype, Var("x"), dtype=torch.float32, shared=True),
    maybe(aten.reshape.default, GATED, shape=Literal("tokens")),
)
RESIDUAL = maybe(aten.to.dtype, SUM, dtype=Literal("out_dtype"))


def is_gate(node: Node) -> bool:
    """A product of a linear's output with a vector per group of tokens, on its way to a sum."""
    if not is_call(node, aten.mul.Tensor):
        return False
    return any(_is_vector(part) for part in node.args) and any(
        is_call(_behind(part), aten.linear.default) for part in node.args
    )


def _is_vector(value: Any) -> bool:
    return isinstance(value, Node) and len(shape(value)) > 2 and shape(value)[-2] == 1


def _behind(value: Any) -> Any:
    """What a value was before casts and reshapes."""
    while is_call(value, aten.reshape.default, aten.to.dtype):
        value = value.args[0]
    return value


def known_rounding(found: Match) -> str | None:
    x, y, gate = found["x"], found["y"], found["gate"]
    if len(shape(x)) != 3 or shape(x) != shape(y):
        return f"x is {shape(x)} and y is {shape(y)}; both must be [B, N, E]"
    if groups(gate, x) is None:
        return f"the gate {shape(gate)} is not one vector per group of tokens"
    if dtype(found.root) != dtype(x) or dtype(gate) not in (dtype(x), torch.float32):
        return f"gate is {dtype(gate)}, x {dtype(x)}, the sum {dtype(found.root)}: unknown rounding"
    return None


def build_gate_residual(found: Match, b: Builder) -> Node:
    x = found["x"]
    vectors = (shape(x)[0], groups(found["gate"], x) or 1, shape(x)[2])
    gate = b.reshape(found["gate"], vectors)
    return b.call(torch.ops.llvq.gate_residual.default, x, found["y"], gate)


RULES = (Rule("gate-residual", is_gate, RESIDUAL, build_gate_residual, known_rounding),)


def fuse_gate_residual(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-gate-residual", RULES)
