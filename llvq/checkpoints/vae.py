"""The VAE: `Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`, or the same names in safetensors."""

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
from llvq.models.config import WAN21_VAE, WAN22_VAE, VaeConfig
from llvq.sources import TensorSpec

STATISTICS_FILE = "vae_config.json"
# Wan2.2 has a module per resolution, Wan2.1 one list of all layers.
STAGED_BLOCK = "encoder.downsamples.{}.downsamples.{}.residual.2.weight"
LISTED_BLOCK = "encoder.downsamples.{}.residual.2.weight"
LISTED_DOWN = "encoder.downsamples.{}.resample.1.weight"


def read_vae(path: str | PathLike[str]) -> Checkpoint[VaeConfig]:
    """Open a VAE checkpoint and infer its sizes.

    Latent statistics come from `vae_config.json` beside the file ({"latent_mean": [z_dim floats],
    "latent_std": ...}), else from the published table if z_dim is 16 or 48, else they are 0 and 1.
    Errors: CheckpointError if the file is not a VAE of Wan2.1 or Wan2.2.
    """
    path = Path(path)
    source = open_tensors(path)
    specs = all_specs(source)
    config, notes = _with_statistics(_sizes(specs, path), path)
    check_keys(specs, in_bf16(vae_specs(config)), f"the VAE in {path}")
    return Checkpoint(source, config, notes)


def _sizes(specs: Mapping[str, TensorSpec], path: Path) -> VaeConfig:
    dim = _rows(specs, "encoder.conv1.weight", path)
    is_residual = LISTED_BLOCK.format(0) not in specs
    widths, blocks, temporal = (_staged if is_residual else _listed)(specs, path)
    if any(width % dim for width in widths):
        raise CheckpointError(
            f"{path.name} is not a VAE of Wan2.1 or Wan2.2",
            where=str(path),
            because=f"stage widths {widths} are not multiples of the first, {dim}",
            fix="name the VAE's checkpoint, such as Wan2.2_VAE.pth",
        )
    dim_mult = tuple(width // dim for width in widths)
    return VaeConfig(
        dim=dim,
        dec_dim=_rows(specs, "decoder.conv1.weight", path) // dim_mult[-1],
        z_dim=_rows(specs, "conv2.weight", path),
        dim_mult=dim_mult,
        num_res_blocks=blocks,
        temporal_downsample=temporal,
        patch_size=2 if is_residual else 1,
        is_residual=is_residual,
    )


def _staged(specs: Mapping[str, TensorSpec], path: Path) -> tuple[list[int], int, tuple[bool, ...]]:
    """Width of every stage of Wan2.2's encoder, blocks in each, and which of them halve time."""
    stages = sum(1 for _ in takewhile(lambda i: STAGED_BLOCK.format(i, 0) in specs, count()))
    blocks = sum(1 for _ in takewhile(lambda i: STAGED_BLOCK.format(0, i) in specs, count()))
    widths = [_rows(specs, STAGED_BLOCK.format(i, 0), path) for i in range(max(stages, 1))]
    temporal = tuple(
        f"encoder.downsamples.{stage}.downsamples.{blocks}.time_conv.weight" in specs
        for stage in range(stages - 1)
    )
    return widths, blocks, temporal


def _listed(specs: Mapping[str, TensorSpec], path: Path) -> tuple[list[int], int, tuple[bool, ...]]:
    """The same of Wan2.1's: blocks up to a change of resolution are one stage."""
    widths, sizes, temporal = list[int](), [0], list[bool]()
    for index in count():
        if LISTED_BLOCK.format(index) in specs:
            if not sizes[-1]:
                widths.append(_rows(specs, LISTED_BLOCK.format(index), path))
            sizes[-1] += 1
        elif LISTED_DOWN.format(index) in specs:
            temporal.append(f"encoder.downsamples.{index}.time_conv.weight" in specs)
            sizes.append(0)
        else:
            return widths, sizes[0], tuple(temporal)
    raise AssertionError("a file has a last tensor")


def _rows(specs: Mapping[str, TensorSpec], name: str, path: Path) -> int:
    if name in specs and (shape := specs[name].shape) and 0 not in shape:
        return shape[0]
    raise CheckpointError(
        f"{path.name} is not a VAE of Wan2.1 or Wan2.2",
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
    for known in (WAN21_VAE, WAN22_VAE):
        if z_dim == known.z_dim:
            mean, std = known.latent_mean, known.latent_std
            return replace(config, latent_mean=mean, latent_std=std), ()
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
