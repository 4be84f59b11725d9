"""raise-norm-modulate: `layer_norm(x) * (1 + scale) + shift` becomes `llvq.norm_modulate`.

Two roundings are known. LongLive norms, rounds to the dtype of x and modulates in it, one vector
per frame; diffusers modulates in fp32, one vector per sequence, and rounds at the end.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, maybe
from llvq.program import Program

aten = torch.ops.aten


def is_plain_norm(node: Node) -> bool:
    """A layer norm without weight and bias."""
    return is_call(node, aten.layer_norm.default) and node.args[2:4] == (None, None)


NORM = call(
    aten.layer_norm.default,
    maybe(aten.to.dtype, Var("x"), dtype=torch.float32, shared=True),
    Literal("normalized_shape"),
    None,
    None,
    eps=Literal("eps"),
    cudnn_enable=Literal("cudnn_enable"),
    bind="norm",
)
ROUNDED = maybe(aten.to.dtype, NORM, dtype=Literal("norm_dtype"))
GROUPED = maybe(aten.reshape.default, ROUNDED, shape=Literal("grouped"))
ONE_PLUS_SCALE = call(aten.add.Tensor, Var("scale"), 1, shared=True)
SCALED = call(aten.mul.Tensor, GROUPED, ONE_PLUS_SCALE)
SHIFTED = call(aten.add.Tensor, SCALED, Var("shift"))
TOKENS = maybe(aten.reshape.default, SHIFTED, shape=Literal("tokens"))
MODULATED = maybe(aten.to.dtype, TOKENS, dtype=Literal("out_dtype"))


def known_rounding(found: Match) -> str | None:
    x, scale, shift = found["x"], found["scale"], found["shift"]
    if found["normalized_shape"] != [shape(x)[-1]]:
        return f"it norms over {found['normalized_shape']}, the rule knows only the last dim"
    if len(shape(x)) != 3 or shape(found.root) != shape(x) or dtype(found.root) != dtype(x):
        return f"the result {dtype(found.root)} {shape(found.root)} is not like x {shape(x)}"
    if groups(scale, x) is None or shape(scale) != shape(shift):
        return f"scale {shape(scale)} is not one vector per group of tokens"
    if dtype(shift) != dtype(scale):
        return f"scale is {dtype(scale)} and shift {dtype(shift)}: an unknown rounding"
    norm_dtype = found.get("norm_dtype") or dtype(found["norm"])
    if dtype(scale) == dtype(x) and norm_dtype != dtype(x):
        return f"scale is {dtype(scale)} but the norm is not rounded before it is scaled"
    if dtype(scale) not in (dtype(x), torch.float32) or norm_dtype != dtype(scale):
        return f"scale is {dtype(scale)} and the norm is {norm_dtype}: an unknown rounding"
    return None


def groups(vector: Node, x: Node) -> int | None:
    """How many groups of tokens of x [B, N, E] have a vector of their own: G of [B, G, (1,) E]."""
    batch, tokens, channels = shape(x)
    sizes = shape(vector)
    count = sizes[1] if len(sizes) in (3, 4) else 0
    known = sizes in ((batch, count, channels), (batch, count, 1, channels))
    if len(sizes) == 3 and count != 1:  # [B, N, E] broadcasts per token, not per group.
        known = known and count == tokens
    return count if known and count and tokens % count == 0 else None


def build_norm_modulate(found: Match, b: Builder) -> Node:
    x = found["x"]
    vectors = (shape(x)[0], groups(found["scale"], x) or 1, shape(x)[2])
    scale, shift = (b.reshape(found[name], vectors) for name in ("scale", "shift"))
    return b.call(torch.ops.llvq.norm_modulate.default, x, scale, shift, found["eps"])


RULES = (
    Rule(
        name="norm-modulate",
        anchor=is_plain_norm,
        pattern=MODULATED,
        check=known_rounding,
        build=build_norm_modulate,
    ),
)


def raise_norm_modulate(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "raise-norm-modulate", RULES)
