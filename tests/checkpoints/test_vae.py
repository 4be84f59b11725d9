from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llvq.checkpoints.random import write_random_checkpoint
from llvq.checkpoints.vae import read_vae
from llvq.errors import CheckpointError
from llvq.models.config import WAN22_LATENT_MEAN, ModelConfig

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
    assert "no latent statistics" in checkpoint.notes[0]


def test_statistics_beside_the_file(tmp_path: Path) -> None:
    shutil.copy(DATA / "vae.weights.safetensors", tmp_path / "vae.safetensors")
    stated = {"latent_mean": [0.5] * 8, "latent_std": [2] * 8}
    (tmp_path / "vae_config.json").write_text(json.dumps(stated))
    checkpoint = read_vae(tmp_path / "vae.safetensors")
    assert checkpoint.config.latent_std == (2.0,) * 8 and not checkpoint.notes
    (tmp_path / "vae_config.json").write_text(json.dumps(stated | {"latent_std": [2] * 7}))
    with pytest.raises(CheckpointError, match="latent_std"):
        read_vae(tmp_path / "vae.safetensors")


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
