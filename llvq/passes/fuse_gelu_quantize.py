"""fuse-gelu-quantize: a GELU that feeds a quantize writes NVFP4 itself, smoothed on the way."""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.fuse_norm_quantize import STATIC_SCALE, feeds_quantize, kept_apart
from llvq.passes.layer_facts import MUL, given, is_smoothing
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program

aten = torch.ops.aten
llvq = torch.ops.llvq


def is_gelu_before_quantize(node: Node) -> bool:
    """A GELU with a quantize among its users, or behind a smoothing among them."""
    smoothings = [user for user in node.users if is_smoothing(user)]
    return is_call(node, aten.gelu.default) and any(
        feeds_quantize(value, value.target) for value in (node, *smoothings)
    )


def known_factor(found: Match) -> str | None:
    smooth = found.get("smooth")
    if smooth is None or is_smoothing(found["smoothed"]):
        return None
    return f"{smooth.name}, which it is multiplied by, is no smoothing"


def build_gelu_quantize(found: Match, b: Builder) -> Node:
    values = (found[name] for name in ("x", "approximate", "block_rule"))
    optional = given(global_scale=found.get("global_scale"), smooth=found.get("smooth"))
    return b.call(llvq.gelu_quantize.default, *values, **optional)


GELU = call(aten.gelu.default, Var("x"), approximate=Literal("approximate"))

RULES = (
    Rule(
        name="gelu-quantize",
        anchor=is_gelu_before_quantize,
        pattern=call(
            llvq.quantize.default,
            either(call(MUL, GELU, Var("smooth"), bind="smoothed"), GELU),
            Literal("block_rule"),
            global_scale=STATIC_SCALE,
        ),
        check=known_factor,
        build=build_gelu_quantize,
        excluded=kept_apart,
    ),
)


def fuse_gelu_quantize(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-gelu-quantize", RULES)
