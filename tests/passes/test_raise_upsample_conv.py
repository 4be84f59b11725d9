from __future__ import annotations

import pytest
import torch

from llvq.passes.raise_upsample_conv import raise_upsample_conv
from llvq.passes.rules import Context
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
DOUBLED, FIRST = 4, 5


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_keeps_the_pixels(name, latents):
    source, video = weights_of(CONFIGS[name]), random_latents(8)
    wanted = play(staged(name, latents), source, video)
    assert_close(play(streamed(name, latents, upto="raise-upsample-conv"), source, video), wanted)


def test_nothing_is_repeated_any_more():
    program = streamed("twice", upto="raise-upsample-conv")
    gone = (aten._upsample_nearest_exact2d.vec, aten.conv2d.default, aten.expand.default)
    for stage in DECODING:
        ups = calls(program, stage, llvq.upsample_conv.default)
        assert [n.args[3].meta["val"].shape[0] for n in ups] == ([1, 1], [1, 2])[stage == "decode"]
        assert [(n.args[DOUBLED], n.args[FIRST]) for n in ups] == [(True, stage != "decode")] * 2
        left = [n for op in gone for n in calls(program, stage, op)]
        assert {n.target for n in left} <= {aten.conv2d.default}  # of attention
        assert len(left) == 2


def test_a_model_without_shortcuts():
    program = streamed("plain", upto="raise-upsample-conv")
    for stage in DECODING:
        ups = calls(program, stage, llvq.upsample_conv.default)
        assert [n.args[3:6] for n in ups] == [(None, False, False)] * 2


def test_another_scale_is_a_miss():
    program = streamed("packed", upto="raise-causal-conv")
    (up, _) = calls(program, "decode", aten._upsample_nearest_exact2d.vec)
    up.args = (*up.args[:2], [3.0, 3.0])
    (book,) = raise_upsample_conv(program, Context(NVFP4))
    (miss,) = book.misses
    assert "expected 2.0, found 3.0" in miss.reason


def test_a_shortcut_of_other_blocks_is_none_and_stays():
    """What is no shortcut is added as before."""
    program = streamed("packed", upto="raise-causal-conv")
    (up, _) = calls(program, "decode", aten._upsample_nearest_exact2d.vec)
    blocks = [n for n in calls(program, "decode", aten.permute.default) if len(n.args[1]) == 8]
    blocks[0].args = (blocks[0].args[0], [0, 1, 5, 2, 6, 4, 7, 3])  # rows and columns swapped
    (book,) = raise_upsample_conv(program, Context(NVFP4))
    assert not book.misses
    given = [n.args[3] for n in calls(program, "decode", llvq.upsample_conv.default)]
    assert given[0] is None and given[1] is not None
    assert up.graph is program.graphs["decode"].graph
