"""Write a pass of your own: SwiGLU, `silu(gate) * up`, as one op of your own.

    python -m examples.my_pass

A pass is a tuple of rules and a function. A rule says which nodes are its sites (anchor), what a
site must look like (pattern), what else must hold (check) and what takes its place (build). The
books balance by themselves: a site that does not match is a miss with the reason, and ends the
compilation unless the recipe allows it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from llvq.dialect.registry import EXACT, like_first, op
from llvq.exported import Quantized, quantize
from llvq.passes import PIPELINE, Pass
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Match, Var, call
from llvq.program import Level, Program
from llvq.recipe import LinearRecipe, Recipe

aten = torch.ops.aten


# The op: schema (this signature), reference (this body), fake (shapes) and tolerance.
@op(fake=like_first, tolerance=EXACT)
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, both of one shape."""
    return F.silu(gate) * up


def is_silu(node: Node) -> bool:
    """Every SiLU is a site. An anchor is coarse: a pattern that misses one has to say why."""
    return is_call(node, aten.silu.default)


def same_shape(found: Match) -> str | None:
    """A reason to leave a match alone, or None."""
    gate, up = shape(found["gate"]), shape(found["up"])
    return None if gate == up else f"gate is {gate} and up is {up}, swiglu does not broadcast"


def build_swiglu(found: Match, b: Builder) -> Node:
    """The node that replaces the last node of the match; its shape and dtype are inferred."""
    return b.call(torch.ops.llvq.swiglu.default, found["gate"], found["up"])


RULES = (
    Rule(
        name="swiglu",
        anchor=is_silu,
        # From the last op to its inputs; `mul` matches in both orders.
        pattern=call(aten.mul.Tensor, call(aten.silu.default, Var("gate")), Var("up")),
        check=same_shape,
        build=build_swiglu,
    ),
)


def fuse_swiglu(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-swiglu", RULES)


# After insert-quantize, which is the fifth pass and makes level `quantized`. This one stays there.
MY_PIPELINE = (*PIPELINE[:5], Pass(fuse_swiglu, Level.QUANTIZED, "exact", True), *PIPELINE[5:])


class GatedMlp(nn.Module):
    """The feed-forward of many language models."""

    def __init__(self, dim: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def compile_mlp(model: nn.Module, x: Tensor, recipe: Recipe) -> Quantized:
    exported = torch.export.export(model, (x,), strict=False)
    return quantize(exported, recipe, pipeline=MY_PIPELINE)


def main() -> None:
    torch.manual_seed(0)
    model, x = GatedMlp(), torch.randn(1, 5, 64)
    quantized = compile_mlp(model, x, Recipe(linear=LinearRecipe(exclude=())))
    print(quantized.text())
    for report in quantized.reports:
        print(f"{report.name:20} {report.total('hits')} of {report.total('sites')}")
    error = (quantized.module()(x) - model(x)).norm() / model(x).norm()
    print(f"relative error: {error.item():.4f}")


if __name__ == "__main__":
    main()
