"""fuse-linear: linears between dequantizes become NVFP4 linears; those of one value become one.

q, k and v read the same quantized value, so their weights are stacked and one GEMM serves all
three. Each keeps its global scale, so stacking requantizes nothing.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import match
from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.insert_quantize import packed_weight
from llvq.passes.layer_facts import NO_FACTS
from llvq.passes.rules import Context
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program
from llvq.weights import WeightRecord

aten = torch.ops.aten
llvq = torch.ops.llvq


def dequantized(prefix: str) -> Any:
    names = ("codes", "scales", "global")
    values = (Var(f"{prefix}_{name}") for name in names)
    return call(
        llvq.dequantize.default, *values, Literal(f"{prefix}_segments"), Literal(f"{prefix}_dtype")
    )


WITH_BIAS = call(aten.linear.default, dequantized("x"), dequantized("w"), Var("bias"))
WITHOUT_BIAS = call(aten.linear.default, dequantized("x"), dequantized("w"), None)


def reads_dequantized(node: Node) -> bool:
    return is_call(node, aten.linear.default) and is_call(node.args[1], llvq.dequantize.default)


def fuse_linear(program: Program, ctx: Context) -> list[Book]:
    """Fuse, one group of linears of the same value at a time."""
    sites = [node for node in program.graph.graph.nodes if reads_dequantized(node)]
    book = Book("nvfp4-linear", sites=len(sites))
    for group in _groups(sites):
        if ctx.take(book.rule, group[0].root):
            book.hits += len(group)
            _fuse(program, group)
        else:
            book.stopped += len(group)
    finish(program.graph)
    return [book]


def _groups(sites: list[Node]) -> list[list[Match]]:
    """Matches of sibling modules that read the same codes, those that can be stacked together.

    Only siblings: every layer's cross-attention k and v read one text, and a stack of them all
    would be one weight that no layer owns.
    """
    groups: dict[Any, list[Match]] = {}
    for node in sites:
        pattern = WITHOUT_BIAS if len(node.args) < 3 or node.args[2] is None else WITH_BIAS
        found = match(pattern, node)
        assert isinstance(found, Match), found
        parent = _layer(found).rpartition(".")[0]
        key = (found["x_codes"], found["x_dtype"], _kind_of_bias(found), parent)
        groups.setdefault(key, []).append(found)
    return list(groups.values())


def _layer(found: Match) -> str:
    return str(found["w_codes"].target).removesuffix(".codes")


def _kind_of_bias(found: Match) -> Any:
    """What stacked biases must have in common: all weights of one dtype, or none at all."""
    bias = found.get("bias")
    if bias is None:
        return None
    return dtype(bias) if bias.op == "get_attr" else bias


def _fuse(program: Program, group: list[Match]) -> None:
    first = group[0]
    builder = Builder(program, "nvfp4-linear", first.root, tuple(m.root for m in reversed(group)))
    rows = [shape(found["w_codes"])[0] for found in group]
    weight, bias = _stack(program, builder, group, rows)
    x = (first["x_codes"], first["x_scales"], first["x_global"])
    y = builder.call(llvq.nvfp4_linear.default, *x, *weight, bias, rows, first["x_dtype"])
    if len(group) == 1:
        first.root.replace_all_uses_with(y)
        return
    parts = builder.call(aten.split_with_sizes.default, y, rows, -1)
    for i, found in enumerate(group):
        found.root.replace_all_uses_with(builder.call(operator.getitem, parts, i))


def _stack(
    program: Program, builder: Builder, group: list[Match], rows: list[int]
) -> tuple[tuple[Node, ...], Node | None]:
    """The stacked weight and bias of a group, and their records in the plan."""
    names = [_layer(found) for found in group]
    if len(group) == 1:
        found = group[0]
        weight = (found["w_codes"], found["w_scales"], found["w_global"])
        return weight, found.get("bias")
    stacked = stacked_name(names)
    records = [program.weights[name] for name in names]
    program.weights[stacked] = _stack_records(stacked, records)
    columns = shape(group[0]["w_codes"])[1] * 2
    weight = packed_weight(builder, stacked, sum(rows), columns, len(group))
    return weight, _stack_bias(program, builder, group, stacked)


def _stack_records(stacked: str, records: list[WeightRecord]) -> WeightRecord:
    """One record of all sources, with what is known of each; siblings compute in one dtype."""
    sources = tuple(source for record in records for source in record.sources)
    facts = tuple(known for record in records for known in record.facts or (NO_FACTS,))
    kind = next((record.dtype for record in records if record.dtype), None)
    return replace(
        records[0],
        target=stacked,
        sources=sources,
        dtype=kind,
        facts=facts if any(known != NO_FACTS for known in facts) else (),
    )


def _stack_bias(
    program: Program, builder: Builder, group: list[Match], stacked: str
) -> Node | None:
    biases = [found.get("bias") for found in group]
    if biases[0] is None:
        return None
    name = f"{stacked}.bias"
    sources = tuple(str(bias.target) for bias in biases)
    program.weights[name] = WeightRecord(name, "concat", sources, dtype=dtype(biases[0]))
    rows = sum(shape(bias)[0] for bias in biases)
    return builder.weight(name, dtype(biases[0]), (rows,))


def stacked_name(names: list[str]) -> str:
    """Siblings `a.q`, `a.k`, `a.v` together: `a.q_k_v`."""
    parent, dot, _ = names[0].rpartition(".")
    return parent + dot + "_".join(name.rpartition(".")[2] for name in names)
