"""A tiny model of the family, its weights, and files in which each layout holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.checkpoints.specs import dit_specs
from llvq.models.config import DitConfig, ModelConfig

TINY = DitConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2, in_dim=4, out_dim=4, text_dim=32)


@pytest.fixture
def dit_config() -> DitConfig:
    return TINY


@pytest.fixture
def dit_weights(dit_config: DitConfig) -> dict[str, torch.Tensor]:
    return {
        name: torch.full(shape, index / 64, dtype=torch.bfloat16)
        for index, (name, shape) in enumerate(dit_specs(dit_config).items())
    }


@pytest.fixture(scope="session")
def demo_config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, demo_config: ModelConfig) -> Path:
    """The denoiser of a random checkpoint; its companions are beside it."""
    return write_random_checkpoint(tmp_path_factory.mktemp("demo"), demo_config, seed=7)
