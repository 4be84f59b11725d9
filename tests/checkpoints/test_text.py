from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.text_names import text_specs
from llvq.errors import CheckpointError
from llvq.models.config import ModelConfig, TextConfig
from llvq.models.text import TextEncoder

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


@pytest.fixture(scope="module")
def transformers_encoder() -> UMT5EncoderModel:
    torch.manual_seed(0)
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=SMALL.vocab_size,
            d_model=SMALL.dim,
            d_kv=SMALL.attn_dim // SMALL.num_heads,
            d_ff=SMALL.ffn_dim,
            num_layers=SMALL.num_layers,
            num_heads=SMALL.num_heads,
            relative_attention_num_buckets=SMALL.num_buckets,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("shard", ["3KB", "1GB"])
def test_a_folder_that_transformers_wrote(
    tmp_path: Path, transformers_encoder: UMT5EncoderModel, shard: str
) -> None:
    transformers_encoder.save_pretrained(tmp_path, max_shard_size=shard)
    checkpoint = read_text_encoder(tmp_path)
    assert checkpoint.config == SMALL
    assert "UMT5, 2 layers, transformers' names" in checkpoint.notes[0]
    assert ("shards" in checkpoint.notes[0]) == (shard == "3KB")
    ours = TextEncoder(SMALL)
    ours.load_state_dict({n: checkpoint.tensors.read(n) for n in checkpoint.tensors.names()})
    ids, mask = torch.tensor([[5, 6, 1, 0]]), torch.tensor([[1, 1, 1, 0]])
    theirs = transformers_encoder(ids, mask).last_hidden_state
    assert torch.allclose(ours(ids, mask)[:, :3], theirs[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"num_layers": 24}, "disagree on num_layers"),
        ({"d_kv": 64}, "disagree on d_kv"),
        ({"feed_forward_proj": "relu"}, "disagree on feed_forward_proj"),
    ],
)
def test_a_config_of_another_encoder(
    tmp_path: Path,
    transformers_encoder: UMT5EncoderModel,
    changed: dict[str, object],
    what: str,
) -> None:
    transformers_encoder.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | changed))
    with pytest.raises(CheckpointError, match=what):
        read_text_encoder(tmp_path)


def test_names_of_both_spellings(tmp_path: Path) -> None:
    save_file(small_weights() | {"norm.weight": torch.zeros(24)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="mixes two spellings"):
        read_text_encoder(tmp_path / "m.safetensors")


def test_two_embeddings_of_which_one_is_wrong(tmp_path: Path) -> None:
    extra = {"encoder.embed_tokens.weight": torch.zeros(41, 24)}
    save_file(small_weights() | extra, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="two embeddings") as caught:
        read_text_encoder(tmp_path / "m.safetensors")
    assert "[40, 24]" in str(caught.value) and "[41, 24]" in str(caught.value)


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
