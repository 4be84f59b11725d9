"""fold-smoothing: a smoothing scale behind a norm becomes part of that norm, and costs nothing.

A modulated norm takes it into its vectors, `(1 + scale) * s - 1` and `shift * s`; they change per
timestep, so split-stages computes them in `modulate`. That is done in fp32, and the norm then
rounds once: in bf16 the difference would lose what a small s keeps. A norm with a weight and a bias
takes it into both, in the weight plan.

A scale stays where nothing can take it: behind anything but a norm, or where the norm is also read
without it or with another one. The book counts these by their reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.layer_facts import MUL, is_smoothing
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, describe, either, maybe
from llvq.program import Program
from llvq.recipe import Recipe
from llvq.weights import WeightRecord

aten = torch.ops.aten
llvq = torch.ops.llvq

LAYER_NORM = aten.layer_norm.default
NORM_MODULATE = llvq.norm_modulate.default


def is_smoothed(node: Node) -> bool:
    """A value times a smoothing scale, unless a layer norm makes the value."""
    return is_smoothing(node) and not is_smoothed_norm(node)


def is_smoothed_norm(node: Node) -> bool:
    """A layer norm times a smoothing scale."""
    return is_smoothing(node) and is_call(_producer(node), LAYER_NORM)


def _producer(smoothing: Node) -> Node:
    value: Any = smoothing.args[0]
    behind_cast = is_call(value, aten.to.dtype) and is_call(value.args[0], LAYER_NORM)
    return value.args[0] if behind_cast else value


def stays(node: Node, _: Recipe) -> str | None:
    """Why a scale cannot be folded into what makes its value, or None."""
    producer = _producer(node)
    if not is_call(producer, NORM_MODULATE, LAYER_NORM):
        made = describe(producer.target) if producer.op == "call_function" else producer.op
        return f"its value is made by {made}, which is no norm"
    between: Any = node.args[0]
    others = [u for n in {producer, between} for u in n.users if u not in (node, between)]
    if others:
        scaled = all(is_smoothing(user) for user in others)
        return f"its norm is read {'with other scales' if scaled else 'without it'} too"
    return _obstacle(producer) if is_call(producer, LAYER_NORM) else None


def _obstacle(norm: Node) -> str | None:
    """Why the weight and the bias of a layer norm cannot be multiplied in the plan, or None."""
    weight, bias = _parameters(norm)
    if weight is None:
        return "its norm has no weight"
    computed = any(part is not None and part.op != "get_attr" for part in (weight, bias))
    return "the weight of its norm is computed" if computed else None


def _parameters(norm: Node) -> tuple[Node | None, Node | None]:
    found = arguments(norm)
    return found["weight"], found["bias"]


def build_modulation(found: Match, b: Builder) -> Node:
    """The norm again, with vectors in fp32."""
    scale, shift, s = (_fp32(b, found[name]) for name in ("scale", "shift", "s"))
    grown = b.call(MUL, b.call(aten.add.Tensor, scale, 1), s)
    vectors = b.call(aten.sub.Tensor, grown, 1), b.call(MUL, shift, s)
    return b.call(NORM_MODULATE, found["x"], *vectors, found["eps"])


def _fp32(b: Builder, node: Node) -> Node:
    return node if dtype(node) == torch.float32 else b.call(aten.to.dtype, node, torch.float32)


def build_affine(found: Match, b: Builder) -> Node:
    """The norm again, with a weight and a bias that the plan multiplies."""
    norm, s = found["norm"], found["s"]
    weight, bias = (part and _product(b, part, s) for part in _parameters(norm))
    values = arguments(norm) | {"weight": weight, "bias": bias}
    made = b.call(LAYER_NORM, *values.values())
    return b.call(aten.to.dtype, made, found["dtype"]) if found.get("dtype") else made


def _product(b: Builder, parameter: Node, s: Node) -> Node:
    """A parameter of a norm times the scale, as a weight of its own: others may read the norm's."""
    plan = b.program.weights
    sources = tuple(plan[str(part.target)].sources[0] for part in (parameter, s))
    name, number = f"{parameter.target}_smoothed", 1
    while name in plan and plan[name].sources != sources:
        number += 1
        name = f"{parameter.target}_smoothed_{number}"
    plan[name] = WeightRecord(name, "multiply", sources, dtype=dtype(parameter))
    return b.weight(name, dtype(parameter), shape(parameter))


NORM = call(
    LAYER_NORM,
    Var("x"),
    Literal("normalized_shape"),
    Var("weight"),
    either(Var("bias"), None),
    Literal("eps"),
    Literal("cudnn_enable"),
    bind="norm",
)
MODULATED = call(NORM_MODULATE, Var("x"), Var("scale"), Var("shift"), Literal("eps"))

RULES = (
    Rule(
        name="into-modulation",
        anchor=is_smoothed,
        pattern=call(MUL, MODULATED, Var("s")),
        build=build_modulation,
        excluded=stays,
    ),
    Rule(
        name="into-affine",
        anchor=is_smoothed_norm,
        pattern=call(MUL, maybe(aten.to.dtype, NORM, dtype=Literal("dtype")), Var("s")),
        build=build_affine,
        excluded=stays,
    ),
)


def fold_smoothing(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fold-smoothing", RULES)
