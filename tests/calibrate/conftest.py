"""One small random checkpoint, and a run of it that takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.calibrate.run import Request
from llvq.checkpoints.model import VideoModel, open_model
from llvq.checkpoints.random import tiny_config, write_random_checkpoint

PROMPTS = "A red kite.\n\nA blue boat, at night.\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of 64 channels with a text encoder, no VAE; videos of 32 x 48 pixels."""
    whole = tiny_config()
    dit = replace(whole.dit, dim=64, ffn_dim=128, num_layers=1, text_dim=32, text_len=8, in_dim=8)
    assert whole.text is not None
    text = replace(whole.text, dim=32, attn_dim=32, ffn_dim=32, num_layers=1)
    config = replace(whole, dit=replace(dit, out_dim=8), text=text, vae=None, latent_hw=(2, 4))
    path = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, seed=1)
    assert json.loads((path.parent / "config.json").read_text())["random_weights"]
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> VideoModel:
    return open_model(checkpoint)


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def request_of(prompts_file: Path) -> Callable[[str], Request]:
    """Two videos of two chunks."""

    def make(name: str) -> Request:
        return Request(f"modelopt:{name}", prompts=prompts_file, chunks=2)

    return make


@pytest.fixture
def embeds_file(tmp_path: Path, model: VideoModel) -> Path:
    dit = model.config.dit
    path = tmp_path / "embeds.safetensors"
    save_file({"prompt_embeds": torch.ones(3, dit.text_len, dit.text_dim)}, path)
    return path
