"""The LongLive-2.0 denoiser: `model_bf16.pt`, training checkpoints, Wan2.2-TI2V-5B shards.

Names and layouts: the public LongLive-2.0 scripts that write and load them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from llvq.calibration import FACTS
from llvq.checkpoints.checkpoint import Checkpoint, all_specs, json_beside
from llvq.checkpoints.dit_sizes import (
    PUBLISHED_HEAD_DIM,
    check_stated,
    dit_sizes,
    stated_heads,
)
from llvq.checkpoints.keys import check_keys
from llvq.checkpoints.lora_names import is_lora
from llvq.checkpoints.module_names import module_names, root_of
from llvq.checkpoints.packed import unpack
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import dit_specs, in_bf16
from llvq.checkpoints.wan_names import TABLE
from llvq.errors import CheckpointError
from llvq.models.config import DitConfig
from llvq.sources import RenamedSource

FORMAT = "checkpoint_format"
# (channels, layers, latent channels) of what is published.
SIZES = {
    (3072, 30, 48): "Wan2.2-TI2V-5B",
    (1536, 30, 16): "Wan2.1-T2V-1.3B",
}


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
    _refuse_unreadable(opened.names(), opened.metadata, path)
    source, packed = unpack(opened, opened.metadata, path, layout=layout)
    root, notes = root_of(source.names(), use_ema=use_ema, path=path)
    names, spelling = TABLE.in_left(module_names(source.names(), root, path), path)
    tensors = RenamedSource(source, names)
    specs = all_specs(tensors)
    stated = {**opened.metadata, **json_beside(path, "config.json")}
    if num_heads is not None:
        stated["num_heads"] = num_heads
    elif stated_heads(stated) is None:
        notes += (f"number of heads not stated: taken as dim / {PUBLISHED_HEAD_DIM}",)
    config = dit_sizes(specs, stated, path)
    weights = {name: spec for name, spec in specs.items() if name.split(".")[-1] not in FACTS}
    check_keys(weights, in_bf16(dit_specs(config)), f"the denoiser in {path}")
    check_stated(config, json_beside(path, "config.json"), path)
    size = SIZES.get((config.dim, config.num_layers, config.in_dim))
    kind = [
        f"recognised: denoiser of {size or f'{config.num_layers} layers of {config.dim} channels'}",
        f"{spelling} names",
    ]
    kind += [f"`{root}` of a checkpoint"] if root else []
    kind += [f"{len(opened.files)} shards"] if len(opened.files) > 1 else []
    kind += [str(opened.metadata[FORMAT])[:60]] if FORMAT in opened.metadata else []
    return Checkpoint(tensors, config, (", ".join(kind), *packed, *notes))


def _refuse_unreadable(names: Sequence[str], metadata: Mapping[str, object], path: Path) -> None:
    if metadata.get(FORMAT) == "longlive_generator_te_nvfp4":
        raise CheckpointError(
            f"{path.name} holds TransformerEngine's own tensors",
            where=str(path),
            because="its format, longlive_generator_te_nvfp4, was given up by LongLive-2.0 too",
            fix="name model_te.pt as published today, which is BF16, or model_4o6.pt",
        )
    if is_lora(names):
        raise CheckpointError(
            f"{path.name} holds a LoRA, and no model to merge it into",
            where=str(path),
            because=f"all its tensors are like {names[0]}",
            fix=f"llvq quantize BASE --lora {path}, where BASE is the model that it was trained on",
        )
