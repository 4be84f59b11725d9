"""scores-in-fp4: attention over NVFP4 pages multiplies Q with K in NVFP4, where the recipe says so.

For numerics `w4a4`; without `kv.qk = "nvfp4"` in the recipe there are no sites. Raw K of relative
positions has to be rotated before it is multiplied, which codes cannot be: that is a miss.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.attention_to_fp8 import is_paged
from llvq.passes.books import Book
from llvq.passes.builder import Builder
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program

llvq = torch.ops.llvq


def pages_hold_codes(found: Match) -> str | None:
    if found.get("cos") is not None or found.get("sin") is not None:
        return "with relative positions pages hold K before its rotation, and codes have none"
    if found["kv_format"] != "nvfp4":
        return f"pages in {found['kv_format']} hold no NVFP4 codes"
    return None


def build_paged(found: Match, b: Builder) -> Node:
    values = (found[name] for name in ("q", "k", "v", "pages", "table", "scale", "layer"))
    return b.call(llvq.paged_attention_fp4.default, *values)


RULES = (
    Rule(
        name="paged-attention-fp4",
        anchor=is_paged,
        pattern=call(
            llvq.paged_attention.default,
            Var("q"),
            Var("k"),
            Var("v"),
            Literal("pages"),  # A list, of as many tensors as the format has.
            Var("table"),
            either(Var("cos"), None),
            either(Var("sin"), None),
            Literal("scale"),
            Literal("layer"),
            Literal("kv_format"),
        ),
        check=pages_hold_codes,
        build=build_paged,
    ),
)


def scores_in_fp4(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "scores-in-fp4", RULES if ctx.recipe.kv.qk == "nvfp4" else ())
