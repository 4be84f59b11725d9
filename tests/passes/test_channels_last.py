from __future__ import annotations

import pytest
import torch

from llvq.passes.channels_last import channels_last
from llvq.passes.frames import BATCH_OF_FRAMES, TO_FRAMES, TO_VIDEO
from llvq.passes.rules import Context
from llvq.program import val
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


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_keeps_the_pixels(name, latents):
    source, video = weights_of(CONFIGS[name]), random_latents(8)
    wanted = play(staged(name, latents), source, video)
    assert_close(play(streamed(name, latents, upto="channels-last"), source, video), wanted)


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_permutes_are_left_at_the_entry_alone(name, latents):
    program = streamed(name, latents, upto="channels-last")
    for stage in DECODING:
        permutes = calls(program, stage, aten.permute.default)
        assert [n.args[1] for n in permutes] == [TO_FRAMES]
        (entry,) = permutes
        assert val(entry).shape[1] == latents
        assert not calls(program, stage, aten.conv3d.default)
        assert len(calls(program, stage, aten.contiguous.default)) == 1


def test_a_join_with_no_frames_is_none():
    """At one latent per call, nothing is doubled in the first."""
    program = streamed("twice", upto="channels-last")
    assert not calls(program, "decode_first", aten.cat.default)
    assert not calls(program, "decode_first", aten.new_empty.default)
    assert not [n for n in calls(program, "decode_first", llvq.ring_conv.default) if n.args[-1]]
    assert len(calls(streamed("twice", 2), "decode_first", aten.cat.default)) == 3  # and frames


def test_a_convolution_of_another_kind_is_a_miss():
    program = streamed("packed", upto="raise-frame-attention")
    (conv,) = [n for n in calls(program, "decode", aten.conv3d.default)
               if "conv2" in n.args[1].target]  # fmt: skip
    conv.args = (*conv.args, [1, 1, 1], [0, 0, 0], [1, 2, 2])
    moved, _ = channels_last(program, Context(NVFP4))
    (miss,) = moved.misses
    assert miss.module == "vae.conv2" and moved.balanced


def test_what_something_else_made_is_accounted():
    """Around attention that was not raised, in both stages: what it adds to is read four times."""
    program = streamed("packed", upto="raise-pixels")
    _, permutes = channels_last(program, Context(NVFP4))
    assert permutes.balanced and permutes.excluded == {"made of something else": 8}
    kept = [n for stage in DECODING for n in calls(program, stage, aten.permute.default)]
    assert {tuple(n.args[1]) for n in kept} >= {tuple(BATCH_OF_FRAMES), tuple(TO_VIDEO)}
