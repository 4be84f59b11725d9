"""fuse-gelu-quantize: a GELU that feeds a quantize writes NVFP4 itself."""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder
from llvq.passes.fuse_norm_quantize import feeds_excluded, feeds_quantize
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program

aten = torch.ops.aten
llvq = torch.ops.llvq


def is_gelu_before_quantize(node: Node) -> bool:
    """A GELU with a quantize among its users."""
    return feeds_quantize(node, aten.gelu.default)


def build_gelu_quantize(found: Match, b: Builder) -> Node:
    names = ("x", "approximate", "block_rule")
    return b.call(llvq.gelu_quantize.default, *(found[name] for name in names))


RULES = (
    Rule(
        name="gelu-quantize",
        anchor=is_gelu_before_quantize,
        pattern=call(
            llvq.quantize.default,
            call(aten.gelu.default, Var("x"), approximate=Literal("approximate")),
            Literal("block_rule"),
        ),
        build=build_gelu_quantize,
        excluded=feeds_excluded,
    ),
)


def fuse_gelu_quantize(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-gelu-quantize", RULES)
