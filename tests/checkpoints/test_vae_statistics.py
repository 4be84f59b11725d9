from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llvq.checkpoints.vae_statistics import with_statistics
from llvq.errors import CheckpointError
from llvq.models.config import WAN21_VAE, WAN22_VAE

SMALL = replace(WAN22_VAE, z_dim=2)


def write(folder: Path, name: str, **values: object) -> Path:
    (folder / name).write_text(json.dumps(values))
    return folder / "vae.pth"


@pytest.mark.parametrize("known", [WAN21_VAE, WAN22_VAE])
def test_the_published_ones_are_known_by_their_channels(tmp_path: Path, known: object) -> None:
    assert with_statistics(replace(known, latent_mean=(), latent_std=()), tmp_path) == (known, ())


def test_none_known_is_noted(tmp_path: Path) -> None:
    config, notes = with_statistics(SMALL, tmp_path)
    assert (config.latent_mean, config.latent_std) == ((0.0, 0.0), (1.0, 1.0))
    assert "no latent statistics" in notes[0]


def test_our_file_wins_over_that_of_diffusers(tmp_path: Path) -> None:
    path = write(tmp_path, "config.json", latents_mean=[1, 2], latents_std=[3, 4])
    config, notes = with_statistics(SMALL, path)
    assert (config.latent_mean, config.latent_std, notes) == ((1.0, 2.0), (3.0, 4.0), ())
    write(tmp_path, "vae_config.json", latent_mean=[5, 6], latent_std=[7, 8])
    assert with_statistics(SMALL, path)[0].latent_std == (7.0, 8.0)


def test_the_config_of_a_denoiser_beside_it_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "config.json", num_heads=24)
    assert with_statistics(WAN22_VAE, path) == (WAN22_VAE, ())


BAD = ([2], [2, 3, 4], ["1", "2"], [None, 1], 3, None, [10**400, 1], [float("inf"), 1])


@pytest.mark.parametrize("values", BAD)
def test_lists_that_do_not_fit(tmp_path: Path, values: object) -> None:
    path = write(tmp_path, "vae_config.json", latent_mean=[1, 2], latent_std=values)
    with pytest.raises(CheckpointError, match=r"latent_std in vae_config\.json") as caught:
        with_statistics(SMALL, path)
    assert caught.value.fix == f"correct latent_std in {tmp_path / 'vae_config.json'}"
