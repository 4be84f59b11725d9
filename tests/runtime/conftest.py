"""A whole tiny model (denoiser, VAE, text encoder) as an executable, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llvq.compiler import compile_model, instantiate
from llvq.models.config import ModelConfig, TextConfig, VaeConfig
from llvq.recipe import NVFP4
from llvq.runtime.executable import Executable
from llvq.sources import DictSource


@pytest.fixture(scope="session")
def whole_config(tiny_config: ModelConfig) -> ModelConfig:
    vae = VaeConfig(dim=8, dec_dim=8, z_dim=8, latent_mean=(0.0,) * 8, latent_std=(1.0,) * 8)
    text = TextConfig(vocab_size=40, dim=32, attn_dim=32, ffn_dim=64, num_heads=2, num_layers=1)
    return replace(tiny_config, vae=vae, text=text)


@pytest.fixture(scope="session")
def executable(
    whole_config: ModelConfig, make_whole_weights: Callable[[ModelConfig], DictSource]
) -> Executable:
    compiled = compile_model(whole_config, NVFP4)
    return instantiate(compiled, make_whole_weights(whole_config))
