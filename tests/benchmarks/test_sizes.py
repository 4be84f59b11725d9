"""Sizes by options: the published ones, those of LightVAE, and sizes that no video has."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.sizes import model_sizes, size_options
from llvq.errors import LlvqError
from llvq.models.config import LONGLIVE2_5B, ModelConfig


def sizes(*words: str) -> ModelConfig:
    parser = argparse.ArgumentParser()
    size_options(parser)
    return model_sizes(parser.parse_args(words))


def test_the_published_model_without_its_text_encoder() -> None:
    config = sizes()
    assert (config.dit, config.vae) == (LONGLIVE2_5B.dit, LONGLIVE2_5B.vae)
    assert config.pixel_hw == (704, 1280) and config.text is None


def test_a_pruned_decoder_and_a_small_video() -> None:
    config = sizes("--decoder-dim", "64", "--height", "352", "--width", "640")
    assert config.vae is not None and config.vae.dec_dim == 64
    assert config.pixel_hw == (352, 640) and config.dit == LONGLIVE2_5B.dit
    assert sizes("--tiny").dit.dim < LONGLIVE2_5B.dit.dim


def test_a_size_that_is_no_whole_latents_is_refused() -> None:
    with pytest.raises(LlvqError):
        sizes("--height", "700")
