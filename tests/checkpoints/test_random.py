from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llvq.checkpoints.bundle import find_companions
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.random import tiny_self_forcing, write_random_checkpoint
from llvq.checkpoints.stream import read_stream
from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.vae import read_vae
from llvq.errors import CheckpointError
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae, decode_state_shapes
from llvq.runtime.prompts import PromptTokenizer
from llvq.sources import TensorSource


def state_dict(tensors: TensorSource) -> dict[str, torch.Tensor]:
    return {name: tensors.read(name).float() for name in tensors.names()}


def test_the_readers_give_the_config_back(demo: Path, demo_config: ModelConfig) -> None:
    bundle = find_companions(demo)
    assert not bundle.notes
    assert bundle.vae is not None and bundle.text_encoder is not None
    checkpoint = read_dit(demo)
    assert checkpoint.config == demo_config.dit and len(checkpoint.notes) == 1
    assert read_stream(demo) == demo_config.stream
    assert read_vae(bundle.vae).config == demo_config.vae
    assert read_text_encoder(bundle.text_encoder).config == demo_config.text


def test_the_family_of_wan21_comes_back_too(tmp_path: Path) -> None:
    config = tiny_self_forcing()
    dit = write_random_checkpoint(tmp_path, config, seed=7)
    bundle = find_companions(dit, config.dit.in_dim)
    assert bundle.vae == tmp_path / "Wan2.1_VAE.pth" and not bundle.notes
    assert read_dit(dit).config == config.dit and read_vae(bundle.vae).config == config.vae
    assert read_stream(dit) == config.stream


def test_the_same_seed_gives_the_same_files(
    tmp_path: Path, demo: Path, demo_config: ModelConfig
) -> None:
    again = write_random_checkpoint(tmp_path / "again", demo_config, seed=7)
    other = write_random_checkpoint(tmp_path / "other", demo_config, seed=8)
    assert again.read_bytes() == demo.read_bytes() != other.read_bytes()


def test_a_prompt_becomes_finite_embeddings(demo: Path, demo_config: ModelConfig) -> None:
    text = read_text_encoder(demo.parent / "models_t5_umt5-xxl-enc-bf16.pth")
    model = TextEncoder(text.config)
    model.load_state_dict(state_dict(text.tensors))
    tokens = PromptTokenizer(demo.parent / "google/umt5-xxl", demo_config.dit.text_len).encode(
        "a cat"
    )
    assert tokens.mask.sum() == 6
    with torch.no_grad():
        embeds = model(tokens.ids, tokens.mask)
    assert embeds.isfinite().all() and embeds[:, 6:].eq(0).all()
    assert 0.1 < embeds[:, :6].std() < 10


def test_the_denoiser_turns_noise_into_a_velocity_of_like_size(demo: Path) -> None:
    checkpoint = read_dit(demo)
    config = checkpoint.config
    model = CausalWanDit(config)
    model.load_state_dict(state_dict(checkpoint.tensors))
    history = [torch.randn(1, 24, config.num_heads, config.head_dim)] * config.num_layers
    with torch.no_grad():
        velocity, keys, _ = model(
            torch.randn(1, 2, config.in_dim, 8, 12),
            torch.full((1, 2), 750.0),
            torch.arange(2, dtype=torch.float64),
            torch.randn(1, config.text_len, config.text_dim),
            history,
            history,
        )
    assert velocity.isfinite().all() and 0.1 < velocity.std() < 10
    assert all(key.isfinite().all() for key in keys)


def test_the_vae_decodes_noise_to_finite_pixels(demo: Path) -> None:
    checkpoint = read_vae(demo.parent / "Wan2.2_VAE.pth")
    model = WanVae(checkpoint.config)
    model.load_state_dict(state_dict(checkpoint.tensors))
    state = [torch.zeros(shape) for shape in decode_state_shapes(checkpoint.config, (4, 4))]
    with torch.no_grad():
        pixels, _ = model.decode(torch.randn(1, 48, 2, 4, 4), state, first=True)
    assert pixels.isfinite().all() and 0.05 < pixels.std() < 5


def test_parts_that_the_config_lacks_are_not_written(
    tmp_path: Path, demo_config: ModelConfig
) -> None:
    dit = write_random_checkpoint(tmp_path, replace(demo_config, vae=None, text=None), seed=0)
    assert len(find_companions(dit).notes) == 3


def test_a_vocabulary_that_is_too_small(tmp_path: Path, demo_config: ModelConfig) -> None:
    assert demo_config.text is not None
    text = replace(demo_config.text, vocab_size=100)
    with pytest.raises(CheckpointError, match="too small"):
        write_random_checkpoint(tmp_path, replace(demo_config, text=text), seed=0)
