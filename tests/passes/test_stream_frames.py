from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from llvq import graphs
from llvq.graphs.liveness import peak
from llvq.matcher import arguments
from llvq.passes.rules import Context
from llvq.passes.stream_frames import stream_frames
from llvq.program import val
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING
from llvq.runtime.fold import attach_weights
from tests.passes.decoders import (
    CONFIGS,
    assert_close,
    calls,
    play,
    random_latents,
    staged,
    streamed,
    weights_of,
)

aten = torch.ops.aten
llvq = torch.ops.llvq


def test_rewrites(golden):
    golden("stream_frames", streamed("plain", 2, upto="stream-frames"))


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_keeps_every_bit_of_every_frame(name, latents):
    source, video = weights_of(CONFIGS[name]), random_latents(8)
    before = play(streamed(name, latents, upto="fuse-conv-residual"), source, video)
    after = play(streamed(name, latents, upto="stream-frames"), source, video)
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_streamed_decoder_shows_what_the_decoder_shows(name):
    """Over more calls than a ring has slots."""
    source, video = weights_of(CONFIGS[name]), random_latents(12, seed=1)
    assert_close(play(streamed(name), source, video), play(staged(name), source, video))


@pytest.mark.parametrize("conv", ["none", "fp8"])
def test_frames_do_not_depend_on_latents_per_call(conv):
    source, video = weights_of(CONFIGS["twice"]), random_latents(8, seed=2)
    one, two, four = (play(streamed("twice", n, conv), source, video) for n in (1, 2, 4))
    assert torch.equal(one, two) and torch.equal(one, four)


def test_what_follows_the_last_doubling_is_made_frame_by_frame():
    program = streamed("twice", 2, upto="stream-frames")
    first, later = (
        Counter(val(n).shape[0] for n in calls(program, stage, llvq.pixels.default))
        for stage in DECODING
    )
    assert (first, later) == ({1: 5}, {1: 8})
    for stage in DECODING:
        for up in calls(program, stage, llvq.upsample_conv.default)[1:]:
            assert val(up).shape[0] == arguments(up)["frames"] == 1
        convs = [arguments(n) for n in calls(program, stage, llvq.ring_conv.default)]
        assert {g["offset"] for g in convs if g["rate"] == 4} == set(
            range((5, 8)[stage == "decode"])
        )
        assert {g["offset"] for g in convs if g["rate"] < 4} == {0}


def test_weights_are_prepared_once_for_all_frames():
    program = streamed("packed", 4)
    for stage in DECODING:
        made = calls(program, stage, llvq.channels_last_weight.default)
        assert len(made) == len({n.args[0].target for n in made})


def test_rings_of_one_frame_are_as_long_as_a_convolution_reads():
    for latents in (1, 2, 4):
        program = streamed("twice", latents, upto="stream-frames")
        for ring in program.rings.values():
            alone = ring.rate == 4
            assert ring.frames == (1 if alone else latents * ring.rate)
        for stage in DECODING:
            specs = [s for s in program.stage_inputs[stage] if s.rate == "state"]
            assert specs == [ring.spec for ring in program.rings.values()]


def workspace(program) -> int:
    """Bytes of what a call of `decode` makes, its weights in their last form."""
    gm = program.graphs["decode"]
    weights = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
               for name, spec in graphs.weights(gm).items()}  # fmt: skip
    attach_weights({"decode": gm}, weights)
    return peak(gm).nbytes


def test_memory_grows_no_more_with_the_frames_of_a_call():
    """But for what is there before the last doubling, at a quarter of the size."""
    whole, single = (
        [workspace(streamed("twice", n, upto=upto)) for n in (1, 2, 4)]
        for upto in ("fuse-conv-residual", "stream-frames")
    )
    assert [b / a for a, b in pairwise(whole)] == pytest.approx([2, 2], rel=0.1)
    assert single[0] < whole[0] / 1.7
    assert single[2] < whole[2] / 2.3
    assert single[2] < workspace(staged("twice", 4)) / 5


def test_without_a_doubling_there_is_nothing_to_do():
    program = streamed("packed", 2, upto="fuse-conv-residual")
    program.rings = {name: r for name, r in program.rings.items() if not r.skip}
    before = program.digest()
    (book,) = stream_frames(program, Context(NVFP4))
    assert (book.sites, program.digest()) == (0, before)


def test_an_op_that_is_not_known_to_work_on_one_frame_is_a_miss():
    program = streamed("packed", 2, upto="fuse-conv-residual")
    gm = program.graphs["decode"]
    (made,) = calls(program, "decode", llvq.pixels.default)
    with gm.graph.inserting_before(made):
        flipped = gm.graph.call_function(aten.flip.default, (made.args[0], [0]))
    flipped.meta["val"] = val(made.args[0])
    made.args = (flipped, *made.args[1:])
    (book,) = stream_frames(program, Context(NVFP4))
    (miss,) = book.misses
    assert "not known to work on one frame" in miss.reason and book.balanced
