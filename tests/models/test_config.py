"""Sizes that follow from others, at the published size and at sizes that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llvq.errors import RecipeError
from llvq.models.config import LONGLIVE2_5B, DitConfig, ModelConfig, StreamConfig, VaeConfig


def test_the_published_model() -> None:
    """LongLive-2.0-5B at 704 x 1280: 880 tokens per latent frame, 7040 per chunk of 8."""
    assert LONGLIVE2_5B.dit.head_dim == 128
    assert (LONGLIVE2_5B.tokens_per_frame, LONGLIVE2_5B.chunk_tokens) == (880, 7040)
    assert (LONGLIVE2_5B.stream.window_chunks, LONGLIVE2_5B.stream.sink_chunks) == (4, 1)
    vae = VaeConfig()
    assert len(vae.latent_mean) == len(vae.latent_std) == vae.z_dim == LONGLIVE2_5B.dit.in_dim


def test_a_size_in_pixels_becomes_one_in_latents() -> None:
    assert LONGLIVE2_5B.at(704, 1280) == LONGLIVE2_5B
    small = LONGLIVE2_5B.at(64, 96)
    assert small.latent_hw == (4, 6) and small.tokens_per_frame == 6
    assert replace(LONGLIVE2_5B, vae=None).at(64, 96).latent_hw == (4, 6)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 2)])
def test_a_size_that_is_no_multiple_of_stride_and_patch(patch: tuple[int, int, int]) -> None:
    config = ModelConfig(dit=DitConfig(patch_size=patch))
    step = 16 * patch[1]
    with pytest.raises(RecipeError, match="do not divide into latent patches") as caught:
        config.at(step + 16 // 2, 64)
    assert caught.value.fix == f"use multiples of {step} x 32"
    assert config.at(step, 64).latent_hw == (patch[1], 4)


@pytest.mark.parametrize("name", ["window_frames", "sink_frames"])
def test_a_window_holds_whole_chunks(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} = 12 is not a multiple") as caught:
        StreamConfig(**{name: 12})
    assert caught.value.fix == "choose a multiple of 8"
    assert StreamConfig(sink_frames=0).sink_chunks == 0


def test_a_model_is_plain_data() -> None:
    document = json.loads(json.dumps(LONGLIVE2_5B.to_dict()))
    assert document["dit"]["num_layers"] == 30 and document["latent_hw"] == [44, 80]
    assert replace(LONGLIVE2_5B, text=None).to_dict()["text"] is None
