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

LINEARS = (aten.linear.default, torch.ops.llvq.lowrank_add.default)
Y = maybe(aten.to.dtype, Var("y"), dtype=torch.float32)
GROUPED = maybe(aten.reshape.default, Y, shape=Literal("grouped"))
GATED = call(aten.mul.Tensor, GROUPED, Var("gate"), bind="gated")
SUM = call(
    aten.add.Tensor,
    maybe(aten.to.dtype, Var("x"), dtype=torch.float32, shared=True),
    maybe(aten.reshape.default, GATED, shape=Literal("tokens")),
    bind="sum",
)
RESIDUAL = maybe(aten.to.dtype, SUM, dtype=Literal("out_dtype"))


def is_gate(node: Node) -> bool:
    """A linear's output times a vector per group of tokens, or per token, on its way to a sum."""
    if not is_call(node, aten.mul.Tensor) or len(shape(node)) < 3:
        return False
    for y, gate in (node.args, node.args[::-1]):
        if is_call(_behind(y), *LINEARS) and _is_vector(gate, shape(node)):
            return any(is_call(user, aten.add.Tensor) for user in _ahead(node))
    return False


def _is_vector(value: Any, of: tuple[int, ...]) -> bool:
    """Whether a value has a vector for each group of tokens, or for each token, of a shape."""
    if not isinstance(value, Node) or len(shape(value)) < 3:
        return False
    return shape(value)[-2:] in (of[-2:], (1, of[-1]))


def _behind(value: Any) -> Any:
    """What a value was before casts and reshapes."""
    while is_call(value, aten.reshape.default, aten.to.dtype):
        value = value.args[0]
    return value


def _ahead(node: Node) -> list[Node]:
    """The users of a value, and of what casts and reshapes make of it."""
    users = list(node.users)
    for user in users:
        if is_call(user, aten.reshape.default, aten.to.dtype):
            users.extend(user.users)
    return users


def known_rounding(found: Match) -> str | None:
    x, y, gate = found["x"], found["y"], found["gate"]
    if len(shape(x)) != 3 or shape(x) != shape(y):
        return f"x is {shape(x)} and y is {shape(y)}; both must be [B, N, E]"
    if groups(gate, x) is None:
        return f"the gate {shape(gate)} is not one vector per group of tokens"
    if dtype(found.root) != dtype(x):
        return f"the sum is rounded to {dtype(found.root)}, x is {dtype(x)}"
    steps = [dtype(found[name]) for name in ("gate", "gated", "sum")]
    if set(steps) not in ({dtype(x)}, {torch.float32}):
        return f"gate, product and sum are {', '.join(map(str, steps))}: an unknown rounding"
    return None


def build_gate_residual(found: Match, b: Builder) -> Node:
    x = found["x"]
    vectors = (shape(x)[0], groups(found["gate"], x) or 1, shape(x)[2])
    gate = b.reshape(found["gate"], vectors)
    return b.call(torch.ops.llvq.gate_residual.default, x, found["y"], gate)


RULES = (Rule("gate-residual", is_gate, RESIDUAL, build_gate_residual, known_rounding),)


def fuse_gate_residual(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-gate-residual", RULES)
