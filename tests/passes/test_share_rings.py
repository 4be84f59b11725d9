"""Which rings become one, that no frame changes by it, and when they may not."""

from __future__ import annotations

import pytest
import torch

from llvq.dialect.ring_ops import FP8
from llvq.matcher import arguments
from llvq.passes.hold_rings import input_of
from llvq.passes.rules import Context
from llvq.passes.share_rings import Use, in_turn, share_rings
from llvq.program import Program, placeholders, val
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING
from tests.passes.decoders import (
    CONFIGS,
    WIDE,
    calls,
    play,
    random_latents,
    streamed,
    weights_of,
)

aten = torch.ops.aten
llvq = torch.ops.llvq


def held(program: Program) -> dict[str, tuple[int, ...]]:
    """Shapes of the rings that the stages take, the same in both."""
    first, later = (
        {spec.name: spec.sizes for spec in program.stage_inputs[stage] if spec.rate == "state"}
        for stage in DECODING
    )
    assert first == later
    return first


def names(program: Program) -> set[str]:
    """Of the rings in the graphs."""
    return {f"ring_{name.rpartition('.')[2]}" for name in held(program)}


def test_rewrites(golden):  # type: ignore[no-untyped-def]
    golden("share_rings", streamed("wide", 1, "fp8"))


@pytest.mark.parametrize(
    ("name", "latents", "conv"),
    [("twice", 2, "none"), ("wide", 1, "fp8")],
)
def test_keeps_every_bit_of_every_frame(name: str, latents: int, conv: str) -> None:
    """Of FP8 in bf16 too, where one ring has frames of both dtypes."""
    source, video = weights_of((CONFIGS | WIDE)[name]), random_latents(12)
    before = play(streamed(name, latents, conv, upto="stream-frames"), source, video)
    assert torch.equal(play(streamed(name, latents, conv), source, video), before)


def test_a_shared_ring_has_the_frames_of_a_call_once_and_all_contexts() -> None:
    program = streamed("twice", 2)
    rings, shapes = list(program.rings.values()), held(program)
    assert len(shapes) < len(rings)
    shared = [ring for ring in rings if ring.spec.name not in shapes]
    for first in (ring for ring in rings if ring.spec.name in shapes):
        kind = (first.frame, first.frames, first.rate, first.skip)
        same = [r for r in shared if (r.frame, r.frames, r.rate, r.skip) == kind]
        slots = first.frames + sum(ring.context for ring in (first, *same))
        assert shapes[first.spec.name] == (slots, *first.spec.sizes[1:])


def test_calls_are_as_far_apart_as_the_contexts_before_them() -> None:
    program = streamed("twice", 2)
    name, (slots, *_) = max(held(program).items(), key=lambda item: item[1][0])
    convs = [
        arguments(node)
        for node in calls(program, "decode", llvq.ring_conv.default)
        if node.args[0] is input_of(program, "decode", name)
    ]
    assert [given["offset"] for given in convs[:3]] == [0, slots - 2, slots - 4]


def test_rings_of_one_size_in_bytes_are_one_whatever_their_dtype() -> None:
    program = streamed("wide", 1, "fp8")
    for stage in DECODING:
        (view,) = calls(program, stage, aten.view.dtype)
        assert view.args[0] in placeholders(program.graphs[stage].graph)
        assert {val(n).dtype for n in view.all_input_nodes} == {FP8} and val(
            view
        ).dtype == torch.bfloat16
        assert {node.target for node in view.users} == {
            llvq.ring_write_normed.default,
            llvq.ring_conv.default,
        }


def test_rings_that_are_not_used_in_turn_stay_apart() -> None:
    """One is read once more when the next is written: its oldest frame would be gone."""
    program = streamed("twice", 2, upto="stream-frames")
    graph = program.graphs["decode"].graph
    _, first, second, *_ = (
        n for n in calls(program, "decode", llvq.ring_conv.default) if arguments(n)["rate"] == 1
    )
    with graph.inserting_after(second):
        graph.node_copy(first)
    (book,) = share_rings(program, Context(NVFP4))
    assert book.balanced and book.hits and book.excluded["not used in turn"] > 2
    assert all(str(ring.args[0].target) in names(program) for ring in (first, second))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ("a0W a0R b0W b0R a1W a1R b1W b1R", True),
        ("a0W a0R c0W c0R b0W b0R", True),
        ("", True),
        ("a0W b0W a0R b0R", False),
        ("a0W a0R b0W b0R a0R", False),
        ("a0W a0R a1W a1R b0W b0R b1W b1R", False),
        ("b0W b0R a0W a0R", False),
    ],
)
def test_turns(uses: str, expected: bool) -> None:
    found = [Use(ring, what == "W", int(offset)) for ring, offset, what in map(tuple, uses.split())]
    assert in_turn(found, ["a", "b"]) is expected


def test_without_rings_there_is_nothing_to_do() -> None:
    program = streamed("twice", 2, upto="stream-frames")
    program.rings = {}
    before = program.digest()
    (book,) = share_rings(program, Context(NVFP4))
    assert (book.sites, program.digest()) == (0, before)
