"""raise-pixels: a decoder returns frames as an encoder of videos wants them, uint8 [T, H, W, 3].

Unpacking pixels from channels, cutting off what is outside [-1, 1] and rounding to 256 steps are
one op.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import match
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, finish, shape
from llvq.passes.frames import frames_of
from llvq.passes.rules import Context
from llvq.pattern import Literal, Match, Miss, Var, call
from llvq.program import Program, output_node
from llvq.runtime.executable import DECODING

aten = torch.ops.aten
llvq = torch.ops.llvq

PACKED = call(aten.reshape.default, Var("x"), Literal("blocks"))
UNPACKED = call(
    aten.reshape.default,
    call(aten.permute.default, PACKED, [0, 1, 4, 5, 3, 6, 2]),
    Literal("size"),
)


def raise_pixels(program: Program, ctx: Context) -> list[Book]:
    """The book counts stages that return frames."""
    book = Book("pixels")
    for stage in DECODING:
        if stage in program.graphs:
            book.sites += 1
            _raise(program, stage, book)
    return [book]


def _raise(program: Program, stage: str, book: Book) -> None:
    gm = program.graphs[stage]
    output = output_node(gm.graph)
    results: Any = output.args[0]
    (video,) = results
    packed, nodes = _packed(video)
    patch = isqrt(shape(packed)[1] // 3)
    if shape(packed)[:2] != (1, 3 * patch**2):
        account_miss(book, video, Miss(f"{shape(video)} is no video in colours", video), {})
        return
    book.hits += 1
    builder = Builder(program, book.rule, video, nodes).at(output)
    made = builder.call(llvq.pixels.default, frames_of(packed, builder), patch)
    output.args = ((made,),)
    finish(gm)


def _packed(video: Node) -> tuple[Node, tuple[Node, ...]]:
    """What a video was unpacked from, itself if from nothing, and the nodes that did it."""
    found = match(UNPACKED, video)
    if not isinstance(found, Match):
        return video, (video,)
    _, colours, columns, rows, *size = found["blocks"]
    whole = (1, colours, size[0], rows * size[1], columns * size[2])
    unpacks = (colours, columns) == (3, rows) and shape(video) == whole
    return (found["x"], found.nodes) if unpacks else (video, (video,))
