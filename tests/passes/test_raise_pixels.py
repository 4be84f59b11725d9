from __future__ import annotations

import pytest
import torch

from llvq.passes.raise_pixels import raise_pixels
from llvq.passes.rules import Context
from llvq.program import output_node
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING
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


@pytest.mark.parametrize("name", ["packed", "plain"])
def test_frames_are_the_pixels_in_steps(name):
    source, video = weights_of(CONFIGS[name]), random_latents(4)
    wanted = play(staged(name), source, video)
    found = play(streamed(name, upto="raise-pixels"), source, video)
    assert found.dtype == torch.uint8 and found.unique().numel() > 100
    assert_close(found, wanted)


@pytest.mark.parametrize(("name", "patch"), [("packed", 2), ("plain", 1)])
def test_unpacking_is_part_of_it(name, patch):
    program = streamed(name, upto="raise-pixels")
    for stage in DECODING:
        (made,) = calls(program, stage, llvq.pixels.default)
        assert made.args[1] == patch
        assert output_node(program.graphs[stage].graph).args == ((made,),)
        assert not [n for n in calls(program, stage, aten.permute.default) if len(n.args[1]) == 7]


def test_other_colours_are_a_miss():
    program = streamed("plain", upto="raise-upsample-conv")
    output = output_node(program.graphs["decode"].graph)
    (video,) = output.args[0]
    with output.graph.inserting_before(output):
        one = output.graph.call_function(aten.slice.Tensor, (video, 1, 0, 2))
    one.meta["val"] = torch.empty(1, 2, *video.meta["val"].shape[2:], device="meta")
    output.args = ((one,),)
    (book,) = raise_pixels(program, Context(NVFP4))
    (miss,) = book.misses
    assert book.hits == 1 and "is no video in colours" in miss.reason


def test_pixels_in_another_order_are_unpacked_as_before():
    program = streamed("packed", upto="raise-upsample-conv")
    (unpacked,) = [n for n in calls(program, "decode", aten.permute.default)
                   if len(n.args[1]) == 7]  # fmt: skip
    unpacked.args = (unpacked.args[0], [0, 1, 4, 5, 2, 6, 3])  # rows and columns swapped
    (book,) = raise_pixels(program, Context(NVFP4))
    assert (book.sites, book.hits) == (2, 2)
    (made,) = calls(program, "decode", llvq.pixels.default)
    assert made.args[1] == 1
