"""raise-attention: `scaled_dot_product_attention` in any layout becomes `llvq.attention`.

`llvq.attention` takes tokens before heads, [B, N, H, D], which is how projections produce and
consume them; permutes on either side cancel.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
ATTENTION = torch.ops.llvq.attention.default
SWAP_HEADS = [0, 2, 1, 3]


def is_sdpa(node: Node) -> bool:
    """A call of scaled_dot_product_attention."""
    return is_call(node, SDPA)


def heads_match(found: Match) -> str | None:
    q, k, v = (shape(found[name]) for name in "qkv")
    if len(q) != 4:
        return f"q has {len(q)} dims, the rule needs [B, H, N, D]"
    if not q[:2] == k[:2] == v[:2]:
        return f"q {q}, k {k} and v {v} differ in batch or heads, the rule does not broadcast"
    return None


def tokens_first(x: Node, b: Builder) -> Node:
    """[B, H, N, D] as [B, N, H, D]; the input of the permute that made it, where there is one."""
    if is_call(x, aten.permute.default) and x.args[1] == SWAP_HEADS:
        return x.args[0]  # type: ignore[return-value]
    return b.call(aten.permute.default, x, SWAP_HEADS)


def build_attention(found: Match, b: Builder) -> Node:
    q, k, v = (tokens_first(found[name], b) for name in "qkv")
    out = b.call(ATTENTION, q, k, v, found.get("mask"), found["scale"])
    for user in list(found.root.users):
        if is_call(user, aten.permute.default) and user.args[1] == SWAP_HEADS:
            user.replace_all_uses_with(out)
    return b.call(aten.permute.default, out, SWAP_HEADS)


RULES = (
    Rule(
        name="attention",
        anchor=is_sdpa,
        pattern=call(
            SDPA,
            Var("q"),
            Var("k"),
            Var("v"),
            attn_mask=either(Var("mask"), None),
            scale=Literal("scale"),
        ),
        check=heads_match,
        build=build_attention,
    ),
)


def raise_attention(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "raise-attention", RULES)
