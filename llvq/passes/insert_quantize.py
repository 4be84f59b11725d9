"""insert-quantize: every linear that the recipe does not exclude reads NVFP4 on both sides.

A value is quantized once and dequantized at each consumer. The weight leaves the graph as codes,
scales and a global scale of the weight plan. A linear that cannot be quantized is a miss.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch.fx import Node

from llvq.formats.nvfp4 import BLOCK, INPUT_DTYPES
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.pattern import Miss
from llvq.program import Program
from llvq.weights import WeightRecord

LINEAR = torch.ops.aten.linear.default
llvq = torch.ops.llvq


def insert_quantize(program: Program, ctx: Context) -> list[Book]:
    """Quantize linears; the book counts the excluded by glob, and shows globs that kept none."""
    book = Book("linear", excluded=Counter(dict.fromkeys(ctx.recipe.linear.exclude, 0)))
    quantized: dict[Node, tuple[Node, ...]] = {}
    allowed = ctx.recipe.allow_miss.get("insert-quantize", {})
    sites = [node for node in program.graph.graph.nodes if is_site(node)]
    book.sites = len(sites)
    for node in sites:
        glob = ctx.recipe.excluded_by(layer_name(node))
        reason = None if glob else obstacle(node)
        if glob:
            book.excluded[glob] += 1
        elif reason:
            account_miss(book, node, Miss(reason, node), allowed)
        elif ctx.take(book.rule, node):
            book.hits += 1
            _quantize_linear(program, ctx, node, quantized)
        else:
            book.stopped += 1
    finish(program.graph)
    return [book]


def is_site(node: Node) -> bool:
    """A linear whose weight is not NVFP4 yet."""
    return is_call(node, LINEAR) and not is_call(node.args[1], llvq.dequantize.default)


def layer_name(node: Node) -> str:
    """The module path of a linear, from its weight: `blocks.0.ffn.0`."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    return str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else weight.name


def obstacle(node: Node) -> str | None:
    """Why a linear cannot be NVFP4, or None."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    if weight.op != "get_attr":
        return f"its weight is computed by {weight.name}, not read from the checkpoint"
    value: Node = node.args[0]  # type: ignore[assignment]
    if dtype(value) not in INPUT_DTYPES:
        return f"its input is {dtype(value)}, NVFP4 is defined on bf16, fp16 and fp32"
    features = shape(weight)[-1]
    if features % BLOCK:
        return f"K = {features} of {layer_name(node)} is not a multiple of {BLOCK}"
    return None


def _quantize_linear(
    program: Program, ctx: Context, node: Node, quantized: dict[Node, tuple[Node, ...]]
) -> None:
    builder = Builder(program, "linear", node, (node,))
    value: Node = node.args[0]  # type: ignore[assignment]
    if value not in quantized:
        rule = ctx.recipe.linear.activation_rule
        packed = builder.call(llvq.quantize.default, value, rule)
        quantized[value] = tuple(builder.call(operator.getitem, packed, i) for i in range(3))
    x = builder.call(llvq.dequantize.default, *quantized[value], [], dtype(value))
    w = _quantized_weight(program, ctx, builder, node)
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    node.replace_all_uses_with(builder.call(LINEAR, x, w, bias))


def _quantized_weight(program: Program, ctx: Context, builder: Builder, node: Node) -> Node:
    weight: Node = node.args[1]  # type: ignore[assignment]
    layer, (rows, columns) = layer_name(node), shape(weight)
    program.weights[layer] = WeightRecord(
        layer, "quantize", (str(weight.target),), block_rule=ctx.recipe.linear.weight_rule
    )
    return builder.call(
        llvq.dequantize.default, *packed_weight(builder, layer, rows, columns, 1), [rows],
        dtype(weight),
    )  # fmt: skip


def packed_weight(
    builder: Builder, layer: str, rows: int, columns: int, segments: int
) -> tuple[Node, Node, Node]:
    """The three tensors of an NVFP4 weight [rows, columns] of `segments` stacked matrices."""
    return (
        builder.weight(f"{layer}.codes", torch.uint8, (rows, columns // 2)),
        builder.weight(f"{layer}.scales", torch.float8_e4m3fn, (rows, columns // BLOCK)),
        builder.weight(f"{layer}.global_scale", torch.float32, (segments,)),
    )
