"""fuse-conv-residual: what is added to a convolution over a ring is added as it is stored."""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program

aten = torch.ops.aten
llvq = torch.ops.llvq

SCALES = (either(Var("ring_scale"), None), either(Var("weight_scales"), None))
PLACE = tuple(Literal(name) for name in ("rate", "skip", "offset", "frames", "doubles"))
CONV = call(
    llvq.ring_conv.default,
    *(Var("ring"), Var("weight"), Var("bias")),
    *SCALES,
    None,
    Var("decoded"),
    *PLACE,
    bind="conv",
)


def is_sum(node: Node) -> bool:
    """A sum with what a convolution over a ring gives, of the same size."""
    if not is_call(node, aten.add.Tensor):
        return False
    return any(is_call(part, llvq.ring_conv.default) for part in node.all_input_nodes)


def same_size(found: Match) -> str | None:
    if shape(found["residual"]) == shape(found["conv"]):
        return None
    return f"{shape(found['residual'])} is added to {shape(found['conv'])}"


def build(found: Match, b: Builder) -> Node:
    given = arguments(found["conv"]) | {"residual": found["residual"]}
    return b.call(llvq.ring_conv.default, *given.values())


RULES = (
    Rule("conv-residual", is_sum, call(aten.add.Tensor, CONV, Var("residual")), build, same_size),
)


def fuse_conv_residual(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-conv-residual", RULES)
