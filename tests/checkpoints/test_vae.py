from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from llvq.checkpoints.random import tiny_self_forcing, write_random_checkpoint
from llvq.checkpoints.specs import vae_specs
from llvq.checkpoints.vae import read_vae
from llvq.checkpoints.vae_names import names_of
from llvq.errors import CheckpointError
from llvq.models.config import WAN22_LATENT_MEAN, WAN22_VAE, ModelConfig
from llvq.models.vae import WanVae, decode_state_shapes, encode_state_shapes

DATA = Path(__file__).parents[1] / "data"


def test_the_sizes_of_the_public_reference_are_inferred() -> None:
    sizes = json.loads((DATA / "vae.json").read_text())
    checkpoint = read_vae(DATA / "vae.weights.safetensors")
    for name in ("dim", "dec_dim", "z_dim", "num_res_blocks"):
        assert getattr(checkpoint.config, name) == sizes[name]
    for name in ("dim_mult", "temporal_downsample"):
        assert list(getattr(checkpoint.config, name)) == sizes[name]
    assert (checkpoint.config.spatial_stride, checkpoint.config.temporal_stride) == (16, 4)


def test_unknown_statistics_are_noted(tmp_path: Path) -> None:
    shutil.copy(DATA / "vae.weights.safetensors", tmp_path / "vae.safetensors")
    checkpoint = read_vae(tmp_path / "vae.safetensors")
    assert checkpoint.config.latent_mean == (0.0,) * 8
    assert checkpoint.config.latent_std == (1.0,) * 8
    assert "no latent statistics" in checkpoint.notes[1]


@pytest.fixture(scope="module")
def diffusers_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=16,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
    ).eval()


@torch.no_grad()
def test_diffusers_folder_gives_the_videos_of_diffusers(
    tmp_path: Path, diffusers_vae: AutoencoderKLWan
) -> None:
    diffusers_vae.save_pretrained(tmp_path)
    checkpoint = read_vae(tmp_path)
    assert "VAE of Wan2.2, diffusers' names" in checkpoint.notes[0] and len(checkpoint.notes) == 1
    ours = WanVae(checkpoint.config)
    ours.load_state_dict({n: checkpoint.tensors.read(n) for n in checkpoint.tensors.names()})
    latent, video = torch.randn(1, 4, 3, 2, 2), torch.rand(1, 3, 9, 32, 32) * 2 - 1
    state = [torch.zeros(shape) for shape in decode_state_shapes(checkpoint.config, (2, 2))]
    pixels, _ = ours.decode(latent, state, first=True)
    assert torch.allclose(pixels.clamp(-1, 1), diffusers_vae.decode(latent).sample, atol=1e-5)
    state = [torch.zeros(shape) for shape in encode_state_shapes(checkpoint.config, (32, 32))]
    encoded, _ = ours.encode(video, state, first=True)
    assert torch.allclose(encoded, diffusers_vae.encode(video).latent_dist.mode(), atol=1e-5)


def test_a_config_that_is_of_another_vae(tmp_path: Path, diffusers_vae: AutoencoderKLWan) -> None:
    diffusers_vae.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | {"base_dim": 160}))
    with pytest.raises(CheckpointError, match="disagree on base_dim") as caught:
        read_vae(tmp_path)
    assert caught.value.because == "config.json says 160, the tensors 8"


def test_names_of_both_spellings(tmp_path: Path) -> None:
    weights = load_file(DATA / "vae.weights.safetensors")
    weights["decoder.conv_in.bias"] = weights.pop("decoder.conv1.bias")
    save_file(weights, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="mixes two spellings"):
        read_vae(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("root", ["", "state_dict."])
@pytest.mark.parametrize("spelling", ["wan", "diffusers"])
def test_lightvae_has_fewer_channels_which_the_file_tells(
    tmp_path: Path, spelling: str, root: str
) -> None:
    """Both base widths times 1 - 0.75."""
    pruned = replace(WAN22_VAE, dim=40, dec_dim=64)
    table = names_of(pruned)
    names = {n: table.to_right(n) if spelling == "diffusers" else n for n in vae_specs(pruned)}
    one = torch.zeros(1, dtype=torch.bfloat16)
    shapes = {f"{root}{names[n]}": shape for n, shape in vae_specs(pruned).items()}
    save_file({n: one.expand(s).contiguous() for n, s in shapes.items()}, tmp_path / "m")
    checkpoint = read_vae(tmp_path / "m")
    assert checkpoint.config == pruned
    assert "Wan2.2, LightVAE pruned by 0.75" in checkpoint.notes[0]
    assert set(checkpoint.tensors.names()) == set(vae_specs(pruned))


def test_48_channels_have_the_published_statistics(
    tmp_path: Path, demo_config: ModelConfig
) -> None:
    write_random_checkpoint(tmp_path, demo_config, seed=0)
    (tmp_path / "vae_config.json").unlink()
    checkpoint = read_vae(tmp_path / "Wan2.2_VAE.pth")
    assert checkpoint.config == demo_config.vae
    assert checkpoint.config.latent_mean == WAN22_LATENT_MEAN


def test_wrong_keys_come_in_one_error(tmp_path: Path) -> None:
    weights = load_file(DATA / "vae.weights.safetensors")
    del weights["decoder.head.2.bias"]
    weights["extra"] = torch.zeros(1)
    save_file(weights, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="1 missing, 1 surplus"):
        read_vae(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("names", [{}, {"encoder.conv1.weight": (3, 2)}])
def test_another_model_is_refused(tmp_path: Path, names: dict[str, tuple[int, ...]]) -> None:
    weights = {name: torch.zeros(shape) for name, shape in names.items()}
    save_file(weights | {"x": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"not a VAE of Wan2.1 or"):
        read_vae(tmp_path / "vae.safetensors")


def test_a_list_of_layers_that_ends_between_two_stages_is_refused(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_self_forcing(), seed=0)
    weights = torch.load(tmp_path / "Wan2.1_VAE.pth")
    for last in ("encoder.downsamples.9.", "encoder.downsamples.10."):
        weights = {name: w for name, w in weights.items() if not name.startswith(last)}
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match=r"not a VAE of Wan2\.1 or") as caught:
        read_vae(tmp_path / "Wan2.1_VAE.pth")
    assert caught.value.because == "3 changes of resolution join 3 stages"


def test_16_channels_have_the_published_statistics(tmp_path: Path) -> None:
    config = tiny_self_forcing()
    write_random_checkpoint(tmp_path, config, seed=0)
    (tmp_path / "vae_config.json").unlink()
    assert read_vae(tmp_path / "Wan2.1_VAE.pth").config == config.vae
