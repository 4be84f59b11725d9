"""One tiny model for every test that needs one: captured once, copied per test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llvq.compiler import Compiled, compile_model
from llvq.models.chunk import capture_chunk, meta_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig
from llvq.program import Program
from llvq.recipe import BF16, NVFP4
from llvq.weights import DictSource


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, 12 tokens per chunk, a window of four chunks; no VAE, no text encoder."""
    dit = DitConfig(
        dim=64,
        ffn_dim=128,
        num_heads=2,
        num_layers=2,
        in_dim=8,
        out_dim=8,
        text_dim=32,
        text_len=5,
        freq_dim=32,
    )
    stream = StreamConfig(frames_per_chunk=2, window_frames=8, sink_frames=2)
    return ModelConfig(dit=dit, stream=stream, vae=None, text=None, latent_hw=(4, 6))


@pytest.fixture(scope="session")
def _captured(tiny_config: ModelConfig) -> Program:
    return capture_chunk(tiny_config)


@pytest.fixture
def program(_captured: Program) -> Program:
    """The tiny model in bf16 at level `captured`; every test has its own copy."""
    return _captured.copy()


@pytest.fixture(scope="session")
def compiled_nvfp4(tiny_config: ModelConfig) -> Compiled:
    return compile_model(tiny_config, NVFP4)


@pytest.fixture(scope="session")
def compiled_fp32(tiny_config: ModelConfig) -> Compiled:
    """Rewritten through every pass, but nothing rounded: no NVFP4, pages in fp32."""
    return compile_model(tiny_config, replace(BF16, dtype="float32"))


@pytest.fixture(scope="session")
def make_weights() -> Callable[[ModelConfig], DictSource]:
    """Random fp32 weights of a model, the same ones every time, large enough to matter."""

    def make(config: ModelConfig) -> DictSource:
        generator = torch.Generator().manual_seed(3)
        shapes = {
            name: t.shape for name, t in meta_model(config, torch.float32).state_dict().items()
        }
        return DictSource(
            {
                name: torch.randn(shape, generator=generator) * max(shape[1:], default=1) ** -0.5
                for name, shape in shapes.items()
            }
        )

    return make
