"""fuse-attention-fp8: attention in FP8 whose result is quantized to FP8 writes it itself.

Every token then has the scale of V, which bounds a mean of V's rows, in place of one of its own.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either, maybe
from llvq.program import Program
from llvq.recipe import Recipe

aten = torch.ops.aten
llvq = torch.ops.llvq

QUANTIZING = {
    llvq.attention_fp8.default: llvq.attention_quantize_fp8.default,
    llvq.paged_attention_fp8.default: llvq.paged_attention_quantize_fp8.default,
}
QKV = (Var("q"), Var("k"), Var("v"))
ROTATION = (either(Var("cos"), None), either(Var("sin"), None))
PAGES = (Literal("pages"), Var("table"), *ROTATION, Literal("scale"))
ATTENTION = either(
    call(llvq.attention_fp8.default, *QKV, scale=Literal("scale"), bind="attention"),
    call(
        llvq.paged_attention_fp8.default,
        *QKV,
        *PAGES,
        Literal("layer"),
        Literal("kv_format"),
        bind="attention",
    ),
)


def is_quantized_attention(node: Node) -> bool:
    """Attention in FP8 that a quantize reads, perhaps with its heads side by side."""
    return is_call(node, *QUANTIZING) and any(
        is_call(user, llvq.quantize_fp8.default) for user in _ahead(node)
    )


def _ahead(node: Node) -> list[Node]:
    """The users of a value, and of its reshapes."""
    users = list(node.users)
    for user in users:
        if is_call(user, aten.reshape.default):
            users.extend(user.users)
    return users


def read_twice(node: Node, _: Recipe) -> str | None:
    others = [user for user in _ahead(node) if not is_call(user, aten.reshape.default)]
    return "it is read as it is, too" if len(others) > 1 else None


def heads_side_by_side(found: Match) -> str | None:
    """Why the rows that are quantized are not the tokens of the attention."""
    batch, tokens, heads, dim = shape(found["attention"])
    quantized = shape(found["x"]) if found.get("x") is not None else shape(found["attention"])
    if quantized == (batch, tokens, heads * dim):
        return None
    return f"what is quantized is {quantized}, not a row of all heads for each token"


def build_attention_quantize(found: Match, b: Builder) -> Node:
    attention = found["attention"]
    return b.call(QUANTIZING[attention.target], *attention.args, **attention.kwargs)


RULES = (
    Rule(
        name="attention-quantize-fp8",
        anchor=is_quantized_attention,
        pattern=call(
            llvq.quantize_fp8.default,
            maybe(aten.reshape.default, ATTENTION, shape=Literal("rows"), bind="x"),
        ),
        check=heads_side_by_side,
        build=build_attention_quantize,
        excluded=read_twice,
    ),
)


def fuse_attention_fp8(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-attention-fp8", RULES)
