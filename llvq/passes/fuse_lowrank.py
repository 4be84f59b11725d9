"""fuse-lowrank: a low-rank branch becomes part of its linear and of the quantize before it.

The projection down reads what is being quantized, so one kernel reads it once for both; the
projection up ends where the output tile of the GEMM is. The branches of stacked linears are stacked
too. That needs a branch of one rank on every linear of the stack, and a quantize that serves no
other; elsewhere the branch stays a call of its own, and the book says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.fuse_linear import stacked_name
from llvq.passes.rules import Context
from llvq.program import Program
from llvq.weights import WeightRecord

aten = torch.ops.aten
llvq = torch.ops.llvq

ADD = llvq.lowrank_add.default
LINEAR = llvq.nvfp4_linear.default
SPLIT = aten.split_with_sizes.default


@dataclass(frozen=True)
class Branches:
    """The branches of one NVFP4 linear, by the order of its segments, and what quantizes for it."""

    linear: Node
    adds: tuple[Node, ...]
    quantize: Node

    @property
    def downs(self) -> list[Any]:
        return [add.args[2] for add in self.adds]

    @property
    def ups(self) -> list[Any]:
        return [add.args[3] for add in self.adds]


def fuse_lowrank(program: Program, ctx: Context) -> list[Book]:
    """Fuse, one NVFP4 linear with all of its branches at a time."""
    book = Book("lowrank-linear")
    for linear, adds in _by_linear(program.graph.graph.nodes).items():
        book.sites += len(adds)
        found = _branches(linear, adds)
        if isinstance(found, str):
            book.excluded[found] += len(adds)
        elif ctx.take(book.rule, linear):
            book.hits += len(adds)
            _fuse(program, found)
        else:
            book.stopped += len(adds)
    finish(program.graph)
    return [book]


def _by_linear(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """The low-rank additions to each linear, NVFP4 or not."""
    groups: dict[Node, list[Node]] = {}
    for node in nodes:
        if is_call(node, ADD):
            groups.setdefault(_linear_of(node), []).append(node)
    return groups


def _linear_of(add: Node) -> Node:
    """What the branch is added to: a linear, or the stack that a part of it comes from."""
    y: Any = add.args[0]
    part = y.op == "call_function" and y.args and is_call(y.args[0], SPLIT)
    return y.args[0].args[0] if part else y


def _branches(linear: Node, adds: list[Node]) -> Branches | str:
    """What is to be fused, or the reason why it cannot be."""
    if not is_call(linear, LINEAR):
        return "its linear is not in NVFP4"
    parts = _parts(linear)
    by_part = {add.args[0]: add for add in adds}
    if any(list(part.users) != [by_part.get(part)] for part in parts):
        return "a linear of the stack has no branch"
    codes: Any = linear.args[0]
    quantize: Any = codes.args[0] if codes.op == "call_function" else codes
    if not is_call(quantize, llvq.quantize.default):
        return "its input is quantized by another kernel"
    if any(user is not linear for part in quantize.users for user in part.users):
        return "its input is quantized for other linears too"
    if any(add.args[1] is not quantize.args[0] for add in adds):
        return "the branch reads another value than the linear"
    found = Branches(linear, tuple(by_part[part] for part in parts), quantize)
    ranks = {shape(down)[0] for down in found.downs}
    return found if len(ranks) == 1 else "the branches of the stack differ in rank"


def _parts(linear: Node) -> list[Node]:
    """The outputs of a linear by segment: the linear itself, or the parts it is split into."""
    split = next(iter(linear.users))
    if not is_call(split, SPLIT):
        return [linear]
    return sorted(split.users, key=lambda part: part.args[1])  # type: ignore[arg-type,return-value]


def _fuse(program: Program, found: Branches) -> None:
    linear, quantize = found.linear, found.quantize
    origin = (*reversed(found.adds), linear, quantize)
    before = Builder(program, "lowrank-linear", quantize, origin)
    down = _stack(before, found.downs)
    x, rule = quantize.args
    packed = before.call(llvq.quantize_lowrank.default, x, down, rule, **quantize.kwargs)
    *operands, projected = before.parts(packed, 4)
    builder = Builder(program, "lowrank-linear", linear, origin)
    up = _stack(builder, found.ups)
    *weight, bias, segments, kind = linear.args[3:]
    fused = llvq.nvfp4_linear_lowrank.default
    y = builder.call(fused, *operands, *weight, bias, projected, up, segments, kind)
    for add in found.adds:
        part: Any = add.args[0]
        add.replace_all_uses_with(y if part is linear else part)
    linear.replace_all_uses_with(y)


def _stack(b: Builder, weights: list[Any]) -> Node:
    """Read weights of one width as one, a record of the plan; a single one as it is."""
    first, names = weights[0], [str(weight.target) for weight in weights]
    name = names[0]
    if len(weights) > 1:
        layers = [layer.rpartition(".")[0] for layer in names]
        name = f"{stacked_name(layers)}.{name.rpartition('.')[2]}"
        b.program.weights[name] = WeightRecord(name, "concat", tuple(names), dtype=dtype(first))
    rows = sum(shape(weight)[0] for weight in weights)
    return b.weight(name, dtype(first), (rows, shape(first)[1]))
