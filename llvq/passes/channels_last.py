"""channels-last: what stands between two ops on frames works on frames too.

Slices and joins in time, sums, and convolutions of single pixels, which become linears. A permute
and its inverse around them vanish; a join with no frames is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Graph, Node

from llvq.matcher import arguments
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, finish, is_call, shape
from llvq.passes.frames import frames_of, made_of, video_behind, video_of, wants_frames
from llvq.passes.rules import Context
from llvq.pattern import Miss
from llvq.program import Program
from llvq.runtime.executable import DECODING

aten = torch.ops.aten

TIME = 2  # The dim of a video that is dim 0 of frames.


def joined(node: Node, b: Builder) -> Node | None:
    """A join in time, without the parts that have no frames."""
    tensors, dim = arguments(node).values()
    if dim != TIME:
        return None
    parts = [part for part in tensors if shape(part)[TIME]]
    frames = [made_of(part) for part in parts]
    if len(parts) == 1:
        return parts[0]
    if None in frames:
        return None
    return video_of(b.call(aten.cat.default, frames), b)


def cut(node: Node, b: Builder) -> Node | None:
    """A slice in time."""
    video, dim, *ends = arguments(node).values()
    frames = made_of(video)
    if frames is None or dim != TIME:
        return None
    return video_of(b.call(aten.slice.Tensor, frames, 0, *ends), b)


def summed(node: Node, b: Builder) -> Node | None:
    """A sum of two videos."""
    frames = [made_of(video) for video in node.all_input_nodes]
    if None in frames or len(frames) != 2 or node.kwargs:
        return None
    return video_of(b.call(aten.add.Tensor, *frames), b)


def pointwise(node: Node, b: Builder) -> Node | None:
    """A convolution that reads one pixel for each that it makes."""
    video, weight, *rest = node.args
    features, channels, *window = shape(weight)  # type: ignore[arg-type]
    if window != [1, 1, 1] or len(rest) != 1:
        return None
    matrix = b.reshape(weight, (features, channels))  # type: ignore[arg-type]
    linear = b.call(aten.linear.default, frames_of(video, b), matrix, *rest)  # type: ignore[arg-type]
    return video_of(linear, b)


ON_FRAMES: dict[object, Callable[[Node, Builder], Node | None]] = {
    aten.cat.default: joined,
    aten.slice.Tensor: cut,
    aten.add.Tensor: summed,
    aten.conv3d.default: pointwise,
}


def channels_last(program: Program, ctx: Context) -> list[Book]:
    moved, permutes = Book("on-frames"), Book("permutes")
    for stage in DECODING:
        if stage in program.graphs:
            graph = program.graphs[stage].graph
            for node in list(graph.nodes):
                _move(program, node, moved)
                _cancel(node, permutes)
            finish(program.graphs[stage])
            _account_convs(graph, moved)
    return [moved, permutes]


def _move(program: Program, node: Node, book: Book) -> None:
    if node.op != "call_function" or node.target not in ON_FRAMES:
        return
    replacement = ON_FRAMES[node.target](node, Builder(program, book.rule, node, (node,)))
    if replacement is not None:
        book.sites += 1
        book.hits += 1
        node.replace_all_uses_with(replacement)


def _cancel(node: Node, book: Book) -> None:
    """Frames of a video of frames are those frames."""
    if not wants_frames(node) or not node.users:
        return
    book.sites += 1
    frames = made_of(video_behind(node))
    if frames is None:
        book.excluded["made of something else"] += 1
    else:
        book.hits += 1
        node.replace_all_uses_with(frames)


def _account_convs(graph: Graph, book: Book) -> None:
    """No convolution of a video may be left."""
    for node in graph.nodes:
        if is_call(node, aten.conv3d.default):
            book.sites += 1
            account_miss(
                book, node, Miss("it is a convolution of none of the known kinds", node), {}
            )
