"""fuse-add-norm-fp8: a residual sum and the norm of it that is quantized to FP8 become one op.

The sum is `gate_residual` or a plain `add`, the norm `norm_modulate` or a `layer_norm` with weight
and bias. The sum stays a result: the next residual reads it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program
from llvq.recipe import Recipe

aten = torch.ops.aten
llvq = torch.ops.llvq

QUANTIZE = llvq.quantize_fp8.default
MODULATE = llvq.norm_modulate_quantize_fp8.default
NORM = aten.layer_norm.default

SUM = either(
    call(llvq.gate_residual.default, Var("x"), Var("y"), Var("gate"), bind="sum", shared=True),
    call(aten.add.Tensor, Var("x"), Var("y"), bind="sum", shared=True),
)
MODULATED = call(MODULATE, SUM, Var("scale"), Var("shift"), Literal("eps"), bind="norm")
AFFINE = call(
    QUANTIZE,
    call(
        NORM,
        SUM,
        Literal("normalized_shape"),
        either(Var("weight"), None),
        either(Var("bias"), None),
        eps=Literal("eps"),
        cudnn_enable=Literal("cudnn_enable"),
        bind="norm",
    ),
)
PARAMETERS = ("scale", "shift", "weight", "bias")


def is_norm_of_sum(node: Node) -> bool:
    """A norm that is quantized to FP8, of the sum of two values [B, N, E]."""
    quantized = is_call(node, MODULATE) or (
        is_call(node, NORM) and any(is_call(user, QUANTIZE) for user in node.users)
    )
    return quantized and is_sum(node.args[0])


def is_sum(value: Any) -> bool:
    """A gated residual, or a plain sum of two values [B, N, E] of one dtype."""
    if not is_call(value, aten.add.Tensor):
        return is_call(value, llvq.gate_residual.default)
    x, y = value.args
    alike = isinstance(x, Node) and isinstance(y, Node) and shape(x) == shape(y)
    return alike and len(shape(x)) == 3 and dtype(x) == dtype(y)


def kept_apart(node: Node, _: Recipe) -> str | None:
    """Why a norm must stay beside the sum, or beside what quantizes it."""
    given, total = arguments(node), node.args[0]
    assert isinstance(total, Node)
    if is_call(node, NORM):
        if len(node.users) > 1:
            return "its norm is read as it is, too"
        if given["normalized_shape"] != [shape(total)[-1]]:
            return "it norms over more than the last dim"
    if node is not min(user for user in total.users if is_norm_of_sum(user)):
        return "another norm of its sum is fused with it"
    reader = min(total.users)
    known = all(given.get(name) is None or given[name] < reader for name in PARAMETERS)
    return None if known else "what it is modulated with is computed after the sum is read"


def build_add_norm(found: Match, b: Builder) -> Node:
    """Made where the sum is first read. What the root gave are results 1 and 2 of it."""
    at = b.at(min(found["sum"].users), like=found["norm"])
    operands = (found.get(name) for name in ("x", "y", "gate", *PARAMETERS))
    made = at.call(llvq.add_norm_quantize_fp8.default, *operands, found["eps"])
    total, *packed = at.parts(made, 3)
    found["sum"].replace_all_uses_with(total)
    for user in list(found.root.users):
        if is_call(user, operator.getitem):
            user.replace_all_uses_with(packed[user.args[1]])  # type: ignore[index]
    return made


RULES = (
    Rule(
        name="add-norm-quantize-fp8",
        anchor=is_norm_of_sum,
        pattern=either(MODULATED, AFFINE),
        build=build_add_norm,
        excluded=kept_apart,
    ),
)


def fuse_add_norm_fp8(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-add-norm-fp8", RULES)
