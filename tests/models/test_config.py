"""Sizes that follow from others, at the published size and at sizes that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llvq.errors import RecipeError
from llvq.models.config import (
    LONGLIVE1_1_3B,
    LONGLIVE2_5B,
    PUBLISHED,
    SELF_FORCING_1_3B,
    WAN21_VAE,
    WAN22_VAE,
    DitConfig,
    ModelConfig,
    StreamConfig,
    VaeConfig,
    published_for,
)


def test_the_published_model() -> None:
    """LongLive-2.0-5B at 704 x 1280: 880 tokens per latent frame, 7040 per chunk of 8."""
    assert LONGLIVE2_5B.dit.head_dim == 128
    assert (LONGLIVE2_5B.tokens_per_frame, LONGLIVE2_5B.chunk_tokens) == (880, 7040)
    assert (LONGLIVE2_5B.stream.window_chunks, LONGLIVE2_5B.stream.sink_chunks) == (4, 1)
    vae = VaeConfig()
    assert len(vae.latent_mean) == len(vae.latent_std) == vae.z_dim == LONGLIVE2_5B.dit.in_dim


def test_the_causal_models_of_wan21() -> None:
    """480 x 832: 1560 tokens per latent frame, 32760 in Self-Forcing's window of 21."""
    for config in (SELF_FORCING_1_3B, LONGLIVE1_1_3B):
        assert config.pixel_hw == (480, 832) and config.at(480, 832) == config
        assert (config.dit.head_dim, config.tokens_per_frame) == (128, 1560)
        assert config.vae is not None
        assert config.vae.z_dim == config.dit.in_dim == len(config.vae.latent_std) == 16
    stream = SELF_FORCING_1_3B.stream
    assert stream.window_frames * SELF_FORCING_1_3B.tokens_per_frame == 32760
    assert (stream.window_chunks, stream.sink_chunks) == (7, 0)
    stream = LONGLIVE1_1_3B.stream
    assert (stream.window_chunks, stream.sink_chunks) == (4, 1)


def test_strides_follow_from_what_the_vae_does() -> None:
    assert (WAN22_VAE.spatial_stride, WAN22_VAE.temporal_stride) == (16, 4)
    assert (WAN21_VAE.spatial_stride, WAN21_VAE.temporal_stride) == (8, 4)
    assert (WAN22_VAE.pixel_channels, WAN21_VAE.pixel_channels) == (12, 3)


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_without_a_vae_the_latents_are_still_those_of_one(config: ModelConfig) -> None:
    bare = replace(config, vae=None)
    assert bare.latent_vae == config.vae and bare.pixel_hw == config.pixel_hw
    assert published_for(config.dit.in_dim).vae == config.vae


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sampler": "euler"}, "no sampler 'euler'"),
        ({"sampler": "unipc"}, "timesteps 1000, 750, 500, 250 for UniPC"),
        ({"steps": 2}, "2 sampling steps for 4 timesteps"),
        ({"timesteps": ()}, "4 sampling steps for 0 timesteps"),
        ({"timesteps": (250, 500, 750, 1000)}, "timesteps 250, 500, 750, 1000"),
    ],
)
def test_a_sampler_that_cannot_be(change: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(SELF_FORCING_1_3B.stream, **change)
    assert caught.value.what == what and caught.value.fix


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


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_a_stream_survives_json(config: ModelConfig) -> None:
    document = json.loads(json.dumps(config.to_dict()))
    assert StreamConfig.from_dict(document["stream"]) == config.stream
