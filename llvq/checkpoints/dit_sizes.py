"""The sizes of a denoiser: from its tensors, and what they do not show from its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

from llvq.checkpoints.checkpoint import positive_int
from llvq.errors import CheckpointError
from llvq.models.config import DitConfig
from llvq.sources import TensorSpec

PUBLISHED_HEAD_DIM = 128
BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")
HEADS = ("num_heads", "num_attention_heads")
# Keys of Wan's and of diffusers' config.json, and what they must be equal to.
SAME = {
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "in_dim": "in_dim",
    "in_channels": "in_dim",
    "out_dim": "out_dim",
    "out_channels": "out_dim",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "attention_head_dim": "head_dim",
}
# What llvq.models.dit computes, where a config could say otherwise.
FIXED: Mapping[str, tuple[object, ...]] = {
    "eps": (1e-6,),
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "model_type": ("t2v", "ti2v"),
    "added_kv_proj_dim": (None,),
    "image_dim": (None,),
}


def dit_sizes(
    specs: Mapping[str, TensorSpec], stated: Mapping[str, object], path: Path
) -> DitConfig:
    """`specs`: by Wan's names. Raises CheckpointError if they are not of a Wan denoiser."""
    dim, in_dim, *patch = _shape(specs, "patch_embedding.weight", 5, path)
    blocks = [int(match[1]) for name in specs if (match := BLOCK.match(name))]
    out_rows = _shape(specs, "head.head.weight", 2, path)[0]
    return DitConfig(
        dim=dim,
        ffn_dim=_shape(specs, "blocks.0.ffn.0.weight", 2, path)[0],
        num_heads=_num_heads(dim, stated, path),
        # A stray block number must not make the list of expected keys longer than the file.
        num_layers=min(max(blocks) + 1, len(specs)),
        in_dim=in_dim,
        out_dim=out_rows // prod(patch),
        text_dim=_shape(specs, "text_embedding.0.weight", 2, path)[1],
        text_len=positive_int(stated.get("text_len", 512), key="text_len", where=path),
        freq_dim=_shape(specs, "time_embedding.0.weight", 2, path)[1],
        patch_size=(patch[0], patch[1], patch[2]),
    )


def _shape(specs: Mapping[str, TensorSpec], name: str, rank: int, path: Path) -> tuple[int, ...]:
    shape = specs[name].shape if name in specs else None
    if shape is not None and len(shape) == rank and 0 not in shape:
        return shape
    raise CheckpointError(
        f"{path.name} is not a denoiser of LongLive, Self-Forcing or Wan",
        where=str(path),
        because=f"{name} is missing"
        if shape is None
        else f"{name} is {list(shape)}, expected {rank} dimensions above 0",
        fix="name the denoiser's checkpoint, such as model_bf16.pt",
    )


def stated_heads(stated: Mapping[str, object]) -> object:
    return next((stated[key] for key in HEADS if stated.get(key) is not None), None)


def _num_heads(dim: int, stated: Mapping[str, object], path: Path) -> int:
    said = stated_heads(stated)
    if said is None and dim % PUBLISHED_HEAD_DIM:
        raise CheckpointError(
            f"the number of heads of a model with {dim} channels is unknown",
            where=str(path),
            because=f"it is not stated, and {dim} is no multiple of {PUBLISHED_HEAD_DIM}",
            fix="say it: --num-heads N",
        )
    heads = dim // PUBLISHED_HEAD_DIM
    if said is not None:
        heads = positive_int(said, key="num_heads", where=path)
    if dim % heads == 0:
        return heads
    raise CheckpointError(
        f"{dim} channels do not divide into {heads} heads",
        where=str(path),
        because="the stated number of heads is of another model",
        fix="say the right one: --num-heads N",
    )


def check_stated(config: DitConfig, stated: Mapping[str, object], path: Path) -> None:
    """What the config.json of a Wan model says must be what the tensors say, and what llvq does.

    Raises CheckpointError.
    """
    if "Wan" not in str(stated.get("_class_name")):
        return
    said = {key: stated[key] for key in SAME if stated.get(key) is not None}
    wrong = {key: _of(config, key) for key in said if said[key] != _of(config, key)}
    if "patch_size" in stated and stated["patch_size"] != list(config.patch_size):
        wrong["patch_size"] = list(config.patch_size)
    if wrong:
        key, found = next(iter(wrong.items()))
        raise CheckpointError(
            f"config.json and the tensors of the denoiser disagree on {key}",
            where=str(path),
            because=f"config.json says {str(stated[key])[:80]}, the tensors {found}",
            fix="download both again, from one revision of the checkpoint",
        )
    for key, allowed in FIXED.items():
        if key in stated and stated[key] not in allowed:
            raise CheckpointError(
                f"a denoiser with {key} = {str(stated[key])[:80]} is not supported",
                where=str(path),
                because=f"llvq computes it with {' or '.join(str(value) for value in allowed)}",
                fix="use a text-to-video model of Wan2.1 or Wan2.2",
            )


def _of(config: DitConfig, key: str) -> object:
    return getattr(config, SAME[key])
