"""stream-frames: from where there are as many frames as there will be, they are made one by one.

What follows the last doubling in time is cloned for each frame of a call, so that only one frame
of its largest values is in memory, and its rings are no longer than what a convolution reads. Every
frame is computed as before, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llvq.matcher import arguments
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.pattern import Miss
from llvq.program import Program, output_node, placeholders
from llvq.runtime.executable import DECODING

aten = torch.ops.aten
llvq = torch.ops.llvq

WRITES = (llvq.ring_write.default, llvq.ring_write_normed.default)
UPSAMPLE = llvq.upsample_conv.default
ON_RINGS = (*WRITES, UPSAMPLE, llvq.ring_conv.default)
BY_FRAMES = (*ON_RINGS, llvq.pixels.default, aten.linear.default, aten.add.Tensor)


def stream_frames(program: Program, ctx: Context) -> list[Book]:
    """The book counts the ops that are made frame by frame, over both stages."""
    book = Book("one-frame")
    rings = program.rings.values()
    if not any(ring.skip for ring in rings):
        return [book]
    rate = max(ring.rate for ring in rings if not ring.skip)
    for stage in DECODING:
        _stream(program, program.graphs[stage], rate, book)
    for ring in rings:
        if ring.rate == rate and not ring.skip:
            program.rings[ring.weight] = replace(ring, frames=1)
    for stage in DECODING:
        _resize(program, stage)
    return [book]


def _stream(program: Program, gm: GraphModule, rate: int, book: Book) -> None:
    """Clone what makes a frame, as often as there are frames."""
    region = _region(gm, rate)
    book.sites += len(region)
    others = [node for node in region if not is_call(node, *BY_FRAMES)]
    for node in others:
        account_miss(book, node, Miss("it is not known to work on one frame", node), {})
    book.hits += len(region) - len(others)
    output = output_node(gm.graph)
    results: Any = output.args[0]
    (last,) = results
    if others or shape(last)[0] == 1:
        return
    builder = Builder(program, book.rule, last, ()).at(output)
    clones = [_Frame(i, builder, _held(gm)) for i in range(shape(last)[0])]
    for clone in clones:
        for node in region:
            clone.add(node)
    made = [clone.twins[last] for clone in clones]
    output.args = ((builder.call(aten.cat.default, made),),)
    for node in reversed(region):
        gm.graph.erase_node(node)
    finish(gm)


def _region(gm: GraphModule, rate: int) -> list[Node]:
    """Ops on rings that take every frame of the video, and all that follows from them."""
    region: dict[Node, None] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if any(source in region for source in node.all_input_nodes) or _takes_all(node, rate):
            region[node] = None
    return list(region)


def _takes_all(node: Node, rate: int) -> bool:
    if not is_call(node, *ON_RINGS):
        return False
    given = arguments(node)
    return given["rate"] == rate and not given.get("skip")


def _held(gm: GraphModule) -> set[Node]:
    """Inputs, and what follows from weights alone: no frames."""
    inputs = set(placeholders(gm.graph))
    weights: set[Node] = set()
    for node in gm.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (sources and weights.issuperset(sources)):
            weights.add(node)
    return inputs | weights


class _Frame:
    """Clones of nodes for one frame of a call. `held` are values that have no frames."""

    def __init__(self, index: int, builder: Builder, held: set[Node]) -> None:
        self.index, self.builder, self.held = index, builder, held
        self.twins: dict[Node, Node] = {}
        self.parts: set[Node] = set()

    def add(self, node: Node) -> None:
        """Clone a node; those that it reads are cloned, or of all frames."""
        given = arguments(node) | (self._place(node) if is_call(node, *ON_RINGS) else {})
        args = torch.fx.node.map_arg(tuple(given.values()), self._one)
        builder = self.builder.at(self.builder.place, like=node)
        self.twins[node] = builder.call(node.target, *args)

    def _place(self, node: Node) -> dict[str, Any]:
        """What changes in a call on a ring: which frame it is, and which of a pair."""
        given = arguments(node)
        changed: dict[str, Any] = {"offset": given["offset"] + self.index}
        if "frames" in given:
            changed["frames"] = 1
        if is_call(node, UPSAMPLE) and given["doubled"]:
            pair, second = divmod(self.index + given["first"], 2)
            changed |= {"shortcut": self._part(given["shortcut"], pair), "first": second == 1}
        return changed

    def _one(self, value: Node) -> Node:
        if value in self.twins:
            return self.twins[value]
        alone = value in self.held or value in self.parts
        return value if alone else self._part(value, self.index)

    def _part(self, frames: Node, index: int) -> Node:
        part = self.builder.once(aten.slice.Tensor, frames, 0, index, index + 1)
        self.parts.add(part)
        return part


def _resize(program: Program, stage: str) -> None:
    """Bring the inputs of a stage in line with the plan of the rings."""
    planned = {ring.placeholder: ring.spec for ring in program.rings.values()}
    nodes, specs = placeholders(program.graphs[stage].graph), program.stage_inputs[stage]
    program.stage_inputs[stage] = tuple(
        planned.get(str(node.target), spec) for node, spec in zip(nodes, specs, strict=True)
    )
    for node in nodes:
        if (spec := planned.get(str(node.target))) is not None:
            node.meta["val"] = torch.empty(spec.sizes, dtype=spec.dtype, device="meta")
