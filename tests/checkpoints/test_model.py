"""A whole model from its files: one configuration, one source; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from llvq.checkpoints.bundle import TEXT_FILES, VAE_FILES
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import write_random_checkpoint
from llvq.errors import CheckpointError, RecipeError
from llvq.models.config import ModelConfig


@pytest.fixture
def denoiser(demo: Path, tmp_path: Path) -> Path:
    """The denoiser alone, with its config."""
    for name in (demo.name, "config.json"):
        shutil.copy(demo.parent / name, tmp_path / name)
    return tmp_path / demo.name


def edit_config(denoiser: Path, **values: object) -> None:
    path = denoiser.parent / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_parts_are_one_configuration_and_one_source(demo: Path, demo_config: ModelConfig) -> None:
    model = open_model(demo, size=(128, 192))
    assert model.config == demo_config
    assert all(note.startswith("recognised: ") for note in model.notes)
    parts = {name.split(".")[0] for name in model.source.names()}
    assert parts == {"dit", "vae", "text"}
    weight = model.source.spec("dit.blocks.0.self_attn.q.weight")
    assert weight.shape == (demo_config.dit.dim, demo_config.dit.dim)


def test_a_denoiser_alone_is_a_model_with_notes(denoiser: Path) -> None:
    model = open_model(denoiser, size=(64, 96))
    assert model.config.vae is None and model.config.text is None
    assert all(name.startswith("dit.") for name in model.source.names())
    missing = [note for note in model.notes if " found" in note]
    assert [note.split(" found")[0] for note in missing] == [
        "no VAE", "no text encoder", "no tokenizer",
    ]  # fmt: skip


def test_notes_of_every_reader_are_told(denoiser: Path) -> None:
    (denoiser.parent / "config.json").unlink()
    model = open_model(denoiser, size=(64, 96))
    assert any("number of heads" in note for note in model.notes)


def test_the_size_is_what_was_asked_for_or_what_config_json_says(denoiser: Path) -> None:
    edit_config(denoiser, height=704, width=1280)
    assert open_model(denoiser).config.latent_hw == (44, 80)
    edit_config(denoiser, height=64, width="96")
    assert open_model(denoiser).config.latent_hw == (4, 6)
    assert open_model(denoiser, size=(96, 128)).config.latent_hw == (6, 8)


@pytest.mark.parametrize("height", [0, "tall", 64.0])
def test_a_size_in_config_json_that_is_none(denoiser: Path, height: object) -> None:
    edit_config(denoiser, height=height)
    with pytest.raises(CheckpointError, match="is not a size") as caught:
        open_model(denoiser)
    assert "correct height" in str(caught.value)


def test_a_size_that_does_not_divide_into_patches(denoiser: Path) -> None:
    with pytest.raises(RecipeError, match="100x96 pixels do not divide"):
        open_model(denoiser, size=(100, 96))


def test_a_vae_of_other_latents_is_refused(
    denoiser: Path, demo_config: ModelConfig, tmp_path: Path
) -> None:
    assert demo_config.vae is not None
    vae = replace(demo_config.vae, z_dim=16, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16)
    other = write_random_checkpoint(tmp_path / "other", replace(demo_config, vae=vae), seed=0)
    with pytest.raises(CheckpointError, match="the VAE does not belong to this denoiser") as caught:
        open_model(denoiser, vae=other.parent / VAE_FILES[0])
    assert caught.value.because == "it has 16 latent channels, the denoiser takes 48"
    assert caught.value.fix == "name the right file with --vae"


def test_a_text_encoder_of_another_width_is_refused(
    denoiser: Path, demo_config: ModelConfig, tmp_path: Path
) -> None:
    assert demo_config.text is not None
    text = replace(demo_config.text, dim=64, num_layers=1)
    config = replace(demo_config, text=text, vae=None)
    other = write_random_checkpoint(tmp_path / "other", config, seed=0)
    with pytest.raises(CheckpointError, match="the text encoder does not belong") as caught:
        open_model(denoiser, text_encoder=other.parent / TEXT_FILES[0])
    assert caught.value.because == "it has embeddings of 64, the denoiser takes 128"
    assert caught.value.fix == "name the right file with --text-encoder"


def test_a_pipeline_that_diffusers_wrote_is_one_model(
    tmp_path: Path, demo: Path, demo_config: ModelConfig
) -> None:
    """Each part written by the class that diffusers or transformers has for it."""
    dit, vae, text = demo_config.dit, demo_config.vae, demo_config.text
    assert vae is not None and text is not None
    parts = {
        "transformer": WanTransformer3DModel(
            num_attention_heads=dit.num_heads,
            attention_head_dim=dit.head_dim,
            in_channels=dit.in_dim,
            out_channels=dit.out_dim,
            text_dim=dit.text_dim,
            ffn_dim=dit.ffn_dim,
            num_layers=dit.num_layers,
        ),
        "vae": AutoencoderKLWan(
            base_dim=vae.dim,
            decoder_base_dim=vae.dec_dim,
            z_dim=vae.z_dim,
            latents_mean=list(vae.latent_mean),
            latents_std=list(vae.latent_std),
            is_residual=True,
            patch_size=2,
            in_channels=12,
            out_channels=12,
        ),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=text.vocab_size,
                d_model=text.dim,
                d_kv=text.attn_dim // text.num_heads,
                d_ff=text.ffn_dim,
                num_layers=text.num_layers,
                num_heads=text.num_heads,
                feed_forward_proj="gated-gelu",
            )
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(demo.parent / "google/umt5-xxl/tokenizer.json", tmp_path / "tokenizer")
    for path in (tmp_path, tmp_path / "transformer"):
        model = open_model(path, size=(128, 192))
        config = replace(demo_config, stream=model.config.stream)
        assert replace(model.config, dit=replace(model.config.dit, text_len=64)) == config
        assert [note.split(",")[0] for note in model.notes] == [
            "recognised: denoiser of 4 layers of 256 channels",
            "recognised: VAE of Wan2.2",
            "recognised: text encoder UMT5",
        ]


def test_a_lora_is_part_of_the_model(demo: Path, tmp_path: Path, demo_config: ModelConfig) -> None:
    dim, name = demo_config.dit.dim, "blocks.0.self_attn.q"
    halves = {
        f"{name}.lora_A.weight": torch.ones(2, dim),
        f"{name}.lora_B.weight": torch.ones(dim, 2),
    }
    torch.save(halves, tmp_path / "lora.pt")
    plain = open_model(demo)
    model = open_model(demo, lora=[tmp_path / "lora.pt"], lora_alpha=[4.0])
    (lora,) = model.loras
    assert plain.loras == () and lora.notes[0] in model.notes
    before, after = (m.source.read(f"dit.{name}.weight").float() for m in (plain, model))
    assert torch.equal(after, (before + 4).bfloat16().float())  # scale 2, two ranks of ones
    with pytest.raises(RecipeError, match="1 LoRAs were given, and 2 alphas"):
        open_model(demo, lora=[tmp_path / "lora.pt"], lora_alpha=[4.0, 4.0])
