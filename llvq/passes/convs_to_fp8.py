"""convs-to-fp8: convolutions of a decoder that follow a norm are done in FP8.

Where the recipe asks for it, with `decode.conv`. A norm bounds what a convolution reads, so that
its scale is known before any video: no calibration is needed. Weights have a scale per feature.
Left in the dtype of the model are convolutions of anything else, and those that are too small or of
odd sizes.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program
from llvq.recipe import Recipe

aten = torch.ops.aten
llvq = torch.ops.llvq

SMALLEST = 1e-12  # F.normalize's
ALIGNED = 16  # Channels in FP8 that a tensor map can hold, and the least that a tile has.

X = Var("x")
LENGTH = call(aten.clamp_min.default, call(aten.linalg_vector_norm.default, X, 2.0, [1], True),
              SMALLEST)  # fmt: skip
UNIT = call(aten.div.Tensor, X, call(aten.expand_as.default, LENGTH, X))
SCALED = call(aten.mul.Tensor, UNIT, Literal("factor"))
NORMED = call(aten.silu.default, call(aten.mul.Tensor, SCALED, Var("gamma")))
AFTER_NORM = call(aten.cat.default, [Var("state"), NORMED], 2, bind="joined", shared=True)
PADDED = ([1, 1, 1], [0, 1, 1])


def is_after_norm(node: Node) -> bool:
    """A 3x3x3 convolution of a state and what SiLU gives."""
    if not is_call(node, aten.conv3d.default) or not is_call(node.args[0], aten.cat.default):
        return False
    parts, window = node.args[0].args[0], shape(node.args[1])[2:]  # type: ignore[union-attr, arg-type]
    return is_call(parts[-1], aten.silu.default) and window == (3, 3, 3)  # type: ignore[index]


def too_small(node: Node, _: Recipe) -> str | None:
    """Why a convolution stays in the dtype of the model."""
    features, channels = shape(node.args[1])[:2]  # type: ignore[arg-type]
    if channels % ALIGNED:
        return f"{channels} channels are no multiple of {ALIGNED}"
    return f"it has {features} features alone" if features < ALIGNED else None


def build(found: Match, b: Builder) -> Node:
    weight = found["weight"]
    scale = b.call(llvq.fp8_norm_scale.default, found["gamma"], found["factor"])
    codes, scales = b.parts(b.once(llvq.fp8_conv_weight.default, weight), 2)
    return b.call(llvq.conv3d_fp8.default, found["joined"], scale, codes, scales, found["bias"])


RULES = (
    Rule(
        name="conv3d-fp8",
        anchor=is_after_norm,
        pattern=call(aten.conv3d.default, AFTER_NORM, Var("weight"), Var("bias"), *PADDED),
        build=build,
        excluded=too_small,
    ),
)


def convs_to_fp8(program: Program, ctx: Context) -> list[Book]:
    if ctx.recipe.decode.conv == "none":
        return [Book(rule.name) for rule in RULES]
    return apply_rules(program, ctx, "convs-to-fp8", RULES)
