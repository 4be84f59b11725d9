"""attention-to-fp8: attention is done in FP8, over pages and over tensors.

For numerics `w4a8`. Chunks that the recipe keeps in the dtype of the model are attended in it, and
so is what has a mask. Stages without NVFP4, FP8 or pages (the VAE, the text encoder) are left as
they are.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program
from llvq.recipe import Recipe

llvq = torch.ops.llvq

PAGED = (llvq.paged_attention.default, llvq.paged_attention_kept.default)
# What a stage has at least one of if numerics are any of its concern.
QUANTIZED = (
    *PAGED,
    llvq.paged_attention_fp8.default,
    llvq.nvfp4_linear.default,
    llvq.fp8_linear.default,
)


def is_paged(node: Node) -> bool:
    """Attention over pages."""
    return is_call(node, *PAGED)


def keeps_chunks(node: Node, _: Recipe) -> str | None:
    kept = is_call(node, llvq.paged_attention_kept.default)
    return "kept chunks are attended in the dtype of the model" if kept else None


def build_paged(found: Match, b: Builder) -> Node:
    return b.call(llvq.paged_attention_fp8.default, *found.root.args)


def is_attention(node: Node) -> bool:
    """Attention over tensors."""
    return is_call(node, llvq.attention.default)


def kept_as_is(node: Node, _: Recipe) -> str | None:
    """Why an attention is not for FP8."""
    if not any(is_call(other, *QUANTIZED) for other in node.graph.nodes):
        return "nothing in its stage is quantized"
    return "it has a mask" if arguments(node)["mask"] is not None else None


def build_attention(found: Match, b: Builder) -> Node:
    values = (found[name] for name in ("q", "k", "v", "scale"))
    return b.call(llvq.attention_fp8.default, *values)


QKV = (Var("q"), Var("k"), Var("v"))
ROTATION = (either(Var("cos"), None), either(Var("sin"), None))

RULES = (
    Rule(
        name="paged-attention-fp8",
        anchor=is_paged,
        pattern=call(
            llvq.paged_attention.default,
            *QKV,
            Literal("pages"),  # A list, of as many tensors as the format has.
            Var("table"),
            *ROTATION,
            Literal("scale"),
            Literal("layer"),
            Literal("kv_format"),
        ),
        build=build_paged,
        excluded=keeps_chunks,
    ),
    Rule(
        name="attention-fp8",
        anchor=is_attention,
        pattern=call(llvq.attention.default, *QKV, None, Literal("scale")),
        build=build_attention,
        excluded=kept_as_is,
    ),
)


def attention_to_fp8(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "attention-to-fp8", RULES)
