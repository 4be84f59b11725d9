"""fuse-gemm-epilogues: a W4A4 linear does what follows it before it stores anything.

For numerics `w4a4`, after `swizzle-weights`. GELU and quantize are fused whole where the scale is
static. A dynamic scale is known only when the last tile is done: there the linear activates, stores
once and finds the scale, and a quantize follows. A gated residual is added as the tile is stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.activations_to_fp8 import BIAS, FORM, WEIGHT
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.layer_facts import given
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.passes.swizzle_weights import X
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program
from llvq.recipe import Recipe

llvq = torch.ops.llvq

GELU = llvq.gelu_quantize.default
GATE = llvq.gate_residual.default
FUSIBLE = llvq.nvfp4_linear_swizzled.default
LINEARS = (FUSIBLE, llvq.nvfp4_linear.default, llvq.nvfp4_linear_lowrank.default)
OPERANDS = ("x_codes", "x_scales", "x_global", "w_codes", "w_scales", "w_global")


def is_static_gelu(node: Node) -> bool:
    """A GELU of a W4A4 linear that is quantized by a static scale."""
    return _is_gelu(node) and arguments(node)["global_scale"] is not None


def is_dynamic_gelu(node: Node) -> bool:
    """A GELU of a W4A4 linear that is quantized by the scale of what it gives."""
    return _is_gelu(node) and arguments(node)["global_scale"] is None


def _is_gelu(node: Node) -> bool:
    return is_call(node, GELU) and is_call(node.args[0], *LINEARS)


def is_gate_of_linear(node: Node) -> bool:
    """A gated residual whose branch ends in a W4A4 linear."""
    return is_call(node, GATE) and is_call(node.args[1], *LINEARS)


def kept_apart(node: Node, _: Recipe) -> str | None:
    """Why a linear must stay beside what follows it."""
    linear = node.args[0 if is_call(node, GELU) else 1]
    assert isinstance(linear, Node)
    if is_call(linear, llvq.nvfp4_linear_lowrank.default):
        return "a low-rank branch is added to its linear first"
    if not is_call(linear, FUSIBLE):
        return "the weight of its linear is not loaded but computed"
    return "its linear is read by others too" if len(linear.users) > 1 else None


def kept_from_codes(node: Node, recipe: Recipe) -> str | None:
    """Nine scales are tried for each block by `mse_sweep`, and tensor cores would wait for it."""
    swept = arguments(node)["block_rule"] == "mse_sweep"
    return kept_apart(node, recipe) or ("mse_sweep is too long for an epilogue" if swept else None)


def build_gelu_quantize(found: Match, b: Builder) -> Node:
    rest = (found[name] for name in ("approximate", "block_rule", "global_scale"))
    smooth = given(smooth=found.get("smooth"))
    return b.call(llvq.nvfp4_linear_gelu_quantize.default, *_linear(found), *rest, **smooth)


def build_gelu(found: Match, b: Builder) -> Node:
    smooth, rule = given(smooth=found.get("smooth")), found["block_rule"]
    form = (found["approximate"], rule)
    made = b.call(llvq.nvfp4_linear_gelu.default, *_linear(found), *form, **smooth)
    y, scale = b.parts(made, 2)
    return b.call(llvq.quantize.default, y, rule, global_scale=scale)


def build_gate_residual(found: Match, b: Builder) -> Node:
    values = (found["residual"], found["gate"])
    return b.call(llvq.nvfp4_linear_gate_residual.default, *_linear(found), *values)


def _linear(found: Match) -> tuple[Any, ...]:
    """The arguments of the linear that was found."""
    operands = (found[name] for name in OPERANDS)
    return (*operands, found.get("bias"), found["segments"], found["dtype"])


LINEAR = call(FUSIBLE, *X, *WEIGHT, BIAS, *FORM)
FORM_OF_GELU = (Literal("approximate"), Literal("block_rule"))
SMOOTH = either(Var("smooth"), None)

RULES = (
    Rule(
        name="linear-gelu-quantize",
        anchor=is_static_gelu,
        pattern=call(GELU, LINEAR, *FORM_OF_GELU, Var("global_scale"), SMOOTH),
        build=build_gelu_quantize,
        excluded=kept_from_codes,
    ),
    Rule(
        name="linear-gelu",
        anchor=is_dynamic_gelu,
        pattern=call(GELU, LINEAR, *FORM_OF_GELU, None, SMOOTH),
        build=build_gelu,
        excluded=kept_apart,
    ),
    Rule(
        name="linear-gate-residual",
        anchor=is_gate_of_linear,
        pattern=call(GATE, Var("residual"), LINEAR, Var("gate")),
        build=build_gate_residual,
        excluded=kept_apart,
    ),
)


def fuse_gemm_epilogues(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-gemm-epilogues", RULES)
