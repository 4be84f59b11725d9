"""In-place writes become values: later passes may then drop, merge and move calls freely.

One idiom is known, a buffer filled through its even and odd elements. Any other write in place is
refused: a pass that removed the copy before it, or merged two reads around it, would change what
the model computes.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from llvq.errors import SpecError
from llvq.passes.books import Book
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.rules import Context
from llvq.program import Program, where

aten = torch.ops.aten


def interleaved_writes(program: Program, ctx: Context) -> Book:
    """`y = empty_like(x); y[..., 0::2] = a; y[..., 1::2] = b` is `stack([a, b], -1)` flattened."""
    book = Book("interleaved-writes")
    graph = program.graph.graph
    for buffer in [node for node in graph.nodes if is_call(node, aten.empty_like.default)]:
        writes = _parity_writes(buffer)
        if set(writes) != {0, 1} or not _only_read_after(buffer, writes):
            continue
        book.sites += 1
        if ctx.take(book.rule, buffer):
            book.hits += 1
            _replace_buffer(program, buffer, writes, book.rule)
        else:
            book.stopped += 1
    return book


def refuse_mutation(graph: Graph) -> None:
    """Raise SpecError at the first call that writes in place."""
    for node in graph.nodes:
        if node.op == "call_function" and writes_in_place(node):
            raise SpecError(
                "the graph writes in place",
                where=where(node),
                because=f"{node.target} changes its input, and passes may reorder what reads it",
                fix="write the result to a new tensor in the model: y = y + x instead of y += x",
            )


def writes_in_place(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _parity_writes(buffer: Node) -> dict[int, Node]:
    """The copies that fill the even (0) and the odd (1) elements of the last dim of `buffer`."""
    *rows, width = shape(buffer)
    half = (*rows, width // 2)
    writes = {}
    for part in buffer.users:
        if not is_call(part, aten.slice.Tensor) or len(part.args) != 5 or len(part.users) != 1:
            continue
        _, dim, start, _, step = part.args
        copy = next(iter(part.users))
        whole = (dim, step) == (len(rows), 2) and shape(part) == half and width % 2 == 0
        filled = is_call(copy, aten.copy_.default) and copy.args[0] is part and not copy.users
        if whole and filled and shape(copy.args[1]) == half:  # type: ignore[arg-type]
            writes[int(start)] = copy  # type: ignore[arg-type]
    return writes


def _only_read_after(buffer: Node, writes: dict[int, Node]) -> bool:
    """Whether nothing looks into the buffer before both halves are there."""
    order = {node: i for i, node in enumerate(buffer.graph.nodes)}
    parts = {write.args[0] for write in writes.values()}
    last = max(order[write] for write in writes.values())
    return all(order[user] > last for user in buffer.users if user not in parts)


def _replace_buffer(program: Program, buffer: Node, writes: dict[int, Node], rule: str) -> None:
    last = max(writes.values(), key=list(buffer.graph.nodes).index)
    builder = Builder(program, rule, last, (buffer, *writes.values()))
    pair = builder.call(aten.stack.default, [writes[0].args[1], writes[1].args[1]], -1)
    value = builder.reshape(pair, shape(buffer))
    if dtype(value) != dtype(buffer):
        value = builder.call(aten.to.dtype, value, dtype(buffer))
    parts = [write.args[0] for write in writes.values()]
    for reader in [user for user in buffer.users if user not in parts]:
        reader.replace_input_with(buffer, value)
    for node in (*writes.values(), *parts, buffer):
        buffer.graph.erase_node(node)  # type: ignore[arg-type]
