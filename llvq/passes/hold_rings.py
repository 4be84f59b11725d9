"""hold-rings: the memory of a decoder becomes rings that it holds, not tensors that it returns.

A causal convolution takes what it continues from as an input, and returns what the next call shall
take. A ring holds both, and is written in place: one for each causal convolution, and one for each
convolution on the way up, whose border is part of it. Both stages that decode share them. What goes
into a ring is read off the stages: `rate` frames per latent in `decode`, and the first of a video
unless `decode_first` leaves it out.

Here rings become inputs, with the number of latents before a call, and state is returned no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.fx import Graph, Node

from llvq.dialect.ring_ops import FP8
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import dtype, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.pattern import Miss
from llvq.program import InputSpec, Program, Ring, output_node, placeholders
from llvq.runtime.executable import DECODING

aten = torch.ops.aten
llvq = torch.ops.llvq

STATE = "decode_state."
DECODED = InputSpec("decoded", torch.int64, (), "emit")
UPSAMPLE = aten._upsample_nearest_exact2d.vec
FP8_CONV = llvq.conv3d_fp8.default


class Site(NamedTuple):
    """A convolution and what goes into it: `frames` of size `frame`, [H, W, C], after `context`.

    None for `conv`: no frame goes in, so that nothing is convolved.
    """

    node: Node
    conv: Node | None
    frame: tuple[int, int, int]
    frames: int
    context: int


def hold_rings(program: Program, ctx: Context) -> list[Book]:
    """Plan the rings, and make them inputs. The book counts convolutions."""
    book = Book("ring")
    if not all(stage in program.graphs for stage in DECODING):
        return [book]
    first, later = (sites(program, stage) for stage in DECODING)
    latents = shape(input_of(program, DECODING[1], "decode_frames"))[0]
    for key, site in later.items():
        book.sites += 1
        ring = _plan(len(program.rings), site, first.get(key), latents)
        if isinstance(ring, Miss):
            account_miss(book, site.node, ring, {})
        elif ring.weight in program.rings:
            account_miss(book, site.node, Miss("its weight is that of another", site.node), {})
        else:
            program.rings[ring.weight] = ring
            book.hits += 1
    for stage in DECODING:
        _add_inputs(program, stage)
        _return_frames(program, stage)
    return [book]


def input_of(program: Program, stage: str, name: str) -> Node:
    """An input of a stage, by its name in the contract."""
    nodes = placeholders(program.graphs[stage].graph)
    names = [spec.name for spec in program.stage_inputs[stage]]
    return nodes[names.index(name)]


def sites(program: Program, stage: str) -> dict[str, Site]:
    """The convolutions of a stage that a ring is for: by the name of their state, or weight."""
    graph = program.graphs[stage].graph
    return dict([*_causal(program, stage), *_way_up(graph)])


def _causal(program: Program, stage: str) -> Iterator[tuple[str, Site]]:
    for spec in program.stage_inputs[stage]:
        if not spec.name.startswith(STATE):
            continue
        state = input_of(program, stage, spec.name)
        joined = next((user for user in state.users if is_call(user, aten.cat.default)), None)
        if joined is None:
            yield spec.name, Site(state, None, (0, 0, 0), 0, 0)
            continue
        video = joined.args[0][1]  # type: ignore[index]
        _, channels, frames, height, width = shape(video)  # type: ignore[arg-type]
        convs = [u for u in joined.users if is_call(u, aten.conv3d.default, FP8_CONV)]
        conv = next(iter(convs), None)
        yield spec.name, Site(joined, conv, (height, width, channels), frames, spec.sizes[2])


def _way_up(graph: Graph) -> Iterator[tuple[str, Site]]:
    for node in graph.nodes:
        if is_call(node, UPSAMPLE):
            conv = next((u for u in node.users if is_call(u, aten.conv2d.default)), None)
            frames, channels, height, width = shape(node.args[0])
            key = node.name if conv is None else weight_of(conv)
            yield key, Site(node, conv, (height, width, channels), frames, 0)


def weight_of(conv: Node) -> str:
    """The name of the weight that a convolution reads, as it is or in FP8."""
    node = conv.args[2 if is_call(conv, FP8_CONV) else 1]
    while isinstance(node, Node) and node.op == "call_function":
        node = node.args[0]
    return str(node.target) if isinstance(node, Node) else ""


def _plan(index: int, site: Site, first: Site | None, latents: int) -> Ring | Miss:
    """The ring of a convolution of `decode`; `first` is what goes into it in `decode_first`."""
    if site.conv is None or first is None:
        return Miss("no convolution reads it in both stages", site.node)
    rate, rest = divmod(site.frames, latents)
    skip = 1 + rate * (latents - 1) - first.frames
    if rest or skip not in (0, 1):
        return Miss(f"{first.frames} frames go in at first, {site.frames} later", site.node)
    kind = FP8 if is_call(site.conv, FP8_CONV) else dtype(site.conv)
    sizes = (site.frame, site.frames, site.context)
    return Ring(index, weight_of(site.conv), *sizes, kind, rate, skip)


def _add_inputs(program: Program, stage: str) -> None:
    graph = program.graphs[stage].graph
    held = {ring.placeholder: ring.spec for ring in program.rings.values()}
    last = placeholders(graph)[-1]
    for name, spec in {DECODED.name: DECODED, **held}.items():
        with graph.inserting_after(last):
            last = graph.placeholder(name)
        last.meta["val"] = torch.empty(spec.sizes, dtype=spec.dtype, device="meta")
    program.stage_inputs[stage] += (DECODED, *held.values())


def _return_frames(program: Program, stage: str) -> None:
    """State is no output any more."""
    gm, names = program.graphs[stage], program.stage_outputs[stage]
    output = output_node(gm.graph)
    results = dict(zip(names, output.args[0], strict=True))  # type: ignore[arg-type]
    kept = {name: node for name, node in results.items() if ".state." not in name}
    output.args = (tuple(kept.values()),)
    program.stage_outputs[stage] = tuple(kept)
    finish(gm)
