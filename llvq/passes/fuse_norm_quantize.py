"""fuse-norm-quantize: a modulated norm that feeds a quantize writes NVFP4 itself."""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.insert_quantize import layer_name
from llvq.passes.layer_facts import given, readers
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program
from llvq.recipe import Recipe

llvq = torch.ops.llvq


def feeds_quantize(node: Node, producer: object) -> bool:
    """A call of `producer` with a quantize among its users."""
    return is_call(node, producer) and any(
        is_call(user, llvq.quantize.default) for user in node.users
    )


def kept_apart(node: Node, recipe: Recipe) -> str | None:
    """Why a value must stay beside what quantizes it: the glob that keeps a linear which reads it
    too, or another such reader. None if nothing else reads it."""
    reads = readers(node)
    linears = (user for user in reads if is_call(user, torch.ops.aten.linear.default))
    glob = next((g for linear in linears if (g := recipe.excluded_by(layer_name(linear)))), None)
    if glob is not None:
        return glob
    if any(is_call(user, llvq.lowrank_add.default) for user in reads):
        return "a low-rank branch reads it too"
    quantizes = sum(is_call(user, llvq.quantize.default) for user in reads)
    return "it is quantized in more than one way" if quantizes > 1 else None


def is_norm_before_quantize(node: Node) -> bool:
    """A modulated norm with a quantize among its users."""
    return feeds_quantize(node, llvq.norm_modulate.default)


def build_norm_quantize(found: Match, b: Builder) -> Node:
    values = (found[name] for name in ("x", "scale", "shift", "eps", "block_rule"))
    static = given(global_scale=found.get("global_scale"))
    return b.call(llvq.norm_modulate_quantize.default, *values, **static)


STATIC_SCALE = either(Var("global_scale"), None)


RULES = (
    Rule(
        name="norm-modulate-quantize",
        anchor=is_norm_before_quantize,
        pattern=call(
            llvq.quantize.default,
            call(llvq.norm_modulate.default, Var("x"), Var("scale"), Var("shift"), Literal("eps")),
            Literal("block_rule"),
            global_scale=STATIC_SCALE,
        ),
        build=build_norm_quantize,
        excluded=kept_apart,
    ),
)


def fuse_norm_quantize(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-norm-quantize", RULES)
