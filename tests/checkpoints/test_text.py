from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.text_names import text_specs
from llvq.errors import CheckpointError
from llvq.models.config import ModelConfig, TextConfig

SMALL = TextConfig(
    vocab_size=40, dim=24, attn_dim=16, ffn_dim=20, num_heads=2, num_layers=2, num_buckets=8
)


def small_weights() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in text_specs(SMALL).items()}


def test_wan_names(demo: Path, demo_config: ModelConfig) -> None:
    checkpoint = read_text_encoder(demo.parent / "models_t5_umt5-xxl-enc-bf16.pth")
    assert demo_config.text is not None
    assert checkpoint.config == demo_config.text
    assert set(checkpoint.tensors.names()) == set(text_specs(demo_config.text))
    name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    assert checkpoint.tensors.read(name).shape == (256, 128)


def test_transformers_names_with_decoder_and_config(tmp_path: Path) -> None:
    weights = small_weights()
    extra = {"decoder.x": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    extra["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    save_file(weights | extra, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"relative_attention_max_distance": 99}))
    checkpoint = read_text_encoder(tmp_path)
    assert checkpoint.config.max_distance == 99
    assert set(checkpoint.tensors.names()) == set(weights)


def test_the_embedding_under_its_second_name(tmp_path: Path) -> None:
    weights = small_weights()
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, tmp_path / "model.safetensors")
    assert read_text_encoder(tmp_path).config == SMALL


def test_a_bias_shared_by_all_layers_is_refused(tmp_path: Path) -> None:
    """As T5 has it, and UMT5 has not."""
    weights = small_weights()
    del weights["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing"):
        read_text_encoder(tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a UMT5 encoder"):
        read_text_encoder(tmp_path)
