from __future__ import annotations

import pytest
import torch

from llvq.passes.convs_to_fp8 import convs_to_fp8
from llvq.passes.rules import Context
from llvq.quality.metrics import psnr_db
from llvq.recipe import NVFP4
from tests.passes.decoders import (
    CONFIGS,
    calls,
    play,
    random_latents,
    shown,
    staged,
    streamed,
    weights_of,
)

aten = torch.ops.aten
llvq = torch.ops.llvq


def weights_in_fp8(program, stage):
    return {n.args[0].target for n in calls(program, stage, llvq.fp8_conv_weight.default)}


def test_what_follows_a_norm_is_in_fp8():
    program = staged("packed", conv="fp8")
    for stage in ("decode_first", "decode"):
        found = weights_in_fp8(program, stage)
        # Of 16 channels: the middle, two levels; into 8 channels one is too small.
        assert len(found) == 12 and all(".residual." in name for name in found)
        convs = calls(program, stage, llvq.conv3d_fp8.default)
        assert len(convs) == 12 and {n.args[1].target for n in convs} == {
            llvq.fp8_norm_scale.default
        }
        left = {n.args[1].target for n in calls(program, stage, aten.conv3d.default)}
        assert {"vae.decoder.conv1.weight", "vae.decoder.head.2.weight"} <= left


def test_what_is_too_small_stays_and_is_counted():
    program, recipe = staged("packed"), NVFP4
    fp8 = type(recipe)(decode=type(recipe.decode)(conv="fp8"))
    (book,) = convs_to_fp8(program, Context(fp8))
    assert book.balanced and not book.misses
    assert book.excluded == {
        "it has 8 features alone": 2,
        "8 channels are no multiple of 16": 8,
    }
    assert book.sites == book.hits + book.excluded.total()


def test_nothing_is_in_fp8_unless_the_recipe_says_so():
    program = staged("packed")
    before = program.digest()
    (book,) = convs_to_fp8(program, Context(NVFP4))
    assert (book.sites, program.digest()) == (0, before)


@pytest.mark.parametrize("name", ["packed", "twice"])
def test_frames_are_those_of_the_model_but_for_fp8(name):
    source, video = weights_of(CONFIGS[name]), random_latents(4)
    wanted = shown(play(staged(name), source, video)).round().to(torch.uint8)
    program = play(staged(name, conv="fp8"), source, video)
    found = play(streamed(name, conv="fp8"), source, video)
    assert 25 < psnr_db(wanted, found) < 60
    assert psnr_db(shown(program).round().to(torch.uint8), found) > 60
