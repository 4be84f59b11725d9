"""activations-in-bf16: NVFP4 linears read their activations as they are, not quantized.

For numerics `w4a16`. Where a norm or a GELU quantized what it made, it is itself again, in the
dtype of the program, and computed once for all linears that read it. Weights stay NVFP4.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.activations_to_fp8 import NVFP4_LINEAR, WEIGHT, is_nvfp4_linear, known_operands
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.layer_facts import MUL
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Match
from llvq.program import Program

llvq = torch.ops.llvq


def build_linear(found: Match, b: Builder) -> Node:
    x = value_of(found["packed"], b)
    w = (found[var.name] for var in WEIGHT)
    rest = (found.get("bias"), found["segments"], found["dtype"])
    return b.call(llvq.nvfp4_linear_w4a16.default, x, *w, *rest)


def value_of(packed: Node, b: Builder) -> Node:
    """What `packed` quantizes, made in its place."""
    given, b = arguments(packed), b.at(packed, like=packed)
    x: Node = given["x"]
    if is_call(packed, llvq.norm_modulate_quantize.default):
        vectors = (given["scale"], given["shift"], given["eps"])
        return b.once(llvq.norm_modulate.default, x, *vectors)
    if is_call(packed, llvq.gelu_quantize.default):
        y = b.once(torch.ops.aten.gelu.default, x, approximate=given["approximate"])
        return y if given["smooth"] is None else b.once(MUL, y, given["smooth"])
    return x


RULES = (
    Rule(
        name="w4a16-linear",
        anchor=is_nvfp4_linear,
        pattern=NVFP4_LINEAR,
        check=known_operands,
        build=build_linear,
    ),
)


def activations_in_bf16(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "activations-in-bf16", RULES)
