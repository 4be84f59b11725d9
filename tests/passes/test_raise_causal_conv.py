from __future__ import annotations

import pytest
import torch

from llvq.passes.raise_causal_conv import raise_causal_conv
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
    stream,
    streamed,
    weights_of,
)

aten = torch.ops.aten
llvq = torch.ops.llvq


def test_rewrites(golden):
    program = staged("plain", 2)
    books = {book.rule: (book.sites, book.hits) for book in stream(program, "raise-causal-conv")}
    # Convolutions of both stages: doubling and the first after nothing, all others after a norm.
    rings = [ring for ring in program.rings.values() if ring.context]
    assert books == {
        "fp8-ring-conv": (0, 0),
        "doubling-ring-conv": (2, 2),
        "normed-ring-conv": (2 * len(rings) - 4,) * 2,
        "ring-conv": (2, 2),
    }
    golden("raise_causal_conv", program)


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_keeps_the_pixels(name, latents):
    source, video = weights_of(CONFIGS[name]), random_latents(8)
    wanted = play(staged(name, latents), source, video)
    assert_close(play(streamed(name, latents, upto="raise-causal-conv"), source, video), wanted)


def test_state_is_an_input_no_more():
    program = streamed("packed", upto="raise-causal-conv")
    for stage in DECODING:
        specs = program.stage_inputs[stage]
        assert {s.rate for s in specs if s.name.startswith("decode_state.")} == {"state"}
        assert not [n for n in calls(program, stage, aten.cat.default) if n.args[1:] != (2,)]


def test_fp8_rings_hold_fp8_and_take_the_scale_of_the_norm():
    program = streamed("packed", conv="fp8", upto="raise-causal-conv")
    for stage in DECODING:
        assert not calls(program, stage, llvq.conv3d_fp8.default)
        scaled = [n for n in calls(program, stage, llvq.ring_conv.default) if n.args[3]]
        assert scaled
        for conv in scaled:
            ring, weight = (conv.args[i].meta["val"] for i in (0, 1))
            assert ring.dtype == weight.dtype == torch.float8_e4m3fn
            (write,) = [n for n in conv.args[0].users if n.target is llvq.ring_write_normed.default]
            assert write.args[4] is conv.args[3]


def test_fp8_keeps_the_pixels_of_the_program():
    """Codes are the same: what is left is the order of sums."""
    source, video = weights_of(CONFIGS["packed"]), random_latents(4)
    wanted = play(staged("packed", conv="fp8"), source, video)
    assert_close(play(streamed("packed", conv="fp8", upto="raise-causal-conv"), source, video),
                 wanted)  # fmt: skip


def test_another_padding_is_a_miss():
    program = streamed("packed", upto="hold-rings")
    conv = calls(program, "decode", aten.conv3d.default)[2]
    conv.args = (*conv.args[:4], [0, 2, 2])
    books = {book.rule: book for book in raise_causal_conv(program, Context(NVFP4))}
    (miss,) = books["normed-ring-conv"].misses
    assert "expected 1, found 2" in miss.reason and miss.module.startswith("vae.decoder.middle")
