"""Mean and deviation of each latent channel, which no VAE file holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llvq.checkpoints.checkpoint import json_beside
from llvq.errors import CheckpointError
from llvq.models.config import WAN21_VAE, WAN22_VAE, VaeConfig

STATISTICS_FILE = "vae_config.json"


def with_statistics(config: VaeConfig, path: Path) -> tuple[VaeConfig, tuple[str, ...]]:
    """The config with the statistics of the VAE in `path`, and notes.

    They come from `vae_config.json` beside it ({"latent_mean": [z_dim floats], "latent_std": ...}),
    else from diffusers' config.json (`latents_mean`, `latents_std`), else from the published table
    if z_dim is 16 or 48, else they are 0 and 1. Raises CheckpointError for lists that do not fit.
    """
    for file, mean_key, std_key in (
        (STATISTICS_FILE, "latent_mean", "latent_std"),
        ("config.json", "latents_mean", "latents_std"),
    ):
        stated = json_beside(path, file)
        if (file == STATISTICS_FILE and stated) or mean_key in stated:
            where = (path if path.is_dir() else path.parent) / file
            mean = _floats(stated, mean_key, config.z_dim, where)
            std = _floats(stated, std_key, config.z_dim, where)
            return replace(config, latent_mean=mean, latent_std=std), ()
    for known in (WAN21_VAE, WAN22_VAE):
        if config.z_dim == known.z_dim:
            mean, std = known.latent_mean, known.latent_std
            return replace(config, latent_mean=mean, latent_std=std), ()
    note = f"no latent statistics ({STATISTICS_FILE}): mean 0 and deviation 1 are used"
    mean, std = (0.0,) * config.z_dim, (1.0,) * config.z_dim
    return replace(config, latent_mean=mean, latent_std=std), (note,)


def _floats(stated: Mapping[str, object], key: str, length: int, where: Path) -> tuple[float, ...]:
    values = stated.get(key)
    if isinstance(values, list) and len(values) == length:
        numbers = tuple(float(value) for value in values if _is_number(value))
        if len(numbers) == length:
            return numbers
    raise CheckpointError(
        f"{key} in {where.name} does not fit the VAE",
        where=str(where),
        because=f"it must be a list of {length} finite numbers, one per latent channel",
        fix=f"correct {key} in {where}",
    )


def _is_number(value: object) -> bool:
    # JSON also has integers that no float can hold, and Infinity.
    return isinstance(value, int | float) and abs(value) < 1e30 and math.isfinite(value)
