"""share-rings: rings of convolutions that follow each other become one, a frame's worth apart.

Once a convolution has read its oldest frames nothing does: its ring has as many free slots again as
a call has frames. The next convolution writes into just these. So one ring of T + c1 + c2 + ...
slots serves convolutions with c1, c2, ... frames of context: what goes into the second lies c1
slots behind what goes into the first, and a call on it has an `offset` that says so.

It takes frames of the same size in bytes, the same frames of the video, and that both stages use
the rings one after the other, frame by frame. A ring of another dtype is a view of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, finish, is_call
from llvq.passes.hold_rings import input_of
from llvq.passes.rules import Context
from llvq.passes.stream_frames import ON_RINGS, WRITES
from llvq.program import Program, Ring
from llvq.runtime.executable import DECODING

aten = torch.ops.aten


class Use(NamedTuple):
    """A call on a ring: the ring's name in the graph, whether it writes, from which frame on."""

    ring: str
    writes: bool
    offset: int


def share_rings(program: Program, ctx: Context) -> list[Book]:
    """The book counts rings. Those of a kind stay as they are if they are not used in turn."""
    book = Book("shared-ring")
    for group in _groups(program):
        book.sites += len(group)
        if len(group) == 1:
            book.excluded["no other has such frames"] += 1
        elif not _all_in_turn(program, [ring.placeholder for ring in group]):
            book.excluded["not used in turn"] += len(group)
        else:
            book.hits += len(group)
            for stage in DECODING:
                _share(program, stage, group, book.rule)
    return [book]


def _groups(program: Program) -> list[list[Ring]]:
    """Rings whose frames may lie in the same slots, in the order in which they are written."""
    if not program.rings:
        return []
    rings = {ring.placeholder: ring for ring in program.rings.values()}
    groups: dict[object, list[Ring]] = {}
    for name in dict.fromkeys(use.ring for use in _uses(program, DECODING[1])):
        ring = rings[name]
        *area, channels = ring.frame
        kind = (*area, channels * ring.dtype.itemsize, ring.frames, ring.rate, ring.skip)
        groups.setdefault(kind, []).append(ring)
    return list(groups.values())


def _uses(program: Program, stage: str) -> list[Use]:
    return [
        Use(str(node.args[0].target), is_call(node, *WRITES), arguments(node)["offset"])
        for node in program.graphs[stage].graph.nodes
        if is_call(node, *ON_RINGS)
    ]


def _all_in_turn(program: Program, names: list[str]) -> bool:
    return all(in_turn(_uses(program, stage), names) for stage in DECODING)


def in_turn(uses: list[Use], names: list[str]) -> bool:
    """Whether each ring is written and then read before the next one is, from frame to frame."""
    found = [use for use in uses if use.ring in names]
    offsets = list(dict.fromkeys(use.offset for use in found))
    return found == [
        Use(name, writes, offset)
        for offset in offsets
        for name in names
        for writes in (True, False)
    ]


def _share(program: Program, stage: str, group: list[Ring], rule: str) -> None:
    """Put all rings of a group into the first, which grows."""
    first = group[0]
    *before, context = accumulate((ring.context for ring in group), initial=0)
    slots = first.frames + context
    _grow(program, stage, first, slots)
    for ring, behind in zip(group, before, strict=True):
        _move(program, stage, ring, first, -behind % slots, rule)
    dropped = {ring.spec.name for ring in group[1:]}
    for name in dropped:
        program.graphs[stage].graph.erase_node(input_of(program, stage, name))
        program.stage_inputs[stage] = tuple(
            spec for spec in program.stage_inputs[stage] if spec.name != name
        )
    finish(program.graphs[stage])


def _grow(program: Program, stage: str, ring: Ring, slots: int) -> None:
    shape = (slots, *ring.spec.sizes[1:])
    input_of(program, stage, ring.spec.name).meta["val"] = torch.empty(
        shape, dtype=ring.dtype, device="meta"
    )
    program.stage_inputs[stage] = tuple(
        replace(spec, shape=shape) if spec.name == ring.spec.name else spec
        for spec in program.stage_inputs[stage]
    )


def _move(program: Program, stage: str, ring: Ring, home: Ring, further: int, rule: str) -> None:
    """Let calls on a ring be calls on `home`, so many slots further."""
    held, place = (input_of(program, stage, each.spec.name) for each in (ring, home))
    calls = list(_calls_on(held))
    if ring.dtype != home.dtype and calls:
        place = Builder(program, rule, calls[0], ()).call(aten.view.dtype, place, ring.dtype)
    for node in calls:
        given = arguments(node)
        given |= {"ring": place, "offset": given["offset"] + further}
        node.args, node.kwargs = tuple(given.values()), {}


def _calls_on(ring: Node) -> Iterator[Node]:
    """In the order of the graph."""
    return (node for node in ring.graph.nodes if is_call(node, *ON_RINGS) and node.args[0] is ring)
