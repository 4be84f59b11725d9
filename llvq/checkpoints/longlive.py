"""The LongLive-2.0 denoiser: `model_bf16.pt`, training checkpoints, Wan2.2-TI2V-5B shards.

Names and layouts: the public LongLive-2.0 scripts that write and load them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from os import PathLike
from pathlib import Path

from llvq.calibration import FACTS
from llvq.checkpoints.checkpoint import (
    Checkpoint,
    all_specs,
    json_beside,
    positive_int,
)
from llvq.checkpoints.keys import check_keys
from llvq.checkpoints.packed import unpack
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import dit_specs, in_bf16
from llvq.errors import CheckpointError
from llvq.models.config import LONGLIVE2_5B, DitConfig, StreamConfig
from llvq.sources import RenamedSource, TensorSpec

WRAPPERS = frozenset(("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"))
OUTER = frozenset(("model", "module", "diffusion_model"))
PUBLISHED_HEAD_DIM = 128
BLOCK = re.compile(r"blocks\.(\d{1,6})\.")


def read_dit(
    path: str | PathLike[str],
    *,
    num_heads: int | None = None,
    use_ema: bool = False,
    layout: str | None = None,
) -> Checkpoint[DitConfig]:
    """Open a denoiser checkpoint and infer its sizes.

    `num_heads` cannot be seen in the shapes: given here, else in `config.json` beside the file,
    else in the file's metadata, else dim / 128. `use_ema` takes `generator_ema`. Linears that are
    packed in NVFP4 stay so; `layout` names how, where the file leaves it open.
    Errors: CheckpointError if the file is not a LongLive-2.0 or Wan2.2 denoiser.
    """
    path = Path(path)
    opened = open_tensors(path)
    _refuse_unreadable(opened.names(), path)
    source, packed = unpack(opened, opened.metadata, path, layout=layout)
    root, notes = _root(source.names(), use_ema=use_ema, path=path)
    tensors = RenamedSource(source, _module_names(source.names(), root, path))
    specs = all_specs(tensors)
    stated = {**opened.metadata, **json_beside(path, "config.json")}
    if num_heads is not None:
        stated["num_heads"] = num_heads
    elif "num_heads" not in stated:
        notes += (f"number of heads not stated: taken as dim / {PUBLISHED_HEAD_DIM}",)
    config = _config(specs, stated, path)
    weights = {name: spec for name, spec in specs.items() if name.split(".")[-1] not in FACTS}
    check_keys(weights, in_bf16(dit_specs(config)), f"the denoiser in {path}")
    return Checkpoint(tensors, config, (*packed, *notes))


def read_stream(
    path: str | PathLike[str], default: StreamConfig = LONGLIVE2_5B.stream
) -> StreamConfig:
    """The streaming schedule in `config.json` (key `stream`) beside a checkpoint, over `default`.

    Errors: CheckpointError for unknown keys or values of another type, RecipeError for values that
    do not go together.
    """
    path = Path(path)
    stated = json_beside(path, "config.json").get("stream", {})
    known = asdict(default)
    if isinstance(stated, dict):
        bad = [key for key in stated if key not in known or not _like(stated[key], known[key])]
        if not bad:
            return StreamConfig.from_dict({**known, **stated})
        because = f"not understood: {', '.join(bad)}"
    else:
        because = "it is not a JSON object"
    raise CheckpointError(
        "`stream` in config.json is not a streaming schedule",
        where=str(path),
        because=because,
        fix=f"use the keys {', '.join(known)}, with values like the defaults",
    )


def _like(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _refuse_unreadable(names: Sequence[str], path: Path) -> None:
    if all(name.split(".")[0] in ("generator_lora", "critic_lora") for name in names):
        raise CheckpointError(
            f"{path.name} holds LoRA weights only",
            where=str(path),
            because="merging a LoRA into its base model is not supported yet",
            fix="merge it first with LongLive's scripts/merge_lora_generator.py, name the result",
        )


def _root(names: Sequence[str], *, use_ema: bool, path: Path) -> tuple[str, tuple[str, ...]]:
    """The outermost key under which the denoiser is ("" if there is none), and notes."""
    groups = {name.split(".")[0] for name in names}
    if use_ema and "generator_ema" not in groups:
        raise CheckpointError(
            f"{path.name} has no EMA weights",
            where=str(path),
            because=f"there is no `generator_ema` among {', '.join(sorted(groups)[:8])}",
            fix="leave out the EMA option",
        )
    notes: tuple[str, ...] = ()
    if "generator_lora" in groups:
        notes += ("the file also has generator_lora, which is not merged in",)
    if use_ema:
        return "generator_ema", notes
    if "generator_ema" in groups and "generator" not in groups:
        return "generator_ema", (*notes, "the file has EMA weights only: these are used")
    return next((root for root in ("generator", "model") if root in groups), ""), notes


def _module_names(names: Sequence[str], root: str, path: Path) -> dict[str, str]:
    """Name in the module -> name in the file, for what is under `root`."""
    renamed: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        if root and parts[0] != root:
            continue
        inner = [part for part in parts[bool(root) :] if part not in WRAPPERS]
        while inner and inner[0] in OUTER:
            inner = inner[1:]
        if (short := ".".join(inner)) in renamed:
            raise CheckpointError(
                f"{short} is there twice",
                where=str(path),
                because=f"{renamed[short]} and {name} are one tensor of the model",
                fix="re-save the checkpoint with one name for each tensor",
            )
        renamed[short] = name
    return renamed


def _config(specs: Mapping[str, TensorSpec], stated: Mapping[str, object], path: Path) -> DitConfig:
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
        f"{path.name} is not a LongLive-2.0 or Wan2.2 denoiser",
        where=str(path),
        because=f"{name} is missing"
        if shape is None
        else f"{name} is {list(shape)}, expected {rank} dimensions above 0",
        fix="name the denoiser's checkpoint, such as model_bf16.pt",
    )


def _num_heads(dim: int, stated: Mapping[str, object], path: Path) -> int:
    if "num_heads" not in stated and dim % PUBLISHED_HEAD_DIM:
        raise CheckpointError(
            f"the number of heads of a model with {dim} channels is unknown",
            where=str(path),
            because=f"it is not stated, and {dim} is no multiple of {PUBLISHED_HEAD_DIM}",
            fix="say it: --num-heads N",
        )
    heads = positive_int(
        stated.get("num_heads", dim // PUBLISHED_HEAD_DIM), key="num_heads", where=path
    )
    if dim % heads == 0:
        return heads
    raise CheckpointError(
        f"{dim} channels do not divide into {heads} heads",
        where=str(path),
        because="the stated number of heads is of another model",
        fix="say the right one: --num-heads N",
    )
