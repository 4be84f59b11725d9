"""The Wan2.2 VAE: `Wan2.2_VAE.pth` or the same names in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count, takewhile
from os import PathLike
from pathlib import Path

from llvq.checkpoints.checkpoint import Checkpoint, all_specs, json_beside
from llvq.checkpoints.keys import check_keys
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import in_bf16, vae_specs
from llvq.errors import CheckpointError
from llvq.models.config import WAN22_LATENT_MEAN, WAN22_LATENT_STD, VaeConfig
from llvq.sources import TensorSpec

STATISTICS_FILE = "vae_config.json"
FIRST_BLOCK = "encoder.downsamples.{}.downsamples.0.residual.2.weight"
PIXEL_PATCH = 2  # space-to-depth in front of the first convolution


def read_vae(path: str | PathLike[str]) -> Checkpoint[VaeConfig]:
    """Open a VAE checkpoint and infer its sizes.

    Latent statistics come from `vae_config.json` beside the file ({"latent_mean": [z_dim floats],
    "latent_std": ...}), else from the published table if z_dim is 48, else they are 0 and 1.
    Errors: CheckpointError if the file is not a Wan2.2 VAE.
    """
    path = Path(path)
    source = open_tensors(path)
    specs = all_specs(source)
    config, notes = _with_statistics(_sizes(specs, path), path)
    check_keys(specs, in_bf16(vae_specs(config)), f"the VAE in {path}")
    return Checkpoint(source, config, notes)


def _sizes(specs: Mapping[str, TensorSpec], path: Path) -> VaeConfig:
    dim = _rows(specs, "encoder.conv1.weight", path)
    stages = _run_length(specs, FIRST_BLOCK)
    blocks = _run_length(specs, "encoder.downsamples.0.downsamples.{}.residual.2.weight")
    widths = [_rows(specs, FIRST_BLOCK.format(stage), path) for stage in range(max(stages, 1))]
    if any(width % dim for width in widths):
        raise CheckpointError(
            f"{path.name} is not a Wan2.2 VAE",
            where=str(path),
            because=f"stage widths {widths} are not multiples of the first, {dim}",
            fix="name the VAE's checkpoint, such as Wan2.2_VAE.pth",
        )
    dim_mult = tuple(width // dim for width in widths)
    temporal = tuple(
        f"encoder.downsamples.{stage}.downsamples.{blocks}.time_conv.weight" in specs
        for stage in range(stages - 1)
    )
    return VaeConfig(
        dim=dim,
        dec_dim=_rows(specs, "decoder.conv1.weight", path) // dim_mult[-1],
        z_dim=_rows(specs, "conv2.weight", path),
        dim_mult=dim_mult,
        num_res_blocks=blocks,
        temporal_downsample=temporal,
        spatial_stride=PIXEL_PATCH * 2 ** (stages - 1),
        temporal_stride=2 ** sum(temporal),
    )


def _run_length(specs: Mapping[str, TensorSpec], pattern: str) -> int:
    return sum(1 for _ in takewhile(lambda index: pattern.format(index) in specs, count()))


def _rows(specs: Mapping[str, TensorSpec], name: str, path: Path) -> int:
    if name in specs and (shape := specs[name].shape) and 0 not in shape:
        return shape[0]
    raise CheckpointError(
        f"{path.name} is not a Wan2.2 VAE",
        where=str(path),
        because=f"{name} is missing or empty",
        fix="name the VAE's checkpoint, such as Wan2.2_VAE.pth",
    )


def _with_statistics(config: VaeConfig, path: Path) -> tuple[VaeConfig, tuple[str, ...]]:
    z_dim = config.z_dim
    if stated := json_beside(path, STATISTICS_FILE):
        mean = _floats(stated, "latent_mean", z_dim, path)
        std = _floats(stated, "latent_std", z_dim, path)
        return replace(config, latent_mean=mean, latent_std=std), ()
    if z_dim == len(WAN22_LATENT_MEAN):
        return replace(config, latent_mean=WAN22_LATENT_MEAN, latent_std=WAN22_LATENT_STD), ()
    note = f"no latent statistics ({STATISTICS_FILE}): mean 0 and deviation 1 are used"
    return replace(config, latent_mean=(0.0,) * z_dim, latent_std=(1.0,) * z_dim), (note,)


def _floats(stated: Mapping[str, object], key: str, length: int, path: Path) -> tuple[float, ...]:
    values = stated.get(key)
    if isinstance(values, list) and len(values) == length:
        numbers = tuple(float(value) for value in values if isinstance(value, int | float))
        if len(numbers) == length:
            return numbers
    raise CheckpointError(
        f"{key} in {STATISTICS_FILE} does not fit the VAE",
        where=str(path.parent / STATISTICS_FILE),
        because=f"it must be a list of {length} numbers, one per latent channel",
        fix=f"correct {STATISTICS_FILE}, or delete it",
    )
