from __future__ import annotations

import pytest
import torch

from llvq.passes.fuse_conv_residual import fuse_conv_residual
from llvq.passes.rules import Context
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING
from tests.passes.decoders import (
    CONFIGS,
    calls,
    play,
    random_latents,
    streamed,
    weights_of,
)

aten = torch.ops.aten
llvq = torch.ops.llvq
RESIDUAL = 5


@pytest.mark.parametrize("conv", ["none", "fp8"])
def test_keeps_every_bit(conv):
    source, video = weights_of(CONFIGS["packed"]), random_latents(4)
    before = streamed("packed", 2, conv, upto="channels-last")
    after = streamed("packed", 2, conv, upto="fuse-conv-residual")
    assert torch.equal(play(after, source, video), play(before, source, video))


def test_every_block_adds_as_it_stores():
    program = streamed("packed", upto="fuse-conv-residual")
    for stage in DECODING:
        convs = calls(program, stage, llvq.ring_conv.default)
        fused = [n for n in convs if n.args[RESIDUAL] is not None]
        # Two blocks at each of three depths, two in the middle.
        assert len(fused) == 8
        assert len(calls(program, stage, aten.add.Tensor)) == 2  # attention; the mean of latents
        shortcuts = [n for n in fused if n.args[RESIDUAL].target is aten.linear.default]
        assert len(shortcuts) == 1


def test_a_sum_of_another_size_is_a_miss():
    program = streamed("packed", upto="channels-last")
    total = next(n for n in calls(program, "decode", aten.add.Tensor)
                 if n.args[0].target is llvq.ring_conv.default)  # fmt: skip
    b = total.graph
    with b.inserting_before(total):
        row = b.call_function(aten.slice.Tensor, (total.args[1], 1, 0, 1))
    row.meta["val"] = total.args[1].meta["val"][:, :1]
    total.args = (total.args[0], row)
    (book,) = fuse_conv_residual(program, Context(NVFP4))
    (miss,) = book.misses
    assert "is added to" in miss.reason
