from __future__ import annotations

import pytest
import torch

from llvq.passes.raise_frame_attention import raise_frame_attention
from llvq.passes.rules import Context
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING
from tests.passes.decoders import (
    CONFIGS,
    HW,
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
def test_keeps_the_pixels(latents):
    source, video = weights_of(CONFIGS["plain"]), random_latents(4)
    wanted = play(staged("plain", latents), source, video)
    assert_close(play(streamed("plain", latents, upto="raise-frame-attention"), source, video),
                 wanted)  # fmt: skip


def test_a_frame_is_its_tokens_as_it_lies():
    program = streamed("packed", 2, upto="raise-frame-attention")
    height, width = HW
    for stage in DECODING:
        (attention,) = calls(program, stage, llvq.attention.default)
        assert attention.meta["val"].shape == (2, height * width, 1, 16)
        assert not calls(program, stage, aten.conv2d.default)
        assert all(n.target == aten.linear.default for n in
                   calls(program, stage, aten.linear.default))  # fmt: skip
        assert len(calls(program, stage, aten.linear.default)) == 2


def test_attention_of_other_stages_is_left_alone():
    program = streamed("packed", upto="raise-upsample-conv")
    (book,) = raise_frame_attention(program, Context(NVFP4))  # no stage makes pixels yet
    assert book.excluded == {"its stage does not decode": 2} and book.sites == 2


def test_more_heads_are_a_miss():
    program = streamed("packed", upto="raise-pixels")
    (attention,) = calls(program, "decode", llvq.attention.default)
    tokens = attention.args[0].args[0].args[0].args[0].args[0]  # before permute, chunk and swap
    tokens.args = (tokens.args[0], [3, *tokens.args[1][1:]])
    (book,) = raise_frame_attention(program, Context(NVFP4))
    (miss,) = book.misses
    assert "it attends over" in miss.reason
