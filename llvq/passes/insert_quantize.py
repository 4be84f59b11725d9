"""insert-quantize: every linear that the recipe does not exclude reads NVFP4 on both sides.

A value is quantized once and dequantized at each consumer. The weight leaves the graph as codes,
scales and a global scale of the weight plan. A linear that cannot be quantized is a miss.

What calibration knows of a layer is put in here: its input is smoothed and quantized with a static
scale, and a low-rank branch is added to its output. Without facts the scale is dynamic. A weight
that was stored without its smoothing and its branch gets both back even where it is not quantized.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.fx import Node

from llvq.calibration import LayerFacts
from llvq.formats.nvfp4 import BLOCK, INPUT_DTYPES
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.layer_facts import NO_FACTS, Inputs, add_branch, refuse_unread, taken_out
from llvq.passes.rules import Context
from llvq.pattern import Miss
from llvq.program import Program, provenance
from llvq.weights import WeightRecord

LINEAR = torch.ops.aten.linear.default
llvq = torch.ops.llvq

RESTORED = "restore-facts"


def insert_quantize(program: Program, ctx: Context) -> list[Book]:
    """Quantize linears; the book counts the excluded by glob, and shows globs that kept none."""
    refuse_unread(program, ctx)
    book = Book("linear", excluded=Counter(dict.fromkeys(ctx.recipe.linear.exclude, 0)))
    inputs = Inputs(ctx.recipe.linear.activation_rule)
    sites = [node for node in program.graph.graph.nodes if is_site(node)]
    book.sites = len(sites)
    for node in sites:
        facts = ctx.calibration.get(layer_name(node), NO_FACTS)
        if _is_quantized(book, ctx, node):
            _quantize_linear(program, ctx, node, inputs, facts)
        elif taken_out(facts):
            _restore_linear(program, node, inputs, facts)
    finish(program.graph)
    return [book]


def _is_quantized(book: Book, ctx: Context, node: Node) -> bool:
    """Enter a site into the book; whether it is to be rewritten."""
    glob = ctx.recipe.excluded_by(layer_name(node))
    reason = None if glob else obstacle(node)
    if glob:
        book.excluded[glob] += 1
    elif reason:
        allowed = ctx.recipe.allow_miss.get("insert-quantize", {})
        account_miss(book, node, Miss(reason, node), allowed)
    elif ctx.take(book.rule, node):
        book.hits += 1
        return True
    else:
        book.stopped += 1
    return False


def is_site(node: Node) -> bool:
    """A linear whose weight is not NVFP4 yet."""
    done = provenance(node).get("rule") == RESTORED
    return is_call(node, LINEAR) and not done and not is_call(node.args[1], llvq.dequantize.default)


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
    program: Program, ctx: Context, node: Node, inputs: Inputs, facts: LayerFacts
) -> None:
    builder = Builder(program, "linear", node, (node,))
    value = inputs.smooth(builder, node.args[0], facts)  # type: ignore[arg-type]
    packed = inputs.quantize(builder, value, facts)
    x = builder.call(llvq.dequantize.default, *packed, [], dtype(value))
    w = _quantized_weight(program, ctx, builder, node, facts)
    y = builder.call(LINEAR, x, w, _bias(node))
    node.replace_all_uses_with(add_branch(builder, y, value, facts))


def _restore_linear(program: Program, node: Node, inputs: Inputs, facts: LayerFacts) -> None:
    """Keep a linear as it is, but for what was taken out of its weight."""
    builder = Builder(program, RESTORED, node, (node,))
    value = inputs.smooth(builder, node.args[0], facts)  # type: ignore[arg-type]
    y = builder.call(LINEAR, value, node.args[1], _bias(node))
    node.replace_all_uses_with(add_branch(builder, y, value, facts))


def _bias(node: Node) -> Node | None:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return bias  # type: ignore[return-value]


def _quantized_weight(
    program: Program, ctx: Context, builder: Builder, node: Node, facts: LayerFacts
) -> Node:
    weight: Node = node.args[1]  # type: ignore[assignment]
    layer, (rows, columns) = layer_name(node), shape(weight)
    known = facts != NO_FACTS
    program.weights[layer] = WeightRecord(
        layer,
        "quantize",
        (str(weight.target),),
        dtype=dtype(node) if known else None,
        block_rule=ctx.recipe.linear.weight_rule,
        facts=(facts,) if known else (),
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
