"""A quantized program beside the checkpoint it was made from, which is compiled again as BF16.

Both sides go through the same passes, in the same dtype, at the same size and schedule. Only the
recipe differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from llvq import graphs
from llvq.artifact import Box
from llvq.box import plain
from llvq.checkpoints.checkpoint import json_beside
from llvq.checkpoints.model import VideoModel, open_model
from llvq.compiler import Compiled, compile_model
from llvq.errors import CheckpointError
from llvq.models.config import ModelConfig, StreamConfig
from llvq.recipe import BF16, Recipe, recipe_from_dict
from llvq.runtime.executable import RunFacts
from llvq.runtime.load import open_checked

# Tensors that no recipe quantizes are looked at to recognize a checkpoint; small ones suffice.
FINGERPRINT_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Pair:
    """`baseline` is `model` compiled as BF16; `recipe` is the one that `box` was made with."""

    box: Box
    model: VideoModel
    recipe: Recipe
    baseline: Compiled

    @property
    def facts(self) -> RunFacts:
        return RunFacts.from_dict(self.box.manifest["state"])

    @property
    def has_vae(self) -> bool:
        return "decode" in self.box.manifest["stages"]

    @property
    def random_weights(self) -> bool:
        """Whether the checkpoint's config.json says that nobody trained it."""
        return json_beside(self.model.bundle.dit, "config.json").get("random_weights") is True

    @cached_property
    def graphs(self) -> Mapping[str, GraphModule]:
        """The stages of the quantized program, on `meta`."""
        names = self.box.manifest["stages"]
        return {name: graphs.load(self.box.graph(name), device="meta") for name in names}


def open_pair(checkpoint: str | Path, program: str | Path, **options: Any) -> Pair:
    """Open both and compile the baseline; `options` are those of `open_model`.

    Raises ArtifactError, CheckpointError (among others where the program is of another checkpoint).
    """
    box = open_checked(program)
    facts = RunFacts.from_dict(box.manifest["state"])
    model = open_model(checkpoint, size=facts.pixel_hw, **options)
    model = replace(model, config=_as_in(box.manifest["model"], model.config))
    _check_loras(box, model)
    _check_config(box, model)
    _check_tensors(box, model)
    recipe = recipe_from_dict(box.manifest["recipe"])
    plain_recipe = replace(BF16, dtype=recipe.dtype)
    baseline = compile_model(model.config, plain_recipe, calibration=model.calibration)
    return Pair(box, model, recipe, baseline)


def _as_in(stated: Mapping[str, Any], config: ModelConfig) -> ModelConfig:
    """The checkpoint's config with the program's schedule, without the parts it does not have."""
    return replace(
        config,
        stream=StreamConfig.from_dict(stated["stream"]),
        vae=config.vae if stated["vae"] else None,
        text=config.text if stated["text"] else None,
    )


def _check_config(box: Box, model: VideoModel) -> None:
    stated, found = box.manifest["model"], plain(model.config.to_dict())
    for part in ("vae", "text"):
        if stated[part] is not None and found[part] is None:
            option = {"vae": "--vae", "text": "--text-encoder"}[part]
            raise CheckpointError(
                f"the program has a {part} part, and none lies beside the checkpoint",
                where=str(model.bundle.dit),
                because="both sides of the comparison must do the same work",
                fix=f"name it with {option}",
            )
    differing = _differences(stated, found)
    if differing:
        raise _another(box, model, "; ".join(differing[:3]))


def _differences(stated: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{part}.{key} is {value} in the program and {found[part].get(key)} in the checkpoint"
        for part in ("dit", "vae", "text")
        for key, value in (stated[part] or {}).items()
        if found[part].get(key) != value
    ]


def _check_loras(box: Box, model: VideoModel) -> None:
    """The same are merged in, whatever their files are called."""
    stated = box.manifest["lora"]
    sides = (stated, [lora.record() for lora in model.loras])
    one, other = ([{**record, "name": None} for record in records] for records in sides)
    if one == other:
        return
    names = [f"{record['name']} (alpha {record['alpha']:g})" for record in stated]
    raise CheckpointError(
        "the LoRAs of the program are others than those given",
        where=str(box.path),
        because=f"merged into it: {', '.join(names) or 'none'}",
        fix="give the same: "
        + (" ".join(f"--lora {record['name']}" for record in stated) or "leave out --lora"),
    )


def _check_tensors(box: Box, model: VideoModel) -> None:
    """Kept tensors must be the checkpoint's, value for value."""
    names, tensors = set(model.source.names()), box.tensors()
    for target, record in box.manifest["weights"].items():
        source = record["sources"][0]
        if record["op"] != "copy" or source not in names or target not in tensors:
            continue
        spec = model.source.spec(source)
        if torch.Size(spec.shape).numel() > FINGERPRINT_ELEMENTS:
            continue
        kept = tensors[target]
        if not torch.equal(kept, model.source.read(source).to(kept.dtype)):
            raise _another(box, model, f"{source} has other values")


def _another(box: Box, model: VideoModel, because: str) -> CheckpointError:
    return CheckpointError(
        "this program was made from another checkpoint",
        where=f"{box.path} and {model.bundle.dit}",
        because=because,
        fix="name the checkpoint that llvq quantize was given (--use-ema too, if it was)",
    )
