"""raise-qk-norm-rope: RMS norms and rotary positions become one llvq op each, then one together.

The norm is known spelled out (rounded before its weight) and as `aten.rms_norm`; the rotation on
interleaved channel pairs with fp32 tables. Where a norm feeds a rotation directly, the pair is
`llvq.rms_norm_rope`.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either, maybe
from llvq.program import Program

aten = torch.ops.aten
llvq = torch.ops.llvq

# --- the norm ---

X = maybe(aten.to.dtype, Var("x"), dtype=torch.float32, shared=True)
MEAN_SQUARE = call(
    aten.mean.dim,
    call(aten.pow.Tensor_Scalar, X, 2),
    dim=Literal("dim"),
    keepdim=True,
    bind="mean_square",
)
NORMED = call(
    aten.mul.Tensor,
    X,
    call(aten.rsqrt.default, call(aten.add.Tensor, MEAN_SQUARE, Literal("eps"))),
)
SPELLED_NORM = call(
    aten.mul.Tensor, maybe(aten.to.dtype, NORMED, dtype=Literal("rounded")), Var("weight")
)
ATEN_NORM = call(
    aten.rms_norm.default, Var("x"), Literal("normalized"), Var("weight"), Literal("eps")
)


def is_norm(node: Node) -> bool:
    """A reciprocal root of a mean, or an RMS norm by name."""
    return is_call(node, aten.rsqrt.default, aten.rms_norm.default)


def last_dim_norm(found: Match) -> str | None:
    x, weight, mean_square = found["x"], found["weight"], found.get("mean_square")
    dims = found.get("dim")
    if dims not in (None, [-1], [len(shape(x)) - 1]):
        return f"the norm runs over dims {dims}, the rule knows only the last"
    if shape(weight) != shape(x)[-1:]:
        return f"the weight has shape {shape(weight)}, x ends in {shape(x)[-1]}"
    if mean_square is not None and dtype(mean_square) != torch.float32:
        return f"the mean is taken in {dtype(mean_square)}, llvq.rms_norm takes it in fp32"
    if found["eps"] is None:
        return "eps is not given, and its default depends on the version of torch"
    if dtype(found.root) != dtype(x):
        return f"the result is {dtype(found.root)}, x is {dtype(x)}"
    if found.get("rounded") not in (None, dtype(x)):
        return f"the norm is rounded to {found['rounded']}, x is {dtype(x)}"
    return None


def build_rms_norm(found: Match, b: Builder) -> Node:
    spelled = found.root.target is aten.mul.Tensor
    return b.call(llvq.rms_norm.default, found["x"], found["weight"], found["eps"], spelled)


# --- the rotation ---

PAIRS = call(
    aten.unbind.int,
    call(
        aten.reshape.default,
        maybe(aten.to.dtype, Var("x"), dtype=torch.float32, shared=True),
        Literal("pairs"),
    ),
    Literal("pair_dim"),
)
EVEN, ODD = call(operator.getitem, PAIRS, 0), call(operator.getitem, PAIRS, 1)
COS, SIN = Var("cos"), Var("sin")
ROTATED = call(
    aten.stack.default,
    [
        call(aten.sub.Tensor, call(aten.mul.Tensor, EVEN, COS), call(aten.mul.Tensor, ODD, SIN)),
        call(aten.add.Tensor, call(aten.mul.Tensor, EVEN, SIN), call(aten.mul.Tensor, ODD, COS)),
    ],
    -1,
)
ROPE = maybe(
    aten.to.dtype, call(aten.reshape.default, ROTATED, Literal("heads")), dtype=Literal("out")
)


def is_rotation(node: Node) -> bool:
    """The difference of two products: half of a rotation."""
    return is_call(node, aten.sub.Tensor) and all(
        is_call(part, aten.mul.Tensor) for part in node.args
    )


def fp32_tables(found: Match) -> str | None:
    heads = shape(found.root)
    if len(heads) != 4:
        return f"the result has shape {heads}, the rule needs [B, N, H, D]"
    tokens, half = heads[1], heads[3] // 2
    if tuple(found["pairs"]) != (*heads[:3], half, 2) or found["pair_dim"] not in (-1, 4):
        return f"it rotates pairs of {found['pairs']}, the rule knows only neighbouring channels"
    for name in ("cos", "sin"):
        table = found[name]
        if shape(table) not in ((tokens, 1, half), (1, tokens, 1, half)):
            return f"{name} has shape {shape(table)}, the rule needs one row of {half} per token"
        if dtype(table) != torch.float32:
            return f"{name} is {dtype(table)}, which rounds the angles; llvq.rope rotates in fp32"
    same = dtype(found.root) == dtype(found["x"])
    return None if same else f"the result is {dtype(found.root)}, x is {dtype(found['x'])}"


def build_rope(found: Match, b: Builder) -> Node:
    # x may come with its heads not split yet: a reshape of a reshape is one reshape.
    x = b.reshape(found["x"], shape(found.root))
    _, tokens, _, dim = shape(x)
    cos, sin = (b.reshape(found[name], (tokens, dim // 2)) for name in ("cos", "sin"))
    return b.call(llvq.rope.default, x, cos, sin)


# --- both ---

NORM_ROPE = call(
    llvq.rope.default,
    call(
        aten.reshape.default,
        call(
            llvq.rms_norm.default,
            Var("x"),
            Var("weight"),
            Literal("eps"),
            Literal("round_first"),
            bind="norm",
        ),
        Literal("heads"),
    ),
    COS,
    SIN,
)


def is_rope_of_norm(node: Node) -> bool:
    """A rotation of a norm whose heads were just split."""
    if not is_call(node, llvq.rope.default) or not is_call(node.args[0], aten.reshape.default):
        return False
    return is_call(node.args[0].args[0], llvq.rms_norm.default)  # type: ignore[union-attr]


def build_norm_rope(found: Match, b: Builder) -> Node:
    heads = shape(found.root)[2]
    return b.call(
        llvq.rms_norm_rope.default,
        *(found[name] for name in ("x", "weight", "cos", "sin")),
        heads,
        found["eps"],
        found["round_first"],
    )


RULES = (
    Rule("rms-norm", is_norm, either(SPELLED_NORM, ATEN_NORM), build_rms_norm, last_dim_norm),
    Rule("rope", is_rotation, ROPE, build_rope, fp32_tables),
    Rule("rms-norm-rope", is_rope_of_norm, NORM_ROPE, build_norm_rope),
)


def raise_qk_norm_rope(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "raise-qk-norm-rope", RULES)
