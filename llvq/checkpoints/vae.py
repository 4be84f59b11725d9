"""The VAE of Wan2.1 and Wan2.2, LightVAE too, under Wan's own names or diffusers'.

LightVAE is Wan2.2's with fewer channels; how many is read from its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from os import PathLike
from pathlib import Path

from llvq.checkpoints.checkpoint import Checkpoint, all_specs, json_beside
from llvq.checkpoints.keys import check_keys
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import in_bf16, vae_specs
from llvq.checkpoints.vae_names import names_in
from llvq.checkpoints.vae_statistics import with_statistics
from llvq.errors import CheckpointError
from llvq.models.config import WAN22_VAE, VaeConfig
from llvq.sources import RenamedSource, TensorSpec

# Wan2.2 has a module per resolution, Wan2.1 one list of all layers.
STAGED_BLOCK = "encoder.downsamples.{}.downsamples.{}.residual.2.weight"
LISTED_BLOCK = "encoder.downsamples.{}.residual.2.weight"
ROOTS = frozenset(("state_dict", "model", "module", "vae"))
LISTED_DOWN = "encoder.downsamples.{}.resample.1.weight"


def read_vae(path: str | PathLike[str]) -> Checkpoint[VaeConfig]:
    """Open a VAE checkpoint and infer its sizes.

    Where latent statistics come from says `vae_statistics`.
    Errors: CheckpointError if the file is not a VAE of Wan2.1 or Wan2.2, or its config.json says
    something else than its tensors.
    """
    path = Path(path)
    source = open_tensors(path)
    inner = _without_root(source.names())
    names, spelling = names_in(inner).in_left(inner, path)
    tensors = RenamedSource(source, names)
    specs = all_specs(tensors)
    config, notes = with_statistics(_sizes(specs, path), path)
    check_keys(specs, in_bf16(vae_specs(config)), f"the VAE in {path}")
    _check_stated(config, path)
    return Checkpoint(tensors, config, (_recognised(config, spelling), *notes))


def _without_root(names: Sequence[str]) -> dict[str, str]:
    """Name without the one key that all may be under -> name in the file."""
    roots = {name.split(".")[0] for name in names}
    start = len(roots.pop()) + 1 if len(roots) == 1 and roots <= ROOTS else 0
    return {name[start:]: name for name in names}


def _recognised(config: VaeConfig, spelling: str | None) -> str:
    which = "Wan2.2" if config.is_residual else "Wan2.1"
    pruned = 1 - config.dec_dim / WAN22_VAE.dec_dim
    if config.is_residual and config.z_dim == WAN22_VAE.z_dim and pruned > 0:
        which += f", LightVAE pruned by {pruned:.4g}"
    widths = f"{config.dim} channels to encode, {config.dec_dim} to decode"
    return f"recognised: VAE of {which}, {spelling} names, {widths}"


def _check_stated(config: VaeConfig, path: Path) -> None:
    """What diffusers' config.json says must be what the tensors say."""
    stated = json_beside(path, "config.json")
    if not str(stated.get("_class_name")).startswith("Autoencoder"):
        return
    found: dict[str, object] = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.dim,
        "decoder_base_dim": config.dec_dim,
        "z_dim": config.z_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "temperal_downsample": list(config.temporal_downsample),
        "is_residual": config.is_residual,
        "attn_scales": [],
    }
    for key, value in found.items():
        if stated.get(key) not in (None, value):
            raise CheckpointError(
                f"config.json and the tensors of the VAE disagree on {key}",
                where=str(path),
                because=f"config.json says {stated[key]}, the tensors {value}",
                fix="download both again, from one revision of the checkpoint",
            )


def _sizes(specs: Mapping[str, TensorSpec], path: Path) -> VaeConfig:
    dim = _rows(specs, "encoder.conv1.weight", path)
    is_residual = LISTED_BLOCK.format(0) not in specs
    widths, blocks, temporal = (_staged if is_residual else _listed)(specs, path)
    if any(width % dim for width in widths):
        raise _no_vae(path, f"stage widths {widths} are not multiples of the first, {dim}")
    if len(widths) != len(temporal) + 1:
        raise _no_vae(path, f"{len(temporal)} changes of resolution join {len(widths)} stages")
    if len(widths) * blocks > len(specs):
        raise _no_vae(path, f"{len(widths)} stages of {blocks} blocks are more than it has tensors")
    latents = specs["conv2.weight"].shape if "conv2.weight" in specs else ()
    if len(latents) != 5 or latents[0] != latents[1]:
        raise _no_vae(path, f"conv2.weight is {list(latents)}, not latents to latents")
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
    raise _no_vae(path, f"{name} is missing or empty")


def _no_vae(path: Path, because: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a VAE of Wan2.1 or Wan2.2",
        where=str(path),
        because=because,
        fix="name the VAE's checkpoint, such as Wan2.2_VAE.pth",
    )
