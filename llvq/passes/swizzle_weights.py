"""swizzle-weights: NVFP4 linears read the scales of their weights as tensor cores want them.

For numerics `w4a4`. The scales of a weight are brought into 128x4 atoms once per graph, by a call
that reads weights alone, so that a loader runs it once and gives the linear scales back. Scales
of activations stay linear: they change with every call. A linear with a low-rank branch is no
site: no kernel of ours runs it.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.activations_to_fp8 import BIAS, FORM, WEIGHT
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Match, Var, call
from llvq.program import Program
from llvq.recipe import Recipe

llvq = torch.ops.llvq

LINEAR = llvq.nvfp4_linear.default
X = tuple(Var(name) for name in ("x_codes", "x_scales", "x_global"))
W_SCALES = 4


def is_linear(node: Node) -> bool:
    """A linear of NVFP4 by NVFP4, without a low-rank branch."""
    return is_call(node, LINEAR)


def not_a_weight(node: Node, _: Recipe) -> str | None:
    """Why a linear keeps its scales: to swizzle what a graph computes saves nothing."""
    scales = node.args[W_SCALES]
    loaded = isinstance(scales, Node) and scales.op == "get_attr"
    return None if loaded else "its weight is not loaded but computed"


def build_swizzled(found: Match, b: Builder) -> Node:
    x = (found[var.name] for var in X)
    w = (found["w_codes"], swizzle(found["w_scales"], b), found["w_global"])
    rest = (found.get("bias"), found["segments"], found["dtype"])
    return b.call(llvq.nvfp4_linear_swizzled.default, *x, *w, *rest)


def swizzle(scales: Node, b: Builder) -> Node:
    """Scales in atoms, made where the graph first reads them from the weights."""
    first = next(iter(b.graph.find_nodes(op="get_attr", target=scales.target)))
    return b.at(first.next).once(llvq.swizzle_scales.default, first)


RULES = (
    Rule(
        name="swizzled-linear",
        anchor=is_linear,
        pattern=call(LINEAR, *X, *WEIGHT, BIAS, *FORM),
        build=build_swizzled,
        excluded=not_a_weight,
    ),
)


def swizzle_weights(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "swizzle-weights", RULES)
