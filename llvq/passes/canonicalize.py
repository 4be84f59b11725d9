"""canonicalize: one spelling for what exporters and authors spell in many ways.

Every reshape-like op becomes `reshape`, every transpose `permute`, every cast `to.dtype`; no-op
views, copies, casts, dropouts and metadata assertions go; equal calls are merged; a buffer that
is filled through its even and odd elements becomes a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.program import Program

aten = torch.ops.aten

Replacement = Node | None


def as_reshape(node: Node, b: Builder) -> Replacement:
    """Reshape-like ops; a reshape of a reshape is one reshape."""
    source: Any = node.args[0]
    while is_call(source, aten.reshape.default):
        source = source.args[0]
    if shape(source) == shape(node):
        return source
    if node.target is aten.reshape.default and source is node.args[0]:
        return None if node.args[1] == list(shape(node)) else b.call(
            aten.reshape.default, source, list(shape(node))
        )
    return b.call(aten.reshape.default, source, list(shape(node)))


def as_cast(node: Node, b: Builder) -> Replacement:
    source: Any = node.args[0]
    if dtype(source) == dtype(node):
        return source
    plain = node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs
    return None if plain else b.call(aten.to.dtype, source, dtype(node))


def as_permute(node: Node, b: Builder) -> Replacement:
    source: Any = node.args[0]
    rank = len(shape(source))
    if node.target is aten.permute.default:
        order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    else:
        first, second = (int(dim) % rank for dim in node.args[1:])  # type: ignore[arg-type]
        order = list(range(rank))
        order[first], order[second] = order[second], order[first]
    if order == list(range(rank)):
        return source
    if node.target is aten.permute.default and list(node.args[1]) == order:  # type: ignore[arg-type]
        return None
    return b.call(aten.permute.default, source, order)


def as_input(node: Node, _: Builder) -> Replacement:
    """Ops that change neither values nor shape nor dtype."""
    return node.args[0]  # type: ignore[return-value]


def dropout(node: Node, _: Builder) -> Replacement:
    active = node.args[1] != 0 and node.args[2]
    return None if active else node.args[0]  # type: ignore[return-value]


def full_slice(node: Node, _: Builder) -> Replacement:
    source: Any = node.args[0]
    return source if shape(source) == shape(node) else None


SPELLINGS: dict[Any, Callable[[Node, Builder], Replacement]] = {
    aten.view.default: as_reshape,
    aten.reshape.default: as_reshape,
    aten.unflatten.int: as_reshape,
    aten.flatten.using_ints: as_reshape,
    aten.unsqueeze.default: as_reshape,
    aten.squeeze.dim: as_reshape,
    aten.squeeze.default: as_reshape,
    aten.to.dtype: as_cast,
    aten.to.dtype_layout: as_cast,
    aten.type_as.default: as_cast,
    aten.permute.default: as_permute,
    aten.transpose.int: as_permute,
    aten.contiguous.default: as_input,
    aten.clone.default: as_input,
    aten.detach.default: as_input,
    aten.alias.default: as_input,
    aten.dropout.default: dropout,
    aten.slice.Tensor: full_slice,
    aten.expand.default: full_slice,
}


def canonicalize(program: Program, ctx: Context) -> list[Book]:
    """Rewrite spellings until none is left, then merge equal calls."""
    graph = program.graph.graph
    for node in list(graph.nodes):
        if is_call(node, aten._assert_tensor_metadata.default):
            graph.erase_node(node)
    books = [
        _interleaved_writes(program, ctx),
        _spellings(program, ctx),
        _equal_calls(graph, ctx),
    ]
    finish(program.graph)
    return books


def _spellings(program: Program, ctx: Context) -> Book:
    book = Book("one-spelling")
    for node in list(program.graph.graph.nodes):
        if node.op != "call_function" or node.target not in SPELLINGS or not node.users:
            continue
        builder = Builder(program, book.rule, node, (node,))
        replacement = SPELLINGS[node.target](node, builder)
        if replacement is not None:
            book.sites += 1
            book.hits += 1
            ctx.take()
            node.replace_all_uses_with(replacement)
            program.graph.graph.erase_node(node)
    return book


def _interleaved_writes(program: Program, ctx: Context) -> Book:
    """`y = empty_like(x); y[..., 0::2] = a; y[..., 1::2] = b` is `stack([a, b], -1)` flattened."""
    book = Book("interleaved-writes")
    graph = program.graph.graph
    for buffer in [node for node in graph.nodes if is_call(node, aten.empty_like.default)]:
        writes = _parity_writes(buffer)
        if len(writes) != 2:
            continue
        book.sites += 1
        book.hits += 1
        ctx.take()
        _replace_buffer(program, buffer, writes, book.rule)
    return book


def _parity_writes(buffer: Node) -> dict[int, Node]:
    """The copies into the even (0) and odd (1) elements of the last dim of `buffer`."""
    last = len(shape(buffer)) - 1
    writes = {}
    for part in buffer.users:
        if not is_call(part, aten.slice.Tensor) or len(part.args) != 5:
            continue
        _, dim, start, _, step = part.args
        copies = [user for user in part.users if is_call(user, aten.copy_.default)]
        if dim == last and step == 2 and start in (0, 1) and len(copies) == 1:
            writes[int(start)] = copies[0]  # type: ignore[arg-type]
    return writes


def _replace_buffer(program: Program, buffer: Node, writes: dict[int, Node], rule: str) -> None:
    parts = {write.args[0] for write in writes.values()}
    readers = [user for user in buffer.users if user not in parts]
    last_write = max(writes.values(), key=list(buffer.graph.nodes).index)
    builder = Builder(program, rule, last_write, (buffer, *writes.values()))
    pair = builder.call(aten.stack.default, [writes[0].args[1], writes[1].args[1]], -1)
    value = builder.reshape(pair, shape(buffer))
    if dtype(value) != dtype(buffer):
        value = builder.call(aten.to.dtype, value, dtype(buffer))
    for reader in readers:
        reader.replace_input_with(buffer, value)
    for write in writes.values():
        part = write.args[0]
        buffer.graph.erase_node(write)
        buffer.graph.erase_node(part)  # type: ignore[arg-type]
    buffer.graph.erase_node(buffer)


def _equal_calls(graph: Graph, ctx: Context) -> Book:
    """Merge calls of the same pure op on the same arguments."""
    book = Book("equal-calls")
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.is_impure() or "empty" in str(node.target):
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            book.sites += 1
            book.hits += 1
            ctx.take()
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    return book


