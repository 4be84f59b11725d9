"""canonicalize: one spelling for what exporters and authors spell in many ways.

Every reshape-like op becomes `reshape`, every transpose `permute`, every cast `to.dtype`; no-op
views, copies, casts, dropouts and metadata assertions go; equal calls are merged; a buffer that
is filled through its even and odd elements becomes a stack, and other writes in place are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.functional import interleaved_writes, refuse_mutation, writes_in_place
from llvq.passes.rules import Context
from llvq.program import Program

aten = torch.ops.aten

Replacement = Node | None

# Ops that see strides: the copy that makes their input contiguous is not a no-op.
SEE_STRIDES = (aten.view.dtype, aten.view_as_complex.default, aten.as_strided.default)


def as_reshape(node: Node, b: Builder) -> Replacement:
    """Reshape-like ops; a reshape of a reshape is one reshape."""
    source: Any = node.args[0]
    done = node.target is aten.reshape.default and node.args[1] == list(shape(node))
    if done and shape(source) != shape(node) and not is_call(source, aten.reshape.default):
        return None
    return b.reshape(source, shape(node))


def as_cast(node: Node, b: Builder) -> Replacement:
    source: Any = node.args[0]
    if dtype(source) == dtype(node):
        return source
    plain = node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs
    return None if plain else b.call(aten.to.dtype, source, dtype(node))


def as_permute(node: Node, b: Builder) -> Replacement:
    source: Any = node.args[0]
    order = permutation(node)
    if order == list(range(len(order))):
        return source
    if node.target is aten.permute.default and node.args[1] == order:
        return None
    return b.call(aten.permute.default, source, order)


def permutation(node: Node) -> list[int]:
    """Where each dim of the result comes from, read off a tensor whose sizes name its dims."""
    rank = len(shape(node))
    named = torch.empty(tuple(range(rank)), device="meta")
    return list(node.target(named, *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]


def as_input(node: Node, _: Builder) -> Replacement:
    """Ops that change neither values nor shape nor dtype.

    A clone that is an output stays: it is there so that a view does not keep its base alive.
    """
    returned = node.target is aten.clone.default and any(u.op == "output" for u in node.users)
    needed = returned or any(is_call(user, *SEE_STRIDES) for user in node.users)
    return None if needed else node.args[0]  # type: ignore[return-value]


def dropout(node: Node, _: Builder) -> Replacement:
    active = node.args[1] != 0 and node.args[2]
    return None if active else node.args[0]  # type: ignore[return-value]


def whole(node: Node, _: Builder) -> Replacement:
    """A slice or an expansion to the size that was there."""
    source: Any = node.args[0]
    return source if shape(source) == shape(node) else None


SPELLINGS: dict[Any, Callable[[Node, Builder], Replacement]] = {
    aten.view.default: as_reshape,
    aten.reshape.default: as_reshape,
    aten.unflatten.int: as_reshape,
    aten.flatten.using_ints: as_reshape,
    aten.unsqueeze.default: as_reshape,
    aten.squeeze.default: as_reshape,
    aten.squeeze.dim: as_reshape,
    aten.squeeze.dims: as_reshape,
    aten.view_as.default: as_reshape,
    aten.reshape_as.default: as_reshape,
    aten.to.dtype: as_cast,
    aten.to.dtype_layout: as_cast,
    aten.to.device: as_cast,
    aten.to.other: as_cast,
    aten._to_copy.default: as_cast,
    aten.type_as.default: as_cast,
    aten.permute.default: as_permute,
    aten.transpose.int: as_permute,
    aten.t.default: as_permute,
    aten.mT.default: as_permute,
    aten.numpy_T.default: as_permute,
    aten.swapaxes.default: as_permute,
    aten.swapdims.default: as_permute,
    aten.movedim.int: as_permute,
    aten.movedim.intlist: as_permute,
    aten.contiguous.default: as_input,
    aten.clone.default: as_input,
    aten.detach.default: as_input,
    aten.alias.default: as_input,
    aten.dropout.default: dropout,
    aten.slice.Tensor: whole,
    aten.expand.default: whole,
    aten.expand_as.default: whole,
}


def canonicalize(program: Program, ctx: Context) -> list[Book]:
    """Make the graph functional, rewrite spellings until none is left, then merge equal calls."""
    graph = program.graph.graph
    for node in list(graph.nodes):
        if is_call(node, aten._assert_tensor_metadata.default):
            graph.erase_node(node)
    writes = interleaved_writes(program, ctx)
    if not writes.stopped:
        refuse_mutation(graph)
    books = [writes, _spellings(program, ctx), _equal_calls(graph, ctx)]
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
            _replace(node, replacement, book, ctx)
    return book


def _equal_calls(graph: Graph, ctx: Context) -> Book:
    """Merge calls of the same op on the same arguments."""
    book = Book("equal-calls")
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node) or writes_in_place(node):
            continue
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            _replace(node, first, book, ctx)
    return book


def is_random(node: Node) -> bool:
    """Whether two equal calls may differ."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _replace(node: Node, replacement: Node, book: Book, ctx: Context) -> None:
    book.sites += 1
    if ctx.take(book.rule, node):
        book.hits += 1
        node.replace_all_uses_with(replacement)
        node.graph.erase_node(node)
    else:
        book.stopped += 1
