"""One quantized program of a tiny random checkpoint, and its comparison, for all tests here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llvq.box import write_program
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import write_random_checkpoint
from llvq.compiler import compile_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, TextConfig, VaeConfig
from llvq.quality.compare import Request, compare
from llvq.quality.comparison import Comparison
from llvq.recipe import NVFP4

CONFIG = ModelConfig(
    dit=DitConfig(dim=64, ffn_dim=128, num_heads=1, num_layers=2, text_dim=32, text_len=32),
    stream=StreamConfig(frames_per_chunk=1, window_frames=3, sink_frames=1, steps=2),
    vae=VaeConfig(dim=4, dec_dim=4, num_res_blocks=1),
    text=TextConfig(
        vocab_size=320, dim=32, attn_dim=32, ffn_dim=64, num_heads=1, num_layers=1, num_buckets=8
    ),
    latent_hw=(4, 6),
)
SIZE = (64, 96)


@dataclass(frozen=True)
class Files:
    checkpoint: Path
    program: Path
    config: ModelConfig


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = write_random_checkpoint(folder, CONFIG, seed=0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "random_weights": True}))
    model = open_model(checkpoint, size=SIZE)
    program = folder / "model.nvfp4"
    write_program(
        compile_model(model.config, NVFP4), model.source, program, tokenizer=model.bundle.tokenizer
    )
    return Files(checkpoint, program, CONFIG)


@pytest.fixture(scope="session")
def found(files: Files) -> Comparison:
    return compare(files.checkpoint, files.program, Request(chunks=3, seed=1, judge=brightness))


def brightness(frames: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, list[float]]:
    """A judge: of the first chunk it cannot tell."""
    assert len(frames) == len(prompts) == 3 and frames[1].dtype == torch.uint8
    return {"<brightness>": [math.nan, *(float(f.float().mean()) for f in frames[1:])]}
