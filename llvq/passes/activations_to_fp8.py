"""activations-to-fp8: NVFP4 linears become FP8 linears, weights widened, activations in FP8.

For numerics `w4a8`. What was quantized to NVFP4 for a linear, alone or by the norm or GELU that
makes it, is quantized to FP8 in its place, once for all linears that read it. Scales are then per
token and dynamic: static global scales and block rules of activations are dropped. A weight is
widened once per graph, by a call that reads weights alone, so that a loader can run it once.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.layer_facts import given
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, describe, either
from llvq.program import Program

llvq = torch.ops.llvq

LINEARS = (llvq.nvfp4_linear.default, llvq.nvfp4_linear_lowrank.default)

# What quantizes to NVFP4, what does to FP8, and the arguments that both have.
FP8: dict[Any, tuple[Any, tuple[str, ...]]] = {
    llvq.quantize.default: (llvq.quantize_fp8.default, ("x",)),
    llvq.norm_modulate_quantize.default: (
        llvq.norm_modulate_quantize_fp8.default,
        ("x", "scale", "shift", "eps"),
    ),
    llvq.gelu_quantize.default: (llvq.gelu_quantize_fp8.default, ("x", "approximate")),
}

ACTIVATION = tuple(call(operator.getitem, Var("packed"), i, shared=True) for i in range(3))
WEIGHT = (Var("w_codes"), Var("w_scales"), Var("w_global"))
BIAS = either(Var("bias"), None)
FORM = (Literal("segments"), Literal("dtype"))
LINEAR = call(LINEARS[0], *ACTIVATION, *WEIGHT, BIAS, *FORM)
WITH_BRANCH = call(LINEARS[1], *ACTIVATION, *WEIGHT, BIAS, Var("x_down"), Var("up"), *FORM)
NVFP4_LINEAR = either(LINEAR, WITH_BRANCH)


def is_nvfp4_linear(node: Node) -> bool:
    """A linear whose weight and input are NVFP4, with or without a low-rank branch."""
    return is_call(node, *LINEARS)


def known_operands(found: Match) -> str | None:
    if "up" in found.bound:
        return "a low-rank branch has no implementation outside of NVFP4 yet"
    packed = found["packed"]
    return None if is_call(packed, *FP8) else f"its input is quantized by {_name(packed)}"


def _name(node: Node) -> str:
    return describe(node.target) if node.op == "call_function" else f"the {node.op} {node.name}"


def build_fp8_linear(found: Match, b: Builder) -> Node:
    x = quantize_to_fp8(found["packed"], b)
    w = widen([found[var.name] for var in WEIGHT], found["segments"], b)
    return b.call(llvq.fp8_linear.default, *x, *w, found.get("bias"), found["dtype"])


def quantize_to_fp8(packed: Node, b: Builder) -> tuple[Node, ...]:
    """Values and scale of what `packed` quantizes, made in its place."""
    target, names = FP8[packed.target]
    values = arguments(packed)
    kept = (values[name] for name in names)
    b = b.at(packed, like=packed)
    return b.parts(b.once(target, *kept, **given(smooth=values.get("smooth"))), 2)


def widen(weight: list[Node], segments: Any, b: Builder) -> tuple[Node, ...]:
    """Values and scale of a weight, made where its last part is read."""
    after = b.at(max(weight).next)
    return after.parts(after.once(llvq.widen.default, *weight, segments), 2)


RULES = (
    Rule(
        name="fp8-linear",
        anchor=is_nvfp4_linear,
        pattern=NVFP4_LINEAR,
        check=known_operands,
        build=build_fp8_linear,
    ),
)


def activations_to_fp8(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "activations-to-fp8", RULES)
