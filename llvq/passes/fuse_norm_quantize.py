"""fuse-norm-quantize: a modulated norm that feeds a quantize writes NVFP4 itself."""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.insert_quantize import layer_name
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program
from llvq.recipe import Recipe

llvq = torch.ops.llvq


def feeds_quantize(node: Node, producer: object) -> bool:
    """A call of `producer` with a quantize among its users."""
    return is_call(node, producer) and any(
        is_call(user, llvq.quantize.default) for user in node.users
    )


def feeds_excluded(node: Node, recipe: Recipe) -> str | None:
    """The glob that keeps a linear which reads this value too, so that it must stay as it is."""
    linears = (user for user in node.users if is_call(user, torch.ops.aten.linear.default))
    return next((g for linear in linears if (g := recipe.excluded_by(layer_name(linear)))), None)


def is_norm_before_quantize(node: Node) -> bool:
    """A modulated norm with a quantize among its users."""
    return feeds_quantize(node, llvq.norm_modulate.default)


def build_norm_quantize(found: Match, b: Builder) -> Node:
    names = ("x", "scale", "shift", "eps", "block_rule")
    return b.call(llvq.norm_modulate_quantize.default, *(found[name] for name in names))


RULES = (
    Rule(
        name="norm-modulate-quantize",
        anchor=is_norm_before_quantize,
        pattern=call(
            llvq.quantize.default,
            call(llvq.norm_modulate.default, Var("x"), Var("scale"), Var("shift"), Literal("eps")),
            Literal("block_rule"),
        ),
        build=build_norm_quantize,
        excluded=feeds_excluded,
    ),
)


def fuse_norm_quantize(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-norm-quantize", RULES)
